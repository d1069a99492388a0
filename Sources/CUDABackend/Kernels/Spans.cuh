// Which keys the queries of a batch see.
#pragma once

/// Query i of `queryCount` from `query` on stands at keyCount - queryCount + i among the `keyCount` keys from `key` on, and
/// sees those up to itself, at most `window` of them.
struct Span {
  int query, queryCount, key, keyCount, window;
};

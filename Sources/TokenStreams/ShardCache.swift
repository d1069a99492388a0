/// Open shards of a run, the least recently read closed first, so that a run over thousands of shards holds a bounded
/// number of their indices. Used by one thread.
package final class ShardCache {
  struct Key: Hashable {
    let folder: String
    /// Identity of the dataset: another one in the same folder is another key.
    let fingerprint: String
    let ordinal: Int
  }

  /// Most bytes that open shards may take; one is open at any size.
  package let limit: Int
  /// Bytes that the open shards take at most, their decoded frames included.
  package private(set) var bytes = 0
  /// Shards opened so far.
  package private(set) var opened = 0
  private var entries: [Key: (reader: ShardReader, lastUse: Int)] = [:]
  private var uses = 0

  /// Room for the indices of some 30 shards of 100M tokens; opening one anew takes milliseconds.
  package static let defaultLimit = 64 << 20

  package init(limit: Int = ShardCache.defaultLimit) { self.limit = limit }

  /// Open shards.
  package var count: Int { entries.count }

  /// The reader of `key`, made by `open` if it is not here.
  func reader(_ key: Key, open: () throws -> ShardReader) rethrows -> ShardReader {
    uses += 1
    if let known = entries[key]?.reader {
      entries[key]?.lastUse = uses
      return known
    }
    let reader = try open()
    opened += 1
    while bytes + reader.memoryBytes > limit, let oldest = entries.min(by: { $0.value.lastUse < $1.value.lastUse }) {
      bytes -= oldest.value.reader.memoryBytes
      entries[oldest.key] = nil
    }
    bytes += reader.memoryBytes
    entries[key] = (reader, uses)
    return reader
  }
}

import NN
import Ops
import Tensors

/// Grouped-query softmax attention with rotary positions, full or over a sliding window (Qwen2; RECIPE section 4).
struct Attention: TokenMixer {
  private let q: Linear
  private let k: Linear
  private let v: Linear
  private let o: Linear
  private let heads: Int
  private let groups: Int
  private let size: Int
  private let theta: Float
  private let window: Int?

  init(_ scope: ParameterScope, _ configuration: ModelConfiguration, window: Int?) {
    heads = configuration.attentionHeads
    groups = configuration.keyValueHeads
    size = configuration.headSize
    theta = configuration.ropeTheta
    self.window = window
    let hidden = configuration.hiddenSize
    q = Linear(scope.scope("q_proj"), hidden, heads * size, bias: true)
    k = Linear(scope.scope("k_proj"), hidden, groups * size, bias: true)
    v = Linear(scope.scope("v_proj"), hidden, groups * size, bias: true)
    o = Linear(scope.scope("o_proj"), heads * size, hidden)
  }

  func callAsFunction(_ x: Tensor, _ batch: Batch, cache: (any MixerCache)?) -> Tensor {
    let n = x.rows
    func rotated(_ x: Tensor, _ heads: Int) -> Tensor {
      rotaryEmbedding(x.reshaped([n, heads, size]), positions: batch.positions, theta: theta)
    }
    let queries = rotated(q(x), heads)
    var keys = rotated(k(x), groups)
    var values = v(x).reshaped([n, groups, size])
    var spans = batch.spans(window: window)
    if let cache = cache as? KeyValueCache {
      (keys, values) = cache.append(keys, values)
      spans = [AttentionSpan(queries: 0..<n, keys: 0..<keys.rows, window: window)]
    }
    let mixed = attention(queries, keys, values, spans: spans)
    return o(mixed.reshaped([n, heads * size]))
  }

  func makeCache(_ backend: any Backend) -> any MixerCache {
    KeyValueCache(backend, groups: groups, size: size, window: window)
  }
}

/// Keys and values of the tokens so far; of a sliding window only those that can still be seen.
final class KeyValueCache: MixerCache {
  private let backend: any Backend
  private let window: Int?
  private let shape: [Int]
  private var keys: Tensor
  private var values: Tensor
  private var count = 0

  init(_ backend: any Backend, groups: Int, size: Int, window: Int?) {
    self.backend = backend
    self.window = window
    shape = [groups, size]
    keys = backend.empty([0] + shape)
    values = backend.empty([0] + shape)
  }

  var byteCount: Int { (keys.count + values.count) * 4 }

  /// Adds rows and returns all that the new queries may see.
  func append(_ newKeys: Tensor, _ newValues: Tensor) -> (keys: Tensor, values: Tensor) {
    let kept = min(count, window.map { $0 - 1 } ?? count)
    let needed = kept + newKeys.rows
    if count + newKeys.rows > keys.rows {
      // Grow by halves; a window needs room for twice itself, so that most steps copy nothing.
      let capacity = max(window.map { needed + $0 } ?? needed + needed / 2, 64)
      let (oldKeys, oldValues, first) = (keys, values, count - kept)
      keys = backend.empty([capacity] + shape)
      values = backend.empty([capacity] + shape)
      if kept > 0 {
        backend.copy(oldKeys.rows(first..<count), into: keys.rows(0..<kept))
        backend.copy(oldValues.rows(first..<count), into: values.rows(0..<kept))
      }
      count = kept
    }
    let end = count + newKeys.rows
    backend.copy(newKeys, into: keys.rows(count..<end))
    backend.copy(newValues, into: values.rows(count..<end))
    count = end
    return (keys.rows(end - needed..<end), values.rows(end - needed..<end))
  }
}

import NN
import Ops
import Tensors

/// Grouped-query softmax attention with rotary positions, full or over a sliding window (RECIPE section 4), as the families
/// have it: with biases, norms over the channels of queries and keys, a scale of its own.
struct Attention: TokenMixer {
  private let projections: PackedLinear
  private let (q, k, v): (Int, Int, Int)
  private let o: Linear
  private let heads: Int
  private let groups: Int
  private let size: Int
  private let queryNorm: RMSNorm?
  private let keyNorm: RMSNorm?
  private let angles: RotaryAngles
  /// What queries are multiplied by, beside the D^−½ of attention itself.
  private let queryFactor: Float
  private var window: Int?

  init(_ scope: ParameterScope, _ configuration: Architecture, angles: RotaryAngles, window: Int?) {
    heads = configuration.attentionHeads
    groups = configuration.keyValueHeads
    size = configuration.headSize
    self.angles = angles
    self.window = window
    let hidden = configuration.hiddenSize
    projections = PackedLinear(inputs: hidden)
    let hasBias = configuration.hasQueryKeyValueBias
    q = projections.add(scope.scope("q_proj"), heads * size, bias: hasBias)
    k = projections.add(scope.scope("k_proj"), groups * size, bias: hasBias)
    v = projections.add(scope.scope("v_proj"), groups * size, bias: hasBias)
    o = Linear(scope.scope("o_proj"), heads * size, hidden, bias: configuration.hasOutputBias)
    func headNorm(_ name: String) -> RMSNorm? {
      guard configuration.hasQueryKeyNorms else { return nil }
      return RMSNorm(
        scope.scope(name), configuration.headSize, epsilon: configuration.normEpsilon,
        addsOne: configuration.normsAddOne)
    }
    (queryNorm, keyNorm) = (headNorm("q_norm"), headNorm("k_norm"))
    // Stretched angles may lengthen queries and keys: scores by the square.
    let scale = configuration.queryScale * Float(size).squareRoot()
    queryFactor = (abs(scale - 1) < 1e-6 ? 1 : scale) * Float(angles.magnitude * angles.magnitude)
  }

  /// The same parameters over a sliding window.
  func sliding(over window: Int) -> Attention {
    var copy = self
    copy.window = window
    return copy
  }

  func callAsFunction(_ x: Tensor, _ batch: Batch, cache: (any MixerCache)?) -> Tensor {
    let n = x.rows
    func rotated(_ x: Tensor, _ heads: Int, _ norm: RMSNorm?) -> Tensor {
      let x = x.reshaped([n, heads, size])
      return rotaryEmbedding(norm?(x) ?? x, layout: batch.layout, angles: angles)
    }
    let projected = projections(x)
    let queries = scaled(rotated(projected[q], heads, queryNorm), by: queryFactor)
    var keys = rotated(projected[k], groups, keyNorm)
    var values = projected[v].reshaped([n, groups, size])
    let spans: AttentionSpans
    if let cache = cache as? KeyValueCache {
      (keys, values, spans) = cache.append(keys, values, batch.layout)
    } else {
      spans = batch.layout.spans(window: window)
    }
    let mixed = attention(queries, keys, values, spans: spans)
    return o(mixed.reshaped([n, heads * size]))
  }

  func makeCache(_ backend: any Backend, sequences: Int, capacity: Int) -> any MixerCache {
    KeyValueCache(
      backend, groups: groups, size: size, window: window, sequences: sequences, capacity: capacity)
  }

  func cacheElements(context: Int) -> Int { 2 * groups * size * min(context, window ?? context) }
}

/// Keys and values of the tokens so far of every sequence; of a sliding window only those that can still be seen.
final class KeyValueCache: MixerCache {
  private let backend: any Backend
  private let window: Int?
  private let shape: [Int]
  /// `[sequences · capacity, G, D]`, each sequence at its own multiple of `capacity`.
  private var keys: Tensor
  private var values: Tensor
  private var capacity: Int
  /// Rows of every sequence that are filled.
  private var counts: [Int]

  init(_ backend: any Backend, groups: Int, size: Int, window: Int?, sequences: Int, capacity: Int) {
    self.backend = backend
    self.window = window
    // A window needs room for twice itself, so that most steps copy nothing.
    self.capacity = min(max(capacity, 64), window.map { 2 * $0 + 64 } ?? .max)
    shape = [groups, size]
    counts = [Int](repeating: 0, count: sequences)
    keys = backend.empty([sequences * self.capacity] + shape)
    values = backend.empty([sequences * self.capacity] + shape)
  }

  var byteCount: Int { (keys.count + values.count) * 4 }

  func select(_ sequences: [Int]) {
    relocate(sequences, capacity: capacity, kept: sequences.map { counts[$0] })
  }

  func assume(_ length: Int) {
    let kept = min(length, window.map { $0 - 1 } ?? length)
    if kept > capacity { relocate(Array(counts.indices), capacity: kept, kept: counts.map { _ in 0 }) }
    backend.fill(keys, with: 0.01)
    backend.fill(values, with: 0.01)
    counts = counts.map { _ in kept }
  }

  /// Moves the newest `kept` rows of each of `sequences` into new memory.
  private func relocate(_ sequences: [Int], capacity newCapacity: Int, kept: [Int]) {
    let newKeys = backend.empty([sequences.count * newCapacity] + shape)
    let newValues = backend.empty([sequences.count * newCapacity] + shape)
    let moves = sequences.enumerated().map { place, sequence in
      RowMove(
        from: sequence * capacity + counts[sequence] - kept[place], to: place * newCapacity, count: kept[place])
    }
    backend.copyRows(keys, into: newKeys, moves)
    backend.copyRows(values, into: newValues, moves)
    (keys, values, capacity, counts) = (newKeys, newValues, newCapacity, kept)
  }

  /// Adds the rows of every segment to its sequence, and returns all keys and values and which of them each segment's
  /// queries may see.
  func append(
    _ newKeys: Tensor, _ newValues: Tensor, _ layout: Layout
  ) -> (keys: Tensor, values: Tensor, spans: AttentionSpans) {
    let ranges = layout.segments.ranges
    precondition(ranges.count == counts.count, "\(ranges.count) segments for \(counts.count) sequences")
    if zip(counts, ranges).contains(where: { $0 + $1.count > capacity }) {
      let kept = counts.map { min($0, window.map { $0 - 1 } ?? $0) }
      let needed = zip(kept, ranges).map { $0 + $1.count }.max() ?? 0
      let room = needed <= capacity ? capacity : window.map { needed + $0 } ?? needed + needed / 2
      relocate(Array(counts.indices), capacity: room, kept: kept)
    }
    let moves = ranges.enumerated().map { sequence, range in
      RowMove(from: range.lowerBound, to: sequence * capacity + counts[sequence], count: range.count)
    }
    backend.copyRows(newKeys, into: keys, moves)
    backend.copyRows(newValues, into: values, moves)
    counts = zip(counts, ranges).map { $0 + $1.count }
    let place = Place(counts: counts, capacity: capacity, window: window)
    return (keys, values, layout.spans(place) { place.spans(ranges) })
  }

  /// Where the keys lie: layers whose caches agree in it share their spans.
  private struct Place: Hashable {
    let counts: [Int]
    let capacity: Int
    let window: Int?

    func spans(_ queries: [Range<Int>]) -> [AttentionSpan] {
      queries.enumerated().filter { !$0.element.isEmpty }.map { sequence, range in
        let start = sequence * capacity
        return AttentionSpan(queries: range, keys: start..<start + counts[sequence], window: window)
      }
    }
  }
}

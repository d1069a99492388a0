import Ops
import Tensors

/// Keys and values of the tokens so far of every sequence; of a sliding window only those that can still be seen.
///
/// A token's row is its position, over a window its position modulo the window: where it goes needs nothing but the position,
/// which the device counts while it decodes. Softmax does not ask for the order of its keys, and rotary positions are in
/// them already.
final class KeyValueCache: MixerCache {
  private let backend: any Backend
  private let window: Int?
  /// `[sequences, room, G, D]`
  private var keys: Tensor
  private var values: Tensor
  /// Rows of a sequence: its tokens in their order, or, where that is the window, a ring.
  private var room: Int { keys.shape[1] }
  private var sequences: Int { keys.rows }

  init(_ backend: any Backend, _ room: CacheRoom, groups: Int, size: Int, window: Int?) {
    (self.backend, self.window) = (backend, window)
    let shape = [room.sequences, min(max(room.capacity, 64), window ?? .max), groups, size]
    keys = backend.empty(shape, backend.activationType)
    values = backend.empty(shape, backend.activationType)
  }

  var byteCount: Int { (keys.count + values.count) * keys.dtype.size }

  func select(_ sequences: [Int]) { move(sequences, room: room) }

  func reserve(_ length: Int) {
    let needed = min(length, window ?? .max)
    // What has room to grow has not gone round yet.
    if needed > room { move(Array(0..<sequences), room: needed) }
  }

  func fillAtRandom() {
    keys.fillAtRandom()
    values.fillAtRandom()
  }

  /// All rows of `chosen`, in new memory.
  private func move(_ chosen: [Int], room newRoom: Int) {
    let moves = chosen.enumerated().map { RowMove(from: $1 * room, to: $0 * newRoom, count: min(room, newRoom)) }
    func moved(_ x: Tensor) -> Tensor {
      let y = backend.empty([chosen.count, newRoom] + x.shape.dropFirst(2), x.dtype)
      backend.copyRows(rows(x), into: rows(y), moves)
      return y
    }
    (keys, values) = (moved(keys), moved(values))
  }

  /// A cache as rows, one behind the other.
  private func rows(_ x: Tensor) -> Tensor { x.reshaped([x.rows * x.shape[1]] + x.shape.dropFirst(2)) }

  /// Adds the keys and values of every segment to its sequence and lets the queries of the segment see what they may,
  /// q `[N, H, D]`, k and v `[N, G, D]`; there must be room.
  func attend(_ q: Tensor, _ k: Tensor, _ v: Tensor, _ layout: Layout) -> Tensor {
    let ranges = layout.segments.ranges
    precondition(ranges.count == sequences, "\(ranges.count) segments for \(sequences) sequences")
    precondition(
      layout.positionLimit <= room || room == window, "\(layout.positionLimit) tokens in a cache for \(room)")
    if layout.isDecoding {
      backend.storeRows(k, at: layout.positions, in: keys)
      backend.storeRows(v, at: layout.positions, in: values)
      let o = backend.empty(like: q)
      backend.attendCache(q, keys: keys, values: values, positions: layout.positions, into: o)
      return o
    }
    guard window != nil else {
      store(k, v, layout)
      let spans = layout.spans(Name(room: room, window: nil)) {
        ranges.enumerated().filter { !$0.element.isEmpty }.map { sequence, range in
          let first = sequence * room
          return AttentionSpan(queries: range, keys: first..<first + layout.starts[sequence] + range.count)
        }
      }
      return attention(q, rows(keys), rows(values), spans: spans)
    }
    // What is new pushes out of the ring what its first queries still see.
    defer { store(k, v, layout) }
    guard layout.starts.contains(where: { $0 > 0 }) else {
      return attention(q, k, v, spans: layout.spans(window: window))
    }
    let view = layout.table(Name(room: room, window: window)) { View(layout, self) }
    return attention(q, view.joined(rows(keys), k), view.joined(rows(values), v), spans: view.spans)
  }

  /// Puts new rows where they belong; of more tokens than a ring holds the newest.
  private func store(_ k: Tensor, _ v: Tensor, _ layout: Layout) {
    let moves = zip(layout.starts, layout.segments.ranges).enumerated().flatMap { sequence, place in
      let (start, range) = place
      let end = start + range.count
      return runs(end - min(range.count, room)..<end, of: sequence).map {
        RowMove(from: range.lowerBound + $0.first - start, to: $0.row, count: $0.count)
      }
    }
    backend.copyRows(k, into: rows(keys), moves)
    backend.copyRows(v, into: rows(values), moves)
  }

  /// The rows of `positions` of a sequence, in runs: the first position, its row among those of all sequences, and how many.
  private func runs(_ positions: Range<Int>, of sequence: Int) -> [(first: Int, row: Int, count: Int)] {
    var (runs, position): ([(first: Int, row: Int, count: Int)], Int) = ([], positions.lowerBound)
    while position < positions.upperBound {
      let count = min(positions.upperBound - position, room - position % room)
      runs.append((position, sequence * room + position % room, count))
      position += count
    }
    return runs
  }

  private struct Name: Hashable {
    let room: Int
    let window: Int?
  }

  /// What the queries of a pass see over a window, one sequence behind the other: what is remembered, then what is new. Layers
  /// whose caches are alike share it.
  private final class View {
    let spans: AttentionSpans
    private let count: Int
    /// From the cache, and from what is new.
    private let old: [RowMove]
    private let new: [RowMove]

    init(_ layout: Layout, _ cache: KeyValueCache) {
      var (spans, old, new, count): ([AttentionSpan], [RowMove], [RowMove], Int) = ([], [], [], 0)
      for (sequence, (start, range)) in zip(layout.starts, layout.segments.ranges).enumerated() where !range.isEmpty {
        let first = count
        let kept = min(start, cache.window.map { $0 - 1 } ?? start)
        for run in cache.runs(start - kept..<start, of: sequence) {
          old.append(RowMove(from: run.row, to: count, count: run.count))
          count += run.count
        }
        new.append(RowMove(from: range.lowerBound, to: count, count: range.count))
        count += range.count
        spans.append(AttentionSpan(queries: range, keys: first..<count, window: cache.window))
      }
      (self.spans, self.count, self.old, self.new) = (AttentionSpans(spans), count, old, new)
    }

    func joined(_ cached: Tensor, _ fresh: Tensor) -> Tensor {
      let backend = cached.backend
      let all = backend.empty([count] + cached.shape.dropFirst(), cached.dtype)
      backend.copyRows(cached, into: all, old)
      backend.copyRows(fresh, into: all, new)
      return all
    }
  }
}

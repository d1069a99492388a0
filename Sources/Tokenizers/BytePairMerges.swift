/// The merges of a byte pair encoding: which two tokens become one, and which pair goes first.
package struct BytePairMerges: Sendable {
  /// Open addressing over (left, right); an empty place has rank `none`.
  private struct Slot {
    var pair: UInt64 = 0
    var rank: UInt32 = .max
    var merged: UInt32 = 0
  }

  private var slots: [Slot]
  private let mask: Int
  private static let none = UInt32.max

  /// - Parameter pairs: in the order of their ranks, no pair twice
  package init(_ pairs: [(left: UInt32, right: UInt32, merged: UInt32)]) {
    var size = 16
    while size < 2 * pairs.count { size *= 2 }
    mask = size - 1
    slots = [Slot](repeating: Slot(), count: size)
    for (rank, pair) in pairs.enumerated() {
      let key = UInt64(pair.left) << 32 | UInt64(pair.right)
      var index = place(key)
      while slots[index].rank != Self.none { index = (index + 1) & mask }
      slots[index] = Slot(pair: key, rank: UInt32(rank), merged: pair.merged)
    }
  }

  @inline(__always)
  private func place(_ key: UInt64) -> Int {
    Int(truncatingIfNeeded: (key &* 0x9E37_79B9_7F4A_7C15) >> 24) & mask
  }

  /// Rank of the pair and the token it becomes; rank `UInt32.max` when the two do not merge.
  @inline(__always)
  private func lookup(_ slots: UnsafeBufferPointer<Slot>, _ left: UInt32, _ right: UInt32) -> (UInt32, UInt32) {
    let key = UInt64(left) << 32 | UInt64(right)
    var index = place(key)
    while true {
      let slot = slots[index]
      if slot.pair == key || slot.rank == Self.none { return (slot.rank, slot.merged) }
      index = (index + 1) & mask
    }
  }

  /// Merges `tokens` as far as it goes, the lowest rank first and of equal ones the leftmost.
  package func apply(to tokens: inout [UInt32]) {
    guard tokens.count > 1 else { return }
    slots.withUnsafeBufferPointer { slots in
      if tokens.count <= 64 { applyByScan(slots, &tokens) } else { applyByHeap(slots, &tokens) }
    }
  }

  /// For short pieces: looks for the lowest rank anew after every merge.
  private func applyByScan(_ slots: UnsafeBufferPointer<Slot>, _ tokens: inout [UInt32]) {
    withUnsafeTemporaryAllocation(of: (rank: UInt32, merged: UInt32).self, capacity: tokens.count) { pairs in
      var count = tokens.count
      for i in 0..<count - 1 { pairs[i] = lookup(slots, tokens[i], tokens[i + 1]) }
      while count > 1 {
        var best = 0
        for i in 1..<max(1, count - 1) where pairs[i].rank < pairs[best].rank { best = i }
        guard pairs[best].rank != Self.none else { break }
        tokens[best] = pairs[best].merged
        count -= 1
        for i in best + 1..<max(best + 1, count) { tokens[i] = tokens[i + 1] }
        for i in best + 1..<max(best + 1, count - 1) { pairs[i] = pairs[i + 1] }
        if best + 1 < count { pairs[best] = lookup(slots, tokens[best], tokens[best + 1]) }
        if best > 0 { pairs[best - 1] = lookup(slots, tokens[best - 1], tokens[best]) }
      }
      tokens.removeLast(tokens.count - count)
    }
  }

  /// For long pieces: a heap of candidates over a linked list. Complexity O(n log n).
  private func applyByHeap(_ slots: UnsafeBufferPointer<Slot>, _ tokens: inout [UInt32]) {
    let end = tokens.count
    var next = Array(1...end)
    var previous = Array(-1..<end - 1)
    /// Rank of the pair that begins at each place; `none` where it ended or never was.
    var ranks = [UInt32](repeating: Self.none, count: end)
    var merged = [UInt32](repeating: 0, count: end)
    var heap = MinimumHeap(capacity: end)
    func consider(_ i: Int) {
      ranks[i] = Self.none
      guard next[i] < end else { return }
      (ranks[i], merged[i]) = lookup(slots, tokens[i], tokens[next[i]])
      if ranks[i] != Self.none { heap.push(UInt64(ranks[i]) << 32 | UInt64(i)) }
    }
    for i in 0..<end { consider(i) }
    while let candidate = heap.pop() {
      let i = Int(candidate & 0xFFFF_FFFF)
      // Stale when its neighbours merged since.
      guard ranks[i] == UInt32(candidate >> 32) else { continue }
      let gone = next[i]
      tokens[i] = merged[i]
      ranks[gone] = Self.none
      next[i] = next[gone]
      if next[i] < end { previous[next[i]] = i }
      next[gone] = -1
      consider(i)
      if previous[i] >= 0 { consider(previous[i]) }
    }
    var out: [UInt32] = []
    var i = 0
    while i < end {
      out.append(tokens[i])
      i = next[i]
    }
    tokens = out
  }
}

/// A binary heap of keys, the smallest on top.
private struct MinimumHeap {
  private var keys: [UInt64] = []

  init(capacity: Int) { keys.reserveCapacity(capacity) }

  mutating func push(_ key: UInt64) {
    var index = keys.count
    keys.append(key)
    while index > 0, case let parent = (index - 1) / 2, keys[parent] > key {
      keys[index] = keys[parent]
      index = parent
    }
    keys[index] = key
  }

  mutating func pop() -> UInt64? {
    guard let top = keys.first, let last = keys.popLast() else { return nil }
    guard !keys.isEmpty else { return top }
    var index = 0
    while true {
      var child = 2 * index + 1
      guard child < keys.count else { break }
      if child + 1 < keys.count, keys[child + 1] < keys[child] { child += 1 }
      guard keys[child] < last else { break }
      keys[index] = keys[child]
      index = child
    }
    keys[index] = last
    return top
  }
}

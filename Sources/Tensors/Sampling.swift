import Foundation

/// How the next token is chosen.
package struct Sampling: Sendable, Hashable {
  /// 0 takes the most likely token.
  package var temperature: Double
  /// Tokens that may be chosen at all; 0 for all.
  package var topK: Int
  /// Least probability mass from which is chosen; 1 for all.
  package var topP: Double

  package init(temperature: Double = 0, topK: Int = 0, topP: Double = 1) {
    self.temperature = temperature
    self.topK = topK
    self.topP = topP
  }

  /// The token that `uniform` in [0, 1) draws: tokens stand in the order of their logits, the largest first and equal ones by
  /// their ids. Nil where a logit is not finite.
  ///
  /// Probabilities are whole numbers (``weight(_:below:)``), so that they add up to the same in any order: a device, which
  /// finds the token by halving the range of logits instead of sorting them, finds the same.
  package func token(of logits: [Float], uniform: Float) -> Int? {
    guard logits.allSatisfy(\.isFinite), let best = logits.indices.max(by: { logits[$0] < logits[$1] }) else {
      return nil
    }
    guard temperature > 0 else { return best }
    let weights = logits.map { weight($0, below: logits[best]) }
    // The most likely tokens come one by one, as many as are wanted: the vocabulary is not sorted.
    var order = DescendingOrder(of: logits)
    var candidates: [Int] = []
    func next() -> Bool {
      guard topK == 0 || candidates.count < topK, let id = order.next() else { return false }
      candidates.append(id)
      return true
    }
    var mass: UInt64
    if topK > 0 {
      while next() {}
      mass = candidates.reduce(0) { $0 + weights[$1] }
    } else {
      mass = weights.reduce(0, +)
    }
    if topP < 1 {
      let least = max(1, UInt64(topP * Double(mass)))
      var (kept, count): (UInt64, Int) = (0, 0)
      while kept < least, count < candidates.count || next() {
        kept += weights[candidates[count]]
        count += 1
      }
      mass = kept
    }
    var target = Self.place(uniform, in: mass)
    var index = 0
    while index < candidates.count || next() {
      let weight = weights[candidates[index]]
      if target < weight { return candidates[index] }
      target -= weight
      index += 1
    }
    return best
  }

  /// The inverse of the temperature; 0 where that is 0.
  package var sharpness: Float { temperature > 0 ? 1 / Float(temperature) : 0 }

  /// The probability of a logit beside that of the largest, in units of 2^−40.
  package func weight(_ logit: Float, below largest: Float) -> UInt64 {
    UInt64(exp((logit - largest) * sharpness) * 0x1p40)
  }

  /// Which of `mass` units `uniform` draws.
  static func place(_ uniform: Float, in mass: UInt64) -> UInt64 {
    min(UInt64(Double(uniform) * Double(mass)), mass - 1)
  }
}

/// Indices of numbers from the largest on, equal ones in their order: a heap, of which only what is asked for is sorted.
private struct DescendingOrder {
  private let values: [Float]
  private var heap: [Int]

  init(of values: [Float]) {
    self.values = values
    heap = Array(values.indices)
    for place in stride(from: heap.count / 2 - 1, through: 0, by: -1) { sink(place) }
  }

  mutating func next() -> Int? {
    guard let first = heap.first else { return nil }
    let last = heap.removeLast()
    if !heap.isEmpty {
      heap[0] = last
      sink(0)
    }
    return first
  }

  private func isBefore(_ a: Int, _ b: Int) -> Bool { values[a] > values[b] || (values[a] == values[b] && a < b) }

  private mutating func sink(_ start: Int) {
    var place = start
    let item = heap[start]
    while 2 * place + 1 < heap.count {
      var child = 2 * place + 1
      if child + 1 < heap.count, isBefore(heap[child + 1], heap[child]) { child += 1 }
      if isBefore(item, heap[child]) { break }
      heap[place] = heap[child]
      place = child
    }
    heap[place] = item
  }
}

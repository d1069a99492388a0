import Foundation
import NN

/// How the next token is chosen.
package struct Sampling: Sendable {
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

  /// The choice for these logits.
  package func choose(_ logits: [Float], random: inout RandomStream) -> UInt32 {
    let best = logits.indices.max { logits[$0] < logits[$1] }!
    guard temperature > 0 else { return UInt32(best) }
    let weights = logits.map { exp(Double($0 - logits[best]) / temperature) }
    // The most likely tokens come one by one, as many as are wanted: the vocabulary is not sorted.
    var order = DescendingOrder(of: weights)
    var candidates: [(id: Int, weight: Double)] = []
    func next() -> Bool {
      guard topK == 0 || candidates.count < topK, let id = order.next() else { return false }
      candidates.append((id, weights[id]))
      return true
    }
    var mass = 0.0
    if topK > 0 {
      while next() {}
      mass = candidates.reduce(0) { $0 + $1.weight }
    } else {
      mass = weights.reduce(0, +)
    }
    var kept = mass
    var count = Int.max
    if topP < 1 {
      (kept, count) = (0, 0)
      while kept < topP * mass, count < candidates.count || next() {
        kept += candidates[count].weight
        count += 1
      }
    }
    var target = Double(random.uniform()) * kept
    var index = 0
    while index < count, index < candidates.count || next() {
      target -= candidates[index].weight
      if target < 0 { return UInt32(candidates[index].id) }
      index += 1
    }
    return UInt32(best)
  }
}

/// Indices of weights from the largest on, equal ones in their order: a heap, of which only what is asked for is sorted.
private struct DescendingOrder {
  private let weights: [Double]
  private var heap: [Int]

  init(of weights: [Double]) {
    self.weights = weights
    heap = Array(weights.indices)
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

  private func isBefore(_ a: Int, _ b: Int) -> Bool {
    weights[a] > weights[b] || (weights[a] == weights[b] && a < b)
  }

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

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
    var candidates = logits.indices.map { (id: $0, weight: exp(Double(logits[$0] - logits[best]) / temperature)) }
    candidates.sort { ($0.weight, $1.id) > ($1.weight, $0.id) }
    if topK > 0 { candidates = Array(candidates.prefix(topK)) }
    let mass = candidates.reduce(0) { $0 + $1.weight }
    var kept = 0.0
    var count = 0
    while count < candidates.count, kept < topP * mass {
      kept += candidates[count].weight
      count += 1
    }
    var target = Double(random.uniform()) * kept
    for candidate in candidates.prefix(count) {
      target -= candidate.weight
      if target < 0 { return UInt32(candidate.id) }
    }
    return UInt32(candidates[0].id)
  }
}

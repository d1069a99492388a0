import Foundation

/// How the loss on held-out text went over a run, as its log says.
package struct RunCurve: Sendable {
  /// Tokens trained on, and mean cross-entropy in nats.
  package let points: [(tokens: Double, loss: Double)]

  /// Of the run that made the model at `path`: its folder, or one beside it; nil where there is no log of two validations.
  package init?(ofModelAt path: String) {
    let beside = URL(fileURLWithPath: path).deletingLastPathComponent().path
    let logs = [path, beside].lazy.map { $0 + "/metrics.jsonl" }
    guard let log = logs.compactMap({ FileManager.default.contents(atPath: $0) }).first else { return nil }
    var points: [(tokens: Double, loss: Double)] = []
    var tokens = 0.0
    for line in log.split(separator: UInt8(ascii: "\n")) {
      guard let object = try? JSONSerialization.jsonObject(with: line) as? [String: Any] else { continue }
      if let seen = object["tokens"] as? Double { tokens = seen }
      guard let losses = object["validation"] as? [String: Any], let loss = losses["cross_entropy"] as? Double,
        loss.isFinite
      else { continue }
      points.append((tokens, loss))
    }
    guard points.count > 1 else { return nil }
    self.points = points
  }

  /// A row of blocks, high where the loss was, for a terminal.
  package var sparkline: String {
    let blocks = Array("▁▂▃▄▅▆▇█")
    let low = points.map(\.loss).min() ?? 0
    let high = points.map(\.loss).max() ?? 1
    return String(
      points.map { blocks[min(7, max(0, Int(($0.loss - low) / max(high - low, 1e-12) * 7.999)))] })
  }
}

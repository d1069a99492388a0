import Files
import Foundation
import Models
import NN
import Ops
import Safetensors
import Tensors
import Training

/// A model's outputs and gradients beside those that a reference implementation wrote into a safetensors file
/// (docs/verify.md): `input_ids` [B, T] or [T], and any of `logits`, `hidden.N`, `loss`, `labels`, `grad.NAME`.
package struct GoldenComparison {
  /// One array of the file.
  package struct Entry: Sendable {
    package let name: String
    package let elements: Int
    /// ‖x − reference‖ / ‖reference‖ in double precision.
    package let error: Double

    package var isGradient: Bool { name.hasPrefix("grad.") }
  }

  package private(set) var entries: [Entry] = []
  private let model: HybridLM
  private let golden: SafetensorsFile
  private let backend: any Backend
  private let batch: Batch
  private let labels: [Int32]

  /// Runs `model` on the file's tokens and compares what the file holds.
  package init(model: HybridLM, golden: SafetensorsFile, backend: any Backend) throws {
    self.model = model
    self.golden = golden
    self.backend = backend
    guard let entry = golden.entries["input_ids"], (1...2).contains(entry.shape.count), entry.count > 0 else {
      throw FileError(golden.path, "has no input_ids of shape [B, T] or [T]")
    }
    let ids = try golden.integers("input_ids")
    let vocabulary = model.configuration.vocabularySize
    if let bad = ids.first(where: { $0 < 0 || $0 >= vocabulary }) {
      throw FileError(golden.path, "input_ids holds \(bad), the vocabulary has \(vocabulary)")
    }
    let length = entry.shape[entry.shape.count - 1]
    let segments = Segments(count: entry.count / length, length: length)
    batch = Batch(tokens: backend.tensor(ids), segments: segments)
    // Without labels every token predicts the next of its row.
    labels =
      golden.entries["labels"] != nil
      ? try golden.integers("labels")
      : segments.ranges.flatMap { range in range.map { $0 + 1 < range.upperBound ? ids[$0 + 1] : -100 } }
    guard labels.count == ids.count, labels.allSatisfy({ $0 < vocabulary }) else {
      throw FileError(golden.path, "labels do not fit input_ids and the vocabulary")
    }
    try checkNames()
    try compare()
  }

  private func checkNames() throws {
    for name in golden.entries.keys.sorted() {
      let isKnown: Bool
      if name.hasPrefix("grad.") {
        isKnown = model.store[String(name.dropFirst(5))] != nil
      } else if name.hasPrefix("hidden.") {
        isKnown = Int(name.dropFirst(7)).map { (0...model.layers.count).contains($0) } ?? false
      } else {
        isKnown = ["input_ids", "labels", "logits", "loss"].contains(name)
      }
      guard isKnown else {
        throw FileError(golden.path, "\(name) is nothing that this model has")
      }
    }
  }

  private mutating func compare() throws {
    let wantsGradients = golden.entries.keys.contains { $0.hasPrefix("grad.") }
    guard wantsGradients else { return try backend.withoutRecording { _ = try forward(counted: nil) } }
    let arena = Arena(model.store, backend: backend) { golden.entries["grad." + $0.name] != nil }
    arena.beginBackward()
    let (_, tape) = try backend.recording { try forward(counted: labels.filter { $0 >= 0 }.count) }
    tape.backward()
    arena.endBackward()
    for entry in arena.entries {
      try add("grad." + entry.parameter.name, arena.gradients.rows(entry.range))
    }
  }

  /// - Parameter counted: labels that the loss is a mean over, when gradients are asked
  private mutating func forward(counted: Int?) throws {
    if golden.entries["hidden.0"] != nil { try add("hidden.0", model.embed(batch)) }
    let last = model.layers.count
    var entries = entries
    let hidden = try model(batch) { index, x in
      // The reference's last hidden state is the one after the final norm.
      if index + 1 < last { try add("hidden.\(index + 1)", x, to: &entries) }
    }
    self.entries = entries
    try add("hidden.\(last)", hidden)
    if golden.entries["logits"] != nil { try compareLogits(hidden.detached) }
    guard golden.entries["loss"] != nil || counted != nil else { return }
    let count = labels.filter { $0 >= 0 }.count
    let losses = vocabularyLoss(
      hidden: hidden, weight: model.head, labels: backend.tensor(labels),
      crossEntropySeed: counted.map { 1 / Float($0) } ?? 0)
    if golden.entries["loss"] != nil {
      let loss = Float(losses.crossEntropy.hostSum() / Double(max(1, count)))
      try add("loss", backend.tensor([loss], [1]))
    }
  }

  /// Rows at a time, so that the logits never exist whole.
  private mutating func compareLogits(_ hidden: Tensor) throws {
    let vocabulary = model.configuration.vocabularySize
    guard let entry = golden.entries["logits"], entry.count == hidden.rows * vocabulary else {
      throw FileError(
        golden.path, "logits are not [\(hidden.rows), \(vocabulary)], tokens by vocabulary")
    }
    let chunk = max(1, (1 << 22) / vocabulary)
    var sums = Difference()
    try backend.withoutRecording {
      for first in stride(from: 0, to: hidden.rows, by: chunk) {
        let rows = first..<min(first + chunk, hidden.rows)
        let logits = model.logits(hidden.rows(rows)).toArray()
        var reference = [Float](repeating: 0, count: logits.count)
        try reference.withUnsafeMutableBufferPointer {
          try golden.read(
            "logits", rows.lowerBound * vocabulary..<rows.upperBound * vocabulary, into: $0.baseAddress!)
        }
        sums.add(logits, reference)
      }
    }
    entries.append(Entry(name: "logits", elements: entry.count, error: sums.relative))
  }

  private mutating func add(_ name: String, _ x: Tensor) throws { try add(name, x, to: &entries) }

  private func add(_ name: String, _ x: Tensor, to entries: inout [Entry]) throws {
    guard let entry = golden.entries[name] else { return }
    guard entry.count == x.count else {
      throw FileError(golden.path, "\(name) has shape \(entry.shape), the model's has \(x.shape)")
    }
    var sums = Difference()
    sums.add(x.toArray(), try golden.floats(name))
    entries.append(Entry(name: name, elements: x.count, error: sums.relative))
  }

  /// Sums of squares of a difference and of its reference.
  private struct Difference {
    private var difference = 0.0
    private var reference = 0.0

    mutating func add(_ x: [Float], _ y: [Float]) {
      for (a, b) in zip(x, y) {
        difference += (Double(a) - Double(b)) * (Double(a) - Double(b))
        reference += Double(b) * Double(b)
      }
    }

    /// Infinite where either side is not a number.
    var relative: Double {
      guard difference.isFinite, reference.isFinite else { return .infinity }
      return reference == 0 ? difference.squareRoot() : (difference / reference).squareRoot()
    }
  }
}

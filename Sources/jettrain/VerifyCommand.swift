import ArgumentParser
import Evaluation
import Files
import Foundation
import Models
import Reporting
import Safetensors
import Training

struct Verify: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Compare a model's outputs and gradients with those of a reference implementation.",
    discussion: "docs/verify.md says how to make such a file. Exits with 1 past a tolerance.")
  @Argument(help: "A model folder, run folder or checkpoint.") var model: String
  @Argument(help: "A safetensors file: input_ids, and any of labels, logits, hidden.N, loss, grad.NAME.")
  var golden: String
  @Option(help: "Largest relative error of an output.", transform: Real.above(0, to: 1e6)) var tolerance = 2e-5
  @Option(help: "Largest relative error of a gradient.", transform: Real.above(0, to: 1e6)) var gradientTolerance = 1e-4
  @OptionGroup var device: DeviceOption

  func run() {
    withoutWorld {
      let backend = try device.backend()
      let golden = try SafetensorsFile(path: golden)
      let comparison = try GoldenComparison(
        model: try loadModel(model, backend: backend), golden: golden, backend: backend)
      guard !comparison.entries.isEmpty else {
        throw FileError(golden.path, "holds nothing to compare")
      }
      let bad = comparison.entries.filter(isPast)
      print(
        Format.table(
          [["array", "elements", "relative error", ""]]
            + comparison.entries.map { entry in
              [
                entry.name, "\(entry.elements)", String(format: "%.2e", entry.error),
                isPast(entry) ? "past tolerance" : "",
              ]
            }))
      for (what, entries) in [
        ("output", comparison.entries.filter { !$0.isGradient }),
        ("gradient", comparison.entries.filter(\.isGradient)),
      ] where !entries.isEmpty {
        let worst = entries.max { $0.error < $1.error }!
        print(
          "\(Format.counted(entries.count, what)), the largest error \(String(format: "%.2e", worst.error)) in \(worst.name)"
        )
      }
      if !bad.isEmpty { Foundation.exit(1) }
    }
  }

  private func isPast(_ entry: GoldenComparison.Entry) -> Bool {
    !(entry.error <= (entry.isGradient ? gradientTolerance : tolerance))
  }
}

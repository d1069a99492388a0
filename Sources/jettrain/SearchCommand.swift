import ArgumentParser
import CPUBackend
import Files
import Foundation
import MPI
import Models
import Reporting
import Search
import TokenStreams
import Tokenizers
import Training

extension Strategy: ExpressibleByArgument {}

struct Search: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "PostNAS: which layers keep full attention, and which linear block the others get.",
    subcommands: [Placement.self, Block.self])

  struct Placement: ParsableCommand {
    static let configuration = CommandConfiguration(
      abstract: "Search a trained supernet for the layers to keep, under a budget; also under mpirun.",
      discussion:
        "Train the supernet with `jettrain distill` (a configuration with supernet_mixer, model.full_layers). Writes "
        + "result.json and the student's config.json, and keeps evaluations.jsonl, so that a search that was killed goes on."
    )
    @Argument(help: "The supernet: its model folder, run folder or checkpoint.") var supernet: String
    @Option(help: "Layers of full attention to keep.") var full: Int
    @Option(help: "beam, greedy, uniform, random, evolution or exhaustive.") var strategy = Strategy.beam
    @OptionGroup var objectives: ObjectiveOptions
    @Option(help: "Partial placements that beam keeps.") var width = 3
    @Option(help: "Evaluations that random and evolution may ask for.") var evaluations = 32
    @Option(help: "The same seed gives the same search.") var seed: UInt64 = 1
    @Option(help: "Folder to write.") var output: String

    func run() {
      withWorld { world in
        let backend = CPUBackend(threads: Machine.threads(world))
        let model = try loadModel(supernet, backend: backend)
        let layers = model.layers.count
        guard model.configuration.supernetMixer != nil else {
          throw ModelError(path: supernet, reason: "is not a supernet: its config.json has no supernet_mixer")
        }
        guard (0...layers).contains(full), width > 0, evaluations > 0 else {
          throw JobError(.usage, "--full must be 0 to \(layers), --width and --evaluations above zero")
        }
        let reference = try objectives.teacher.map { try loadModel($0, backend: backend) }
        if world.isCoordinator { try createFolder(output) }
        try world.barrier()
        let (measures, weights) = try objectives.make(
          vocabulary: model.configuration.vocabularySize, tokenizerOf: supernet, hasTeacher: reference != nil,
          seed: seed)
        let result = try PlacementResult(
          supernet: model, teacher: reference, objectives: measures, weights: weights, strategy: strategy,
          settings: SearchSettings(full: full, layers: layers, width: width, evaluations: evaluations, seed: seed),
          cache: output + "/evaluations.jsonl", world: world, backend: backend)
        guard world.isCoordinator else { return }
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
        try writeDurably(encoder.encode(result) + Foundation.Data("\n".utf8), to: output + "/result.json")
        try writeDurably(result.configuration(of: model.configuration), to: output + "/config.json")
        try writeDurably(Foundation.Data(heatMap(result).utf8), to: output + "/importance.svg")
        print(Self.table(result))
        let scores = zip(result.objectives, result.scores).map { "\($0) \(String(format: "%.4f", $1))" }
        print(
          "\(strategy.rawValue): layers \(result.full) full; \(scores.joined(separator: ", ")); "
            + "\(result.evaluations) evaluations; \(output)/config.json")
      }
    }

    /// What each layer alone brings, by objective.
    private static func table(_ result: PlacementResult) -> String {
      let importance = result.importance
      let rows = result.alone.indices.map { layer in
        ["\(layer)"]
          + result.objectives.indices.flatMap { o in
            [String(format: "%.4f", result.alone[layer][o]), String(format: "%.0f %%", importance[layer][o] * 100)]
          } + [result.full.contains(layer) ? "full" : ""]
      }
      let none = ["none"] + result.none.flatMap { [String(format: "%.4f", $0), ""] } + [""]
      return Format.table(
        [["alone full"] + result.objectives.flatMap { [$0, "of the best"] } + ["found"], none] + rows)
    }
  }
}

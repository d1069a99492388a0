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
    abstract: "PostNAS: which layers keep full attention. (Of the paper's steps, placement is here.)",
    subcommands: [Placement.self])

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
    @Option(
      help: ArgumentHelp(
        "kl (needs --teacher), loss, recall (associative recall of random ids), or answers=FILE (JSON Lines with query, "
          + "choices, gold, or context, continuation); a weight may follow, as in kl:2. May be given several times.",
        valueName: "objective"))
    var objective: [String] = ["kl"]
    @Option(help: "Pairs of a sequence of recall.") var recallPairs = 16
    @Option(help: "The tokenizer of answers; default: the model's, else bytes.") var tokenizer: String?
    @Option(help: "The teacher.") var teacher: String?
    @OptionGroup var heldOut: HeldOut
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
        let reference = try teacher.map { try loadModel($0, backend: backend) }
        if world.isCoordinator { try createFolder(output) }
        try world.barrier()
        let (objectives, weights) = try makeObjectives(vocabulary: model.configuration.vocabularySize)
        let result = try PlacementResult(
          supernet: model, teacher: reference, objectives: objectives, weights: weights, strategy: strategy,
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

    private func makeObjectives(vocabulary: Int) throws -> ([Objective], [Double]) {
      var objectives: [Objective] = []
      var weights: [Double] = []
      for text in objective {
        // A weight is what follows the last colon, where that is a number.
        let parts = text.split(separator: ":")
        let weight = parts.count > 1 ? Double(parts[parts.count - 1]) : nil
        let name = weight == nil ? text : parts.dropLast().joined(separator: ":")
        guard weight ?? 1 > 0 else { throw JobError(.usage, "--objective \(text): weights are above zero") }
        weights.append(weight ?? 1)
        switch name {
        case "kl", "loss":
          guard name == "loss" || teacher != nil else { throw JobError(.usage, "--objective kl needs --teacher") }
          objectives.append(
            try Objective(heldOut: heldOut.plan(), sequences: heldOut.sequences, kl: name == "kl"))
        case "recall":
          objectives.append(
            try Objective(
              recallPairs: recallPairs, sequences: heldOut.sequences, vocabulary: vocabulary, seed: seed))
        case _ where name.hasPrefix("answers="):
          objectives.append(
            try Objective(
              answers: String(name.dropFirst(8)), limit: heldOut.sequences,
              tokenizer: makeTokenizer(tokenizer, of: supernet)))
        default:
          throw JobError(.usage, "--objective \(text): unknown (kl, loss, recall and answers=FILE are known)")
        }
      }
      return (objectives, weights)
    }
  }
}

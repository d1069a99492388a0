import ArgumentParser
import CPUBackend
import Files
import Foundation
import MPI
import Models
import Reporting
import Search
import TokenStreams
import Training

extension Strategy: ExpressibleByArgument {}
extension Objective: ExpressibleByArgument {}

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
    @Option(help: "kl (needs --teacher) or loss.") var objective = Objective.kl
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
        guard objective == .loss || teacher != nil else { throw JobError(.usage, "--objective kl needs --teacher") }
        let reference = try teacher.map { try loadModel($0, backend: backend) }
        if world.isCoordinator { try createFolder(output) }
        try world.barrier()
        let result = try PlacementResult(
          supernet: model, teacher: reference, objective: objective, plan: heldOut.plan(), sequences: heldOut.sequences,
          strategy: strategy,
          settings: SearchSettings(full: full, layers: layers, width: width, evaluations: evaluations, seed: seed),
          cache: output + "/evaluations.jsonl", world: world, backend: backend)
        guard world.isCoordinator else { return }
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys]
        try writeDurably(encoder.encode(result) + Foundation.Data("\n".utf8), to: output + "/result.json")
        try writeDurably(result.configuration(of: model.configuration), to: output + "/config.json")
        let rows = result.alone.enumerated().map { layer, score in
          [
            "\(layer)", String(format: "%.4f", score), String(format: "%+.4f", score - result.none),
            result.full.contains(layer) ? "full" : "",
          ]
        }
        print(Format.table([["layer", "\(objective.rawValue) with it alone full", "against none", "found"]] + rows))
        print(
          "\(strategy.rawValue): layers \(result.full) full, \(objective.rawValue) \(String(format: "%.4f", result.score)) "
            + "after \(result.evaluations) evaluations; none full \(String(format: "%.4f", result.none)); \(output)/config.json"
        )
      }
    }
  }
}

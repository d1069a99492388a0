import ArgumentParser
import CPUBackend
import Files
import Foundation
import MPI
import Models
import Reporting
import Search
import Training

extension Search {
  struct Block: ParsableCommand {
    static let configuration = CommandConfiguration(
      abstract: "Train each candidate block at a placement, on the same tokens from the same start, and compare them.",
      discussion:
        "Candidates are trained one after another on all ranks; what was trained before is not trained again. Writes "
        + "blocks.json, and rates.json with the measured speeds, which are reused when they are there.")
    @Option(help: "The job that trains a candidate (distill); its student is replaced.") var job = "Jobs/distill.yaml"
    @Option(name: .customLong("set"), help: "Override a key of the job.") var overrides: [String] = []
    @Option(help: "The placement: a config.json whose linear layers are replaced; default: the job's student.")
    var config: String?
    @Option(help: "Mixers, separated by commas.") var candidates = "jet,gdn,gla,deltanet,mamba2,retnet,rwkv7"
    @OptionGroup var objectives: ObjectiveOptions
    @Option(help: "Tokens in front when decoding is timed.") var decodeContext = 1024
    @Option(help: "Folder to write.") var output: String

    /// Training and inference in thousand tokens a second on H100s (arXiv 2508.15884, table 1; RECIPE section 6).
    private static let paper: [LayerType: (train: Int, decode: Int)] = [
      .rwkv7: (123, 2542), .retention: (269, 2535), .mamba2: (273, 3220), .gatedLinearAttention: (265, 3079),
      .deltaNet: (254, 2955), .gatedDeltaNet: (247, 2980), .jet: (233, 2885),
    ]

    func run() {
      withWorld { world in
        let mixers = try candidates.split(separator: ",").map { name in
          guard let type = LayerType(rawValue: String(name)), !type.isAttention else {
            throw JobError(
              .usage, "--candidates \(name): unknown; linear mixers are jet, gla, retnet, mamba2, deltanet, gdn, rwkv7")
          }
          return type
        }
        guard !mixers.isEmpty, Set(mixers).count == mixers.count, decodeContext > 0 else {
          throw JobError(.usage, "--candidates must name different mixers, --decode-context be above zero")
        }
        let job = try Job(.distill, path: job, overrides: overrides, ranks: world.size)
        let base = try ModelConfiguration(path: config ?? job.student)
        let backend = CPUBackend(threads: Machine.threads(world))
        let teacher = try (objectives.teacher ?? job.teacher).map { try loadModel($0, backend: backend) }
        let (measures, _) = try objectives.make(
          vocabulary: base.vocabularySize, tokenizerOf: job.teacher ?? job.student, hasTeacher: teacher != nil,
          seed: job.seed)
        if world.isCoordinator { try createFolder(output) }
        try world.barrier()
        var rates = try MeasuredRates(path: output + "/rates.json")
        var results: [(LayerType, BlockResult)] = []
        for mixer in mixers {
          let result = try BlockResult(
            mixer, of: base, job: job, folder: output, objectives: measures, teacher: teacher, rates: &rates,
            context: decodeContext, world: world, backend: backend)
          results.append((mixer, result))
          if world.isCoordinator { try rates.write(to: output + "/rates.json") }
        }
        guard world.isCoordinator else { return }
        results.sort { ($0.1.scores[0], $0.1.mixer) < ($1.1.scores[0], $1.1.mixer) }
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys]
        try writeDurably(encoder.encode(results.map(\.1)) + Foundation.Data("\n".utf8), to: output + "/blocks.json")
        let rows = results.map { type, result in
          [result.mixer] + result.scores.map { String(format: "%.4f", $0) } + [
            Format.count(result.trainTokensPerSecond), Format.count(result.decodeTokensPerSecond),
            Format.bytes(Double(result.cacheBytes)), Format.count(Double(result.parameters)),
            Self.paper[type].map { "\($0.train)K" } ?? "–", Self.paper[type].map { "\($0.decode)K" } ?? "–",
          ]
        }
        print(
          Format.table(
            [
              ["block"] + measures.map(\.name)
                + ["train tok/s", "decode tok/s", "cache", "parameters", "paper: train", "decode"]
            ] + rows))
      }
    }
  }
}

import ArgumentParser
import Checkpointing
import Evaluation
import Foundation
import Models
import Reporting
import Training

struct CheckpointCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "checkpoint", abstract: "List, inspect, verify, compare and export checkpoints.",
    subcommands: [List.self, Inspect.self, Verify.self, Diff.self, Export.self])

  struct List: ParsableCommand {
    static let configuration = CommandConfiguration(abstract: "The checkpoints of a run.")
    @Argument(help: "Run folder.") var runDir: String

    func run() {
      withoutWorld {
        let folder = RunFolder(runDir)
        guard !folder.steps.isEmpty else { throw CheckpointError(runDir, "holds no checkpoint") }
        var rows = [["step", "phase", "tokens", "ranks", "size", ""]]
        for step in folder.steps {
          do {
            let m = try CheckpointManifest(path: folder.checkpoint(step: step))
            let size = m.shards.reduce(0) { $0 + $1.bytes }
            rows.append([
              "\(step)", "\(m.phase)", Format.count(Double(m.tokens)), "\(m.worldSize)", Format.bytes(Double(size)),
              step == folder.latest ? "latest" : "",
            ])
          } catch { rows.append(["\(step)", "", "", "", "", "damaged: \(error)"]) }
        }
        print(Format.table(rows))
      }
    }
  }

  struct Inspect: ParsableCommand {
    static let configuration = CommandConfiguration(abstract: "What a checkpoint holds.")
    @Argument(help: "A checkpoint, or a run folder for its latest.") var path: String

    func run() {
      withoutWorld {
        let checkpoint = try Checkpoint(RunFolder.resolve(path))
        let m = checkpoint.manifest
        print(
          "\(checkpoint.path): step \(m.step), \(Format.counted(m.tokens, "token")), phase \(m.phase) step \(m.phaseStep), \(Format.counted(m.worldSize, "rank"))"
        )
        print(
          "kind \(m.identity.kind)  model \(m.identity.model.prefix(16))  plan \(m.identity.plans.map { $0.prefix(16) }.joined(separator: " "))"
        )
        for shard in m.shards { print("  \(shard.file)  \(shard.bytes) bytes  \(shard.sha256.prefix(16))") }
        for (key, count) in try checkpoint.keys() {
          print("  \(key.role) \(key.name)  \(Format.counted(count, "element")) from \(key.range?.lowerBound ?? 0)")
        }
      }
    }
  }

  struct Verify: ParsableCommand {
    static let configuration = CommandConfiguration(abstract: "Check size and SHA-256 of every file of a checkpoint.")
    @Argument(help: "A checkpoint, or a run folder for its latest.") var path: String

    func run() {
      withoutWorld {
        let checkpoint = try Checkpoint(RunFolder.resolve(path))
        try checkpoint.verify()
        print("\(checkpoint.path): \(Format.counted(checkpoint.manifest.shards.count, "shard")), all as written")
      }
    }
  }

  struct Diff: ParsableCommand {
    static let configuration = CommandConfiguration(
      abstract: "Compare two checkpoints array by array, whatever number of ranks saved them; exits 1 when they differ."
    )
    @Argument(help: "A checkpoint or run folder.") var first: String
    @Argument(help: "Another.") var second: String

    func run() {
      withoutWorld {
        let difference = try CheckpointDifference(
          Checkpoint(RunFolder.resolve(first)), Checkpoint(RunFolder.resolve(second)))
        for line in difference.lines { print(line) }
        let (count, arrays) = (difference.lines.count, difference.arrays)
        let all = Format.counted(arrays, "array")
        print(count == 0 ? "identical: \(all)" : "different: \(count) of \(all)")
        if count > 0 { Foundation.exit(1) }
      }
    }
  }

  struct Export: ParsableCommand {
    static let configuration = CommandConfiguration(
      abstract: "Write a model as a Hugging Face folder: sharded weights with index, configuration, tokenizer.")
    @Argument(help: "A checkpoint, a run folder for its latest, or a model folder.") var path: String
    @Option(help: "Folder to write.") var output: String
    @Option(help: "bfloat16, rounded to nearest even, or float32.") var dtype = WeightType.bfloat16
    @Option(help: "Most megabytes of one weight file.", transform: Whole.from(1, to: 1 << 24)) var shardMegabytes = 5000
    @Option(help: "Folder whose tokenizer files go along; default: that of the model it began from.")
    var tokenizer: String?

    func run() {
      withoutWorld {
        try refuseExisting(output)
        var clock = PhaseClock()
        if let tokenizer, !hasTokenizer(tokenizer) {
          throw JobError(.usage, "--tokenizer \(tokenizer): holds neither tokenizer.json nor vocab.json")
        }
        let model = try loadModel(path, backend: makeBackend())
        try model.checkFinite(at: path)
        let companions = tokenizer ?? companionFolder(of: path)
        try carryTokenizer(of: companions, to: output)
        let bytes = try ModelWriter(
          type: dtype.safetensors, shardBytes: shardMegabytes * 1_000_000, companions: companions
        ).write(model, to: output)
        clock.mark("export")
        print(
          "\(output): \(model.store.count) parameters as \(dtype), \(Format.bytes(Double(bytes))) in "
            + "\(Format.duration(clock.total)), peak memory \(Format.bytes(Double(Machine.peakMemory)))")
        print("\(output): \(model.configuration.loadingCode.description)")
        if !hasTokenizer(output) {
          FileHandle.standardError.write(
            Data("jettrain: note: there was no tokenizer to carry over; --tokenizer names its folder\n".utf8))
        }
      }
    }
  }
}

private func hasTokenizer(_ folder: String) -> Bool {
  ["tokenizer.json", "vocab.json"].contains { FileManager.default.fileExists(atPath: folder + "/" + $0) }
}

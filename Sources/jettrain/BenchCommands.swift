import ArgumentParser
import CPUBackend
import CUDABackend
import Checkpointing
import Files
import Foundation
import MPI
import Models
import NN
import Reporting
import Tensors
import TokenStreams
import Tokenizers
import Training

import func Fabric.makeFabric

struct Bench: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Measure this machine: one JSON line a figure, with the ceiling measured in the same process.",
    subcommands: [
      Step.self, Data.self, CheckpointBench.self, TokenizerBench.self, Decode.self, Mixers.self, Kernels.self,
    ])

  static func emit(_ fields: [String: Any]) throws { FileHandle.standardOutput.write(try jsonLine(fields)) }

  struct Step: ParsableCommand {
    static let configuration = CommandConfiguration(
      abstract: "Time training steps of every phase of a job, on random weights and tokens; also under mpirun.")
    @Option(help: "The job file.") var job: String
    @Option(name: .customLong("set"), help: "Override a key of the job.") var overrides: [String] = []
    @Option(help: "Timed steps; the median counts.", transform: Whole.from(1, to: Most.timedRuns)) var steps = 5
    @Flag(help: "Also print the time by op.") var profile = false
    @Option(
      help: ArgumentHelp(
        "Write a trace of host and device for ui.perfetto.dev; of several phases, FILE with the phase's name.",
        valueName: "file")) var trace: String?
    @Option(help: "Only the phase of this name.") var phase: String?
    @OptionGroup var device: DeviceOption

    func run() {
      withWorld { world in
        let job = try Job(.distill, path: job, overrides: overrides, ranks: world.size)
        let (studentShape, teacherShape) = try job.configurations()
        let names = job.phases.map(\.name)
        if let phase, !names.contains(phase) {
          throw JobError(.usage, "--phase \(phase): the phases of this job are \(names.joined(separator: ", "))")
        }
        for phase in job.phases where self.phase == nil || phase.name == self.phase {
          let backend = try device.backend(world, job: job.device)
          let teacher = teacherShape.map { shape in
            let model = HybridLM(shape)
            Bench.fill(model, seed: 1, on: backend)
            return model
          }
          let student = HybridLM(studentShape)
          if let teacher { try student.inherit(from: teacher) }
          Bench.fill(student, seed: 2, on: backend)
          let runner = StepRunner(
            student: student, teacher: teacher, phase: phase, world: world, fabric: try makeFabric(world, for: backend),
            backend: backend)
          let batches = runner.microBatches(of: phase.globalBatch).map { index in
            randomBatch(phase, vocabulary: studentShape.vocabularySize, seed: index)
          }
          let updates = PathUpdates.all(of: student)
          _ = try runner.run(batches, updates: updates, learningRate: 1e-5)
          var rate = Machine.matrixRate(backend)
          // Without overlap first, in the same process, so that what overlap hides can be told.
          var blockingLog = SpanLog()
          let blocking =
            world.size > 1 ? try measure(runner, batches, updates, overlaps: false, world, &blockingLog) : nil
          if profile || trace != nil { try startProfile(of: backend) }
          var log = SpanLog()
          let (seconds, exposed) = try measure(runner, batches, updates, overlaps: true, world, &log)
          let spans = try takeProfile(of: backend)
          if let trace, world.isCoordinator {
            let path = self.phase != nil || names.count == 1 ? trace : Self.name(trace, phase.name)
            let file = try Trace.file(
              log.spans + spans, process: "jettrain, \(job.name), \(phase.name), \(backend.deviceDescription)")
            try createFolder(Files.folder(of: path))
            try writeDurably(file, to: path)
          }
          rate = max(rate, Machine.matrixRate(backend)) * Double(world.size)
          let estimate = StepEstimate.phases(
            [phase], student: studentShape, teacher: phase.losses.needsTeacher ? teacherShape : nil, ranks: world.size,
            on: backend is CUDABackend ? .card : .cpu)[0]
          let operations =
            StepEstimate.modelOperations(
              of: phase, student: studentShape, teacher: phase.losses.needsTeacher ? teacherShape : nil
            ) * Double(phase.microBatches)
          guard world.isCoordinator else { continue }
          var fields: [String: Any] = [
            "bench": "step", "job": job.name, "phase": phase.name, "ranks": world.size,
            "device": backend.deviceDescription, "tokens_per_s": Double(phase.tokensPerStep) / seconds,
            "gflops": operations / seconds / 1e9, "sgemm_gflops": rate / 1e9,
            "mfu": operations / seconds / rate, "peak_memory": Machine.peakMemory,
            "peak_tensor_bytes": backend.peakBytes,
            "planned_memory": estimate.tensorBytes
              + (backend is CUDABackend ? 0 : Machine.baseMemory(threads: device.cores.count(world))),
          ]
          if let blocking {
            fields["step_s"] = seconds
            fields["step_without_overlap_s"] = blocking.seconds
            fields["exposed_s"] = exposed
            fields["exposed_without_overlap_s"] = blocking.exposed
            fields["hidden_share"] = 1 - exposed / blocking.exposed
          }
          try Bench.emit(fields)
          guard profile else { continue }
          let times = opTimes(spans)
          let total = times.reduce(0) { $0 + $1.seconds }
          let rows = times.map { name, time, launches in
            [
              name, String(format: "%.2f ms", time / Double(steps + 1) * 1e3),
              String(format: "%.1f %%", time / total * 100), "\(launches / (steps + 1))",
            ]
          }
          print(Format.table([["op", "a step", "share", "launches"]] + rows))
        }
      }
    }

    /// A file's name with that of a phase in front of its ending.
    private static func name(_ path: String, _ phase: String) -> String {
      let url = URL(fileURLWithPath: path)
      let stem = url.deletingPathExtension().path + "-" + phase
      return url.pathExtension.isEmpty ? stem : stem + "." + url.pathExtension
    }

    /// Medians over steps that follow each other: of a step, and of the communication in it that no computation hides.
    private func measure(
      _ runner: StepRunner, _ batches: [SequenceBatch], _ updates: [Int], overlaps: Bool, _ world: Communicator,
      _ log: inout SpanLog
    ) throws -> (seconds: Double, exposed: Double) {
      runner.overlaps = overlaps
      try runner.waitForParameters()
      try world.barrier()
      var (times, exposed): ([Double], [Double]) = ([], [])
      // What the first step's update sends, the second waits for.
      for step in 0...steps {
        let start = log.now
        var clock = PhaseClock()
        guard let result = try runner.run(batches, updates: updates, learningRate: 1e-5) else { continue }
        // The rank that comes last waits for the exchange alone, the others for it too.
        let waited = try world.allGather([result.seconds["reduce"]! + result.seconds["share"]!]).min()!
        clock.mark("step")
        log.add("step \(step)", .step, from: start)
        guard step > 0 else { continue }
        times.append(clock.total)
        exposed.append(waited)
      }
      try runner.waitForParameters()
      return (times.sorted()[times.count / 2], exposed.sorted()[times.count / 2])
    }

    private func randomBatch(_ phase: Phase, vocabulary: Int, seed: Int) -> SequenceBatch {
      var batch = SequenceBatch()
      var state = UInt64(seed + 1) &* 0x9E37_79B9_7F4A_7C15
      let count = phase.microBatch * phase.context
      batch.tokens = (0..<count).map { _ in
        state ^= state << 13
        state ^= state >> 7
        state ^= state << 17
        return Int32(state >> 33) % Int32(vocabulary)
      }
      batch.labels = Array(batch.tokens.dropFirst()) + [0]
      batch.segments = (0..<phase.microBatch).map { $0 * phase.context..<($0 + 1) * phase.context }
      batch.sequenceCount = phase.microBatch
      return batch
    }
  }

  struct Data: ParsableCommand {
    static let configuration = CommandConfiguration(
      abstract: "Decode a dataset on one core, and read sequences in a plan's order.")
    @Argument(help: "Folder of a dataset.") var folder: String
    @Option(help: "Tokens of a sequence.", transform: Whole.from(1, to: Most.context)) var context = 512
    @Option(help: "Seconds to measure.", transform: Real.above(0, to: Most.seconds)) var seconds = 2.0

    func run() {
      withoutWorld {
        let dataset = try Dataset(folder)
        var clock = PhaseClock()
        var decoded = 0
        repeat {
          for ordinal in dataset.manifest.shards.indices {
            let shard = try ShardReader(
              dataset.folder + "/" + dataset.manifest.shards[ordinal].file, codebook: dataset.codebook)
            for frame in 0..<shard.frameCount { decoded += try shard.frame(frame).count }
          }
          clock.mark("decode")
        } while clock.total < seconds
        let bytes = dataset.manifest.shards.reduce(0) { $0 + $1.bytes }
        let url = URL(fileURLWithPath: folder)
        let plan = try DataPlan(
          mix: Mix(of: url.lastPathComponent), root: url.deletingLastPathComponent().path, context: context, seed: 1,
          label: "bench")
        var loader = PhaseClock()
        var sequences = 0
        repeat {
          _ = try plan.read(sequences..<sequences + 16)
          sequences += 16
          loader.mark("read")
        } while loader.total < seconds
        try Bench.emit([
          "bench": "data", "decoded_tokens_per_s": Double(decoded) / clock.total,
          "loader_tokens_per_s": Double(sequences * context) / loader.total,
          "memory_bandwidth_bytes_per_s": Machine.copyRate(),
          "bits_per_token": Double(bytes) * 8 / Double(dataset.manifest.tokens),
        ])
      }
    }
  }

  struct CheckpointBench: ParsableCommand {
    static let configuration = CommandConfiguration(
      commandName: "checkpoint", abstract: "Save and verify random weights; the ceiling is a plain write with fsync.")
    @Option(help: "Folder on the disk to measure.") var folder = "Checkpoints"
    @Option(help: "Megabytes of weights and moments.", transform: Whole.from(1, to: 1 << 24)) var megabytes = 1024
    @Option(help: "Compression level of zstd.", transform: Whole.from(-7, to: 19)) var level = -1
    @OptionGroup var device: DeviceOption

    func run() {
      withoutWorld {
        // The weights and their snapshot.
        try refuse("--megabytes \(megabytes)", of: 2 * Double(megabytes) * 0x1p20)
        let backend = try device.backend(.cpu)
        let count = megabytes << 18
        let tensor = backend.empty([count])
        // Random mantissas, a few exponents, as weights have them, which do not compress; drawn once and repeated.
        tensor.fillAtRandom()
        backend.add(tensor, scale: -0.98, into: tensor)
        let path = folder + "/bench-\(getpid())"
        try createFolder(path)
        defer { try? FileManager.default.removeItem(atPath: path) }
        func plainWrite() throws -> Double {
          var clock = PhaseClock()
          let descriptor = open(path + "/plain", O_WRONLY | O_CREAT | O_TRUNC, 0o600)
          guard descriptor >= 0 else { throw FileError.system(path, "cannot be written") }
          try backend.read(tensor) { bytes in
            var rest = bytes
            while let address = rest.baseAddress, !rest.isEmpty {
              let written = write(descriptor, address, rest.count)
              guard written > 0 else { throw FileError.system(path, "cannot be written") }
              rest = UnsafeRawBufferPointer(rebasing: rest[written...])
            }
          }
          guard fsync(descriptor) == 0 else { throw FileError.system(path, "cannot be flushed") }
          close(descriptor)
          clock.mark("write")
          unlink(path + "/plain")
          return clock.total
        }
        var plain = try plainWrite()
        var clock = PhaseClock()
        let run = RunFolder(path)
        // As parameters and moments come: many arrays.
        let slices = stride(from: 0, to: count, by: 16 << 20).map { first in
          let part = tensor.elements(first..<min(first + 16 << 20, count))
          return StateSlice(
            ShardKey(.parameter, "bench.\(first)"), shape: part.shape, values: part, isTrained: true)
        }
        let save = try CheckpointSave(
          slices, step: 1, in: run, world: .alone, level: Int32(level), buffer: SnapshotBuffer()
        ) { shards in
          CheckpointManifest(
            step: 1, tokens: 0, phase: 0, phaseStep: 1, sequences: 0, worldSize: 1, spikes: .init(),
            identity: .init(kind: "bench", model: "", frozen: "", teacher: "", plans: []), job: [:], shards: shards)
        }
        let begun = save.stall
        let copied = save.waitForCopy()
        try save.complete()
        clock.mark("save")
        plain = min(plain, try plainWrite())
        let checkpoint = try Checkpoint(run.checkpoint(step: 1))
        try checkpoint.verify()
        clock.mark("verify")
        let size = checkpoint.manifest.shards.reduce(0) { $0 + $1.bytes }
        let bytes = Double(count * 4)
        try Bench.emit([
          "bench": "checkpoint", "save_bytes_per_s": bytes / clock.seconds["save"]!,
          "verify_bytes_per_s": bytes / clock.seconds["verify"]!, "plain_write_bytes_per_s": bytes / plain,
          "share": plain / clock.seconds["save"]!, "begin_s": begun, "copy_s": copied,
          "stall_s": save.stall, "device": backend.deviceDescription, "compressed_to": Double(size) / bytes,
        ])
      }
    }
  }

  struct TokenizerBench: ParsableCommand {
    static let configuration = CommandConfiguration(
      commandName: "tokenizer",
      abstract:
        "Encode text on one core, and one piece of a megabyte that cannot be cut; the ceiling is a copy of memory.")
    @Argument(help: "Text files.") var files: [String]
    @Option(help: "The tokenizer: a folder or tokenizer.json.") var tokenizer: String
    @Option(help: "Seconds to measure.", transform: Real.above(0, to: Most.seconds)) var seconds = 2.0

    func run() {
      withoutWorld {
        var opening = PhaseClock()
        let tokenizer = try makeTokenizer(tokenizer)
        opening.mark("open")
        let texts = try files.map { Array(try readFile($0)) }
        var (bytes, tokens) = (0, 0)
        var clock = PhaseClock()
        repeat {
          for text in texts {
            tokens += tokenizer.encode(text).count
            bytes += text.count
          }
          clock.mark("encode")
        } while clock.total < seconds
        var long = PhaseClock()
        let unbroken: [UInt8] = (0..<1 << 20).map { (i: Int) -> UInt8 in UInt8(97 + i * i % 23) }
        let pieces = tokenizer.encode(unbroken).count
        long.mark("encode")
        try Bench.emit([
          "bench": "tokenizer", "bytes_per_s": Double(bytes) / clock.total,
          "bytes_per_token": Double(bytes) / Double(tokens),
          "open_s": opening.total, "unbroken_megabyte_s": long.total, "unbroken_tokens": pieces,
          "memory_bandwidth_bytes_per_s": Machine.copyRate(),
        ])
      }
    }
  }
}

import CPUBackend
import Checkpointing
import Foundation
import MPI
import Models
import NN
import Optimizers
import Tensors
import TestSupport
import Testing
import TokenStreams
import Training

@Suite struct TrainingTests {
  /// The shapes of the paper's models give its parameter counts, exactly (RECIPE section 2).
  @Test(arguments: [
    ("jet-nemotron-2b", 1_964_806_208), ("jet-nemotron-4b", 3_960_424_768), ("qwen2.5-1.5b", 1_543_714_304),
    ("qwen2.5-3b", 3_085_938_688),
  ])
  func parameterCountsAreThePapers(name: String, count: Int) throws {
    let model = HybridLM(try ModelConfiguration(path: repository + "/Jobs/models/\(name).json"))
    #expect(model.store.count == count)
    let mixer = model.store.parameters.filter { $0.name.hasPrefix("model.layers.0.self_attn.") }.reduce(0) {
      $0 + $1.count
    }
    if name == "jet-nemotron-2b" { #expect(mixer == 23_052_568) }
    if name == "jet-nemotron-4b" { #expect(mixer == 43_073_824) }
  }

  /// The checkpoint in Checkpoints/golden, written by the first version: every later one must still read it.
  @Test func goldenCheckpointIsRead() throws {
    let checkpoint = try Checkpoint(RunFolder.resolve(repository + "/Checkpoints/golden"))
    try checkpoint.verify()
    #expect(checkpoint.manifest.step == 3 && checkpoint.manifest.worldSize == 2)
    let arrays = try checkpoint.assemble()
    let text = try String(contentsOfFile: repository + "/Checkpoints/golden/sums.txt", encoding: .utf8)
    let lines = text.split(separator: "\n").map { $0.split(separator: " ") }
    #expect(lines.count == arrays.count)
    for line in lines {
      let array = try #require(arrays[String(line[0])], "\(line[0]) is missing")
      // Bit patterns added up: every element counts, exactly.
      let sum = array.reduce(UInt64(0)) { $0 &+ UInt64($1.bitPattern) }
      #expect(String(sum) == line[2] && String(array.count) == line[1], "\(line[0])")
    }
  }

  private func job(_ text: String, kind: JobKind = .distill, ranks: Int = 1, set: [String] = []) throws -> Job {
    let path = FileManager.default.temporaryDirectory.appendingPathComponent("job-\(UUID()).yaml").path
    try Data(text.utf8).write(to: URL(fileURLWithPath: path))
    defer { try? FileManager.default.removeItem(atPath: path) }
    return try Job(kind, path: path, overrides: set, ranks: ranks)
  }

  private static let good = """
    model: {teacher: t, student: s}
    data: {root: d, mix: m}
    train: {tokens: 64K, context: 128, global_batch: 8, micro_batch: 2, lr: 1e-3}
    """

  @Test func jobsAreRead() throws {
    let read = try job(Self.good, ranks: 2, set: ["train.lr=3e-4", "train.losses.logits=2"])
    #expect(read.phases.count == 1 && read.phases[0].steps == 63)
    #expect(read.phases[0].schedule.peak == 3e-4 && read.phases[0].losses.logits == 2)
    #expect(read.phases[0].frozen == [.mlp, .embeddings])
  }

  /// Counts whose products would overflow, keys that are lists, numbers to base 60: refused, not believed.
  @Test func absurdJobsAreRefused() throws {
    for (setting, key) in [
      ("train.global_batch=4294967296", "global_batch"), ("train.context=9223372036854775807", "context"),
      ("train.tokens=9223372036854775807", "tokens"), ("train.warmup_steps=9223372036854775807", "warmup_steps"),
      ("train.tokens=0.0001K", "tokens"), ("checkpoints.compression_level=4294967296", "compression_level"),
      ("validation.every=99999999999999999999:60:60", "every"),
    ] {
      let error = #expect(throws: JobError.self) { try job(Self.good, set: [setting]) }
      #expect(error?.description.contains(key) == true, "\(setting): \(error?.description ?? "")")
    }
    for line in ["[a, b]: 1", "{a: 1}: 2", "? [x]\n: 3"] {
      let error = #expect(throws: JobError.self) { try job(Self.good + "\n" + line) }
      #expect(error?.description.contains("a key is a list or a mapping") == true, "\(error?.description ?? "")")
    }
    #expect(try job(Self.good, set: ["train.seed=9223372036854775807"]).seed == 9_223_372_036_854_775_807)
  }

  /// A checkpoint that claims what no run has.
  @Test func absurdManifestsAreRefused() throws {
    let folder = FileManager.default.temporaryDirectory.appendingPathComponent("checkpoint-\(UUID())").path
    try FileManager.default.copyItem(atPath: repository + "/Checkpoints/golden/step-00000003", toPath: folder)
    defer { try? FileManager.default.removeItem(atPath: folder) }
    let path = folder + "/manifest.json"
    let text = try String(contentsOfFile: path, encoding: .utf8)
    for (old, new) in [
      (#""bytes" : 77"#, #""bytes" : 9223372036854775807"#),
      (#""phaseStep" : 3"#, #""phaseStep" : 9223372036854775807"#),
      (#""worldSize" : 2"#, #""worldSize" : 0"#),
    ] {
      #expect(text.contains(old))
      try text.replacingOccurrences(of: old, with: new).write(toFile: path, atomically: true, encoding: .utf8)
      let error = #expect(throws: CheckpointError.self) { try Checkpoint(folder) }
      #expect(error?.description.contains("counts that no run has") == true, "\(error?.description ?? "")")
    }
  }

  @Test func allErrorsOfAJobAreReportedAtOnce() throws {
    do {
      _ = try job(
        """
        model: {teacher: t, studnet: s}
        data: {root: d, mix: m}
        train: {tokens: many, context: 128, global_batch: 7, micro_batch: 2, lr: -1, schedule: linear}
        """)
      Issue.record("a job full of errors was accepted")
    } catch let error as JobError {
      let text = error.description
      for part in [
        "model.student: is missing", "model.studnet: is not a key of this file; did you mean student?",
        "train.tokens: many is not a count", "train.micro_batch: 2 sequences do not divide",
        "train.lr: must be at least",
        "train.schedule: linear is not one of",
      ] { #expect(text.contains(part), "\(part) is missing from:\n\(text)") }
      #expect(error.kind == .usage)
    }
  }

  @Test func batchesMustDivide() throws {
    #expect(throws: JobError.self) { try job(Self.good, ranks: 3) }
    #expect(throws: JobError.self) { try job(Self.good, set: ["train.tokens=1000"]) }
    #expect(try job(Self.good, set: ["train.tokens=2048"]).totalSteps == 2)
  }

  @Test func shippedJobsAreValid() throws {
    for (kind, path) in [
      (JobKind.pretrain, "teacher"), (.distill, "distill"), (.finetune, "finetune"),
      (.distill, "jet-nemotron-2b/distill"),
      (.finetune, "jet-nemotron-2b/finetune"), (.distill, "jet-nemotron-4b/distill"),
      (.finetune, "jet-nemotron-4b/finetune"), (.distill, "bench/jet-mini"),
    ] {
      let read = try Job(
        kind, path: "\(repository)/Jobs/\(path).yaml", overrides: [], ranks: path.hasPrefix("bench") ? 1 : 2)
      _ = try Mix(read.mixName, folder: repository + "/Jobs/mixes")
    }
  }

  @Test func schedules() {
    let cosine = Schedule(shape: .cosine, peak: 1, floor: 0.1, warmupSteps: 10)
    #expect(abs(cosine.rate(step: 0, of: 110) - 0.1) < 1e-12 && cosine.rate(step: 9, of: 110) == 1)
    #expect(abs(cosine.rate(step: 60, of: 110) - 0.55) < 1e-12 && cosine.rate(step: 109, of: 110) < 0.101)
    let wsd = Schedule(shape: .wsd, peak: 1, floor: 0, warmupSteps: 0)
    #expect(wsd.rate(step: 79, of: 100) == 1 && abs(wsd.rate(step: 90, of: 100) - 0.5) < 1e-9)
  }

  /// AdamW against the textbook formulas in double precision, decay only where it belongs.
  @Test func adamWMatchesTheFormulas() {
    let backend = CPUBackend(threads: 2)
    let store = ParameterStore()
    let scope = ParameterScope(store)
    let matrix = scope.scope("matrix").parameter("weight", [7, 33], .normal(1))
    let vector = scope.parameter("vector", [65], .normal(1))
    for parameter in [matrix, vector] {
      parameter.value = backend.tensor(parameter.initialValues(seed: 1), parameter.shape)
    }
    let arena = Arena(store, backend: backend) { _ in true }
    let optimizer = AdamW(
      arena, slices: [0..<Arena.blockSize], settings: .init(beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weightDecay: 0.1))
    var expected = [matrix, vector].map { $0.value.toArray().map(Double.init) }
    var (m, v) = ([[Double]](repeating: [], count: 2), [[Double]](repeating: [], count: 2))
    for step in 1...5 {
      for (index, parameter) in [matrix, vector].enumerated() {
        let gradient = randomFloats(parameter.count, seed: UInt64(step * 2 + index))
        arena.beginBackward()
        parameter.value.slot!.accumulate(backend.tensor(gradient, parameter.shape))
        if m[index].isEmpty { (m[index], v[index]) = (gradient.map { _ in 0 }, gradient.map { _ in 0 }) }
        for i in gradient.indices {
          let g = Double(gradient[i]) * 0.5
          m[index][i] = 0.9 * m[index][i] + 0.1 * g
          v[index][i] = 0.95 * v[index][i] + 0.05 * g * g
          let update =
            m[index][i] / (1 - pow(0.9, Double(step)))
            / ((v[index][i] / (1 - pow(0.95, Double(step)))).squareRoot() + 1e-8)
          expected[index][i] -= 0.01 * update + (index == 0 ? 0.01 * 0.1 * expected[index][i] : 0)
        }
      }
      optimizer.update(slice: 0, step: step, learningRate: 0.01, gradientScale: 0.5)
    }
    for (index, parameter) in [matrix, vector].enumerated() {
      let error = relativeError(parameter.value.toArray(), expected[index].map(Float.init))
      print("adamW \(parameter.name): \(error)")
      #expect(error < 1e-6)
    }
  }

  /// A checkpoint between going back and the window that is passed over stands before it, one behind it after it.
  @Test func windowsArePassedOverWhereTheyAreReached() throws {
    var phase = try Job(.distill, path: "\(repository)/Jobs/distill.yaml", overrides: [], ranks: 1).phases[0]
    phase.globalBatch = 8
    phase.changes = [PhaseChange(step: 10, globalBatch: 16, mixName: nil)]
    var earlier = CheckpointManifest.SpikeState()
    earlier.passedOver = [[40, 64]]
    let spikes = SpikeGuard(SpikeGuard.Settings(), state: earlier)
    #expect(spikes.cursor(after: 4, of: phase) == 32)
    #expect(spikes.cursor(after: 5, of: phase) == 40)
    #expect(spikes.cursor(after: 6, of: phase) == 72)
    #expect(spikes.cursor(after: 12, of: phase) == 80 + 24 + 32)
    #expect(SpikeGuard(SpikeGuard.Settings()).cursor(after: 12, of: phase) == phase.sequences(before: 12))
    #expect(phase.sequences(before: 12) == 80 + 32 && phase.batch(at: 9) == 8 && phase.batch(at: 10) == 16)
  }

  /// The sum over micro-batches is one binary tree, however many ranks share it: here one rank against the tree itself.
  @Test(arguments: [1, 2, 4, 8, 5]) func gradientsAddUpInATree(count: Int) throws {
    let backend = CPUBackend(threads: 1)
    let store = ParameterStore()
    let parameter = ParameterScope(store).parameter("w", [100], .zeros)
    parameter.value = backend.zeros([100])
    let arena = Arena(store, backend: backend) { _ in true }
    let exchange = GradientExchange(arena, world: .alone)
    let gradients = (0..<count).map { randomFloats(100, seed: UInt64($0 + 1)).map { $0 * 1e3 + 1e-3 } }
    for (index, gradient) in gradients.enumerated() {
      arena.beginBackward()
      parameter.value.slot!.accumulate(backend.tensor(gradient, [100]))
      if index < count - 1 { exchange.add() }
    }
    try exchange.reduce()
    func tree(_ parts: [[Float]]) -> [Float] {
      guard parts.count > 1 else { return parts[0] }
      var half = 1
      while half * 2 < parts.count { half *= 2 }
      return zip(tree(Array(parts[..<half])), tree(Array(parts[half...]))).map(+)
    }
    #expect(Array(arena.gradients.toArray()[..<100]) == tree(gradients))
  }
}

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

  func job(_ text: String, kind: JobKind = .distill, ranks: Int = 1, set: [String] = []) throws -> Job {
    let path = FileManager.default.temporaryDirectory.appendingPathComponent("job-\(UUID()).yaml").path
    try Data(text.utf8).write(to: URL(fileURLWithPath: path))
    defer { try? FileManager.default.removeItem(atPath: path) }
    return try Job(kind, path: path, overrides: set, ranks: ranks)
  }

  static let good = """
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

  /// Keys that are lists or mappings, for which the parser of YAML would end the process, are a fault of the file.
  @Test(arguments: [
    "? {a: 1}\n: 2\n", "? [a]\n: 2\n", "phases: [{losses: {b: 1}:}]\n", "x: [{{a: b}: c}]\n", "&a [*a]: 3\n",
  ])
  func oddKeysOfYAMLAreRefused(text: String) {
    #expect { _ = try job(text) } throws: { error in
      (error as? JobError)?.kind == .usage && "\(error)".contains("is not YAML: ")
    }
  }

  /// Numbers that no run has are refused, not multiplied.
  @Test(arguments: [
    "train.tokens=9223372036854775807", "train.tokens=1e-9K", "train.tokens=99999999T", "train.context=4294967296",
    "train.global_batch=9223372036854775807", "checkpoints.compression_level=4294967296",
    "train.changes=[{from_step: 2147483648, global_batch: 8}]",
    "train.changes=[{from_step: 9, global_batch: 16}, {from_step: 9, global_batch: 8}]",
  ])
  func numbersThatNoRunHasAreRefused(set: String) throws {
    do {
      _ = try job(Self.good, set: [set])
      Issue.record("\(set) was accepted")
    } catch let error as JobError { #expect(error.kind == .usage, "\(error)") }
  }

  @Test func schedules() {
    let cosine = Schedule(shape: .cosine, peak: 1, floor: 0.1, warmupSteps: 10)
    #expect(abs(cosine.rate(step: 0, of: 110) - 0.1) < 1e-12 && cosine.rate(step: 9, of: 110) == 1)
    #expect(abs(cosine.rate(step: 60, of: 110) - 0.55) < 1e-12 && cosine.rate(step: 109, of: 110) < 0.101)
    let wsd = Schedule(shape: .wsd, peak: 1, floor: 0, warmupSteps: 0)
    #expect(wsd.rate(step: 79, of: 100) == 1 && abs(wsd.rate(step: 90, of: 100) - 0.5) < 1e-9)
  }

  /// AdamW against the textbook formulas in double precision, decay only where it belongs. In bfloat16 that is so of the
  /// masters, and the values of matrices are theirs, rounded.
  @Test(arguments: ComputePrecision.allCases) func adamWMatchesTheFormulas(precision: ComputePrecision) {
    let backend = CPUBackend(threads: 2)
    let store = ParameterStore()
    let scope = ParameterScope(store)
    let matrix = scope.scope("matrix").parameter("weight", [7, 33], .normal(1), kind: .matrix)
    let vector = scope.parameter("vector", [65], .normal(1))
    for parameter in [matrix, vector] {
      parameter.value = backend.tensor(parameter.initialValues(seed: 1), parameter.shape)
    }
    let arena = Arena(gathering: store, precision: precision, backend: backend) { _ in true }
    // Of the first block this rank owns a part that ends within the matrix.
    let slices =
      precision == .float32
      ? [0..<Arena.blockSize] : [0..<100, 100..<Arena.blockSize, Arena.blockSize..<2 * Arena.blockSize]
    let optimizer = AdamW(
      arena, slices: slices, settings: .init(beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weightDecay: 0.1))
    arena.begin()
    var expected = [matrix, vector].map { $0.initialValues(seed: 1).map(Double.init) }
    #expect(arena.blockCount == slices.count - (precision == .bfloat16 ? 1 : 0))
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
      for slice in slices.indices {
        optimizer.update(slice: slice, updates: [step], learningRate: 0.01, gradientScale: 0.5)
      }
    }
    func masters(_ entry: Arena.Entry) -> [Float] {
      optimizer.parts(of: entry.range).flatMap { optimizer.master($0.range, $0.local).toArray() }
    }
    for (index, entry) in arena.entries.enumerated() {
      let parameter = entry.parameter
      let error = relativeError(masters(entry), expected[index].map(Float.init))
      print("adamW \(parameter.name) in \(precision): \(error)")
      #expect(error < 1e-6)
      let isLowered = precision == .bfloat16 && parameter.isMatrix
      #expect(parameter.value.dtype == (isLowered ? .bfloat16 : .float32))
      #expect(
        parameter.value.toArray()
          == masters(entry).map { isLowered ? Float(bitPattern: UInt32(bfloat16(rounding: $0)) << 16) : $0 })
    }
    // What a checkpoint holds goes to masters and copies.
    let restored = randomFloats(matrix.count, seed: 77)
    restored.withUnsafeBufferPointer { optimizer.set(arena.entries[0].range, to: $0) }
    #expect(masters(arena.entries[0]) == restored)
    #expect(
      matrix.value.toArray()
        == restored.map { precision == .bfloat16 ? Float(bitPattern: UInt32(bfloat16(rounding: $0)) << 16) : $0 })
  }

  /// A step leaves the paths of a supernet that it does not draw as if they were absent: values, moments and the count of
  /// updates that corrects their bias.
  @Test func pathsThatAreNotDrawnRest() throws {
    let backend = CPUBackend(threads: 1)
    func parameters() -> (arena: Arena, values: [Parameter]) {
      let store = ParameterStore()
      let values = ["left", "right"].map {
        ParameterScope(store).scope($0).parameter("weight", [3, 5], .normal(1), kind: .matrix)
      }
      for parameter in values {
        parameter.value = backend.tensor(parameter.initialValues(seed: 1), parameter.shape)
      }
      return (Arena(store, backend: backend) { _ in true }, values)
    }
    let settings = AdamW.Settings(beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weightDecay: 0.1)
    func gradient(_ step: Int) -> Tensor { backend.tensor(randomFloats(15, seed: UInt64(step)), [3, 5]) }
    // Both paths take turns; each must end as if the steps of the other had not been.
    let turns = parameters()
    let optimizer = AdamW(turns.arena, slices: [0..<Arena.blockSize], settings: settings) {
      $0.name.hasPrefix("left") ? 0 : 1
    }
    var counts = [0, 0]
    for step in 1...6 {
      let drawn = step % 3 == 0 ? 1 : 0
      turns.arena.beginBackward()
      turns.values[drawn].value.slot!.accumulate(gradient(step))
      turns.arena.endBackward()
      counts[drawn] += 1
      optimizer.update(
        slice: 0, updates: counts.indices.map { $0 == drawn ? counts[$0] : 0 }, learningRate: 0.01, gradientScale: 1)
    }
    for (path, steps) in [[1, 2, 4, 5], [3, 6]].enumerated() {
      let alone = parameters()
      let optimizer = AdamW(alone.arena, slices: [0..<Arena.blockSize], settings: settings)
      for (index, step) in steps.enumerated() {
        alone.arena.beginBackward()
        alone.values[path].value.slot!.accumulate(gradient(step))
        alone.arena.endBackward()
        optimizer.update(slice: 0, updates: [index + 1], learningRate: 0.01, gradientScale: 1)
      }
      #expect(turns.values[path].value.toArray() == alone.values[path].value.toArray())
    }

    // Of a real supernet: each path counts the steps that drew it, also after a resume.
    let model = HybridLM(try ModelConfiguration(path: repository + "/Jobs/models/demo-supernet.json"))
    let sampling = PathSampling(fullLayers: 1, budgetShare: 0.5)
    var updates = PathUpdates(of: model, sampling, seed: 7)
    for step in 0..<40 {
      let now = updates.count(step)
      let path = sampling.path(step: step, layers: model.layers.count, seed: 7)
      for parameter in model.store.parameters {
        let parts = parameter.name.split(separator: ".")
        let isDrawn =
          parts.count < 4 || !["self_attn", "linear_attn"].contains(parts[3])
          || (path.role(of: Int(parts[2])!) == .linear) == (parts[3] == "linear_attn")
        #expect((now[PathUpdates.group(of: parameter, in: model)] > 0) == isDrawn, "\(parameter.name) at step \(step)")
      }
      var resumed = PathUpdates(of: model, sampling, seed: 7)
      resumed.replay(0..<step)
      #expect(resumed.count(step) == now && now[0] == step + 1)
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

  /// Micro-batches of a lane add up one by one, lanes in one binary tree, however many ranks share them: here one rank
  /// against the tree itself.
  @Test(arguments: [(1, 8), (2, 8), (3, 8), (4, 8), (8, 8), (5, 4), (13, 8), (32, 8), (32, 1), (7, 2)])
  func gradientsAddUpInLanes(count: Int, lanes: Int) throws {
    let backend = CPUBackend(threads: 1)
    let store = ParameterStore()
    let parameter = ParameterScope(store).parameter("w", [100], .zeros)
    parameter.value = backend.zeros([100])
    let arena = Arena(store, backend: backend) { _ in true }
    let exchange = GradientExchange(arena, world: .alone)
    let gradients = (0..<count).map { randomFloats(100, seed: UInt64($0 + 1)).map { $0 * 1e3 + 1e-3 } }
    let before = backend.liveBytes
    var most = 0
    for lane in 0..<lanes {
      let places = count * lane / lanes..<count * (lane + 1) / lanes
      if !places.isEmpty { exchange.beginLane() }
      for index in places {
        parameter.value.slot!.accumulate { destination, adds in
          let gradient = backend.tensor(gradients[index], [100])
          if adds {
            backend.add(gradient, scale: 1, into: destination)
          } else {
            backend.copy(gradient, into: destination)
          }
        }
      }
      if lane < lanes - 1 { exchange.endLane(isEmpty: places.isEmpty) }
      most = max(most, (backend.liveBytes - before) / (4 * Arena.blockSize))
    }
    try exchange.reduce()
    func tree(_ lanes: Range<Int>, of all: Int) -> [Float]? {
      guard lanes.count > 1 else {
        let places = count * lanes.lowerBound / all..<count * lanes.upperBound / all
        return places.dropFirst().reduce(places.first.map { gradients[$0] }) { sum, index in
          zip(sum!, gradients[index]).map(+)
        }
      }
      let middle = lanes.lowerBound + lanes.count / 2
      guard let left = tree(lanes.lowerBound..<middle, of: all) else { return tree(middle..<lanes.upperBound, of: all) }
      guard let right = tree(middle..<lanes.upperBound, of: all) else { return left }
      return zip(left, right).map(+)
    }
    #expect(Array(arena.gradients.toArray()[..<100]) == tree(0..<lanes, of: lanes))
    // However many micro-batches there are, no more sums wait than the tree of the lanes has levels.
    #expect(most <= lanes.trailingZeroBitCount, "\(most) sums wait")
  }

  /// What a job makes of a student depends on its phases, seed and data, and not on how often it saves, validates and logs.
  @Test func jobsAreKnownByWhatTheyMake() throws {
    let text = Self.good + "\nvalidation: {every: 5}\ncheckpoints: {every: 5}\n"
    let known = try job(text).identity([], teacher: "t")
    for same in [
      "validation.every=7", "checkpoints.every=9", "checkpoints.keep_last=9", "log_every=3", "run_dir=elsewhere",
    ] {
      #expect(try job(text, set: [same]).identity([], teacher: "t") == known, "\(same)")
    }
    for other in [
      "train.lr=2e-3", "train.tokens=128K", "train.context=64", "train.losses.logits=2", "train.seed=2", "train.clip=2",
      "train.freeze=[mlp]", "train.global_batch=16", "train.weight_decay=0.1", "model.init=random",
      "spikes.policy=skip", "train.compute=bfloat16",
    ] {
      #expect(try job(text, set: [other]).identity([], teacher: "t") != known, "\(other)")
    }
    #expect(try job(text).identity([], teacher: "u") != known)
  }

  // MARK: - Supernets whose mixers are aligned

  private func model(_ settings: String, type: String, seed: UInt64, _ backend: CPUBackend, of teacher: HybridLM? = nil)
    throws -> HybridLM
  {
    let json = """
      {"model_type": "\(type)", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
       "num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": true \(settings)}
      """
    let model = HybridLM(try ModelConfiguration(json: Data(json.utf8), path: "config.json"))
    if let teacher { try model.inherit(from: teacher) }
    model.initialize(seed: seed, backend: backend)
    return model
  }

  func supernetOfATeacher(_ backend: CPUBackend) throws -> (student: HybridLM, teacher: HybridLM) {
    let teacher = try model("", type: "qwen2", seed: 1, backend)
    // Attention that says something.
    for parameter in teacher.store.parameters where parameter.name.contains("self_attn") && parameter.isMatrix {
      parameter.value = backend.tensor(
        randomFloats(parameter.count, seed: UInt64(parameter.count)).map { $0 * 0.3 }, parameter.shape)
    }
    let student = try model(
      """
      , "layer_types": ["attn", "attn", "attn", "attn"], "supernet_mixer": "gla",
      "efficient_attention_config": {"gla": {"num_heads": 2, "head_dim": 16}, "swa": {"window_size": 6}}
      """, type: "jet_nemotron", seed: 2, backend, of: teacher)
    return (student, teacher)
  }

  static func batch(_ seed: UInt64, sequences: Int = 2, length: Int = 24) -> SequenceBatch {
    var random = RandomStream(seed: seed, name: "tokens")
    var batch = SequenceBatch()
    batch.tokens = (0..<sequences * length).map { _ in Int32(random.next() % 64) }
    batch.labels = batch.tokens.map { _ in -1 }
    batch.segments = (0..<sequences).map { $0 * length..<($0 + 1) * length }
    batch.sequenceCount = sequences
    return batch
  }

  /// Of a supernet the layers that the drawn path makes linear are compared with the teacher's attention: their linear paths
  /// have gradients, nothing else has.
  @Test func supernetsAlignTheLayersThatAreDrawnLinear() throws {
    let backend = CPUBackend(threads: 1)
    let (student, teacher) = try supernetOfATeacher(backend)
    let arena = Arena(student.store, backend: backend) { $0.name.contains("attn") }
    let losses = MicroBatchLosses(
      student: student, teacher: teacher, weights: LossWeights(mixerOutput: 1), checkpointing: false, backend: backend)
    let data = Self.batch(1)
    for (path, aligned) in [
      (SupernetPath(full: [1], sliding: [3]), [0, 2]), (SupernetPath(), [0, 1, 2, 3]),
      (SupernetPath(full: [0, 1, 2, 3]), []),
    ] {
      student.path = path
      arena.beginBackward()
      var told: [ModelPart] = []
      let stepSums = StepSums(microBatches: 1, on: backend)
      losses(
        data, gradientsOver: TokenCounts(labels: 0, tokens: data.tokens.count), into: stepSums.losses(of: 0),
        hasGradients: { told.append($0) })
      arena.endBackward()
      let sums = stepSums.readBack().losses[0]
      #expect((sums.mixerOutput > 0) == !aligned.isEmpty && told == aligned.map { .layer($0) })
      for entry in arena.entries {
        let gradient = arena.gradients.rows(entry.range).toArray()
        let layer = Int(entry.parameter.name.split(separator: ".")[2])!
        let isAligned = aligned.contains(layer) && entry.parameter.name.contains("linear_attn")
        #expect(gradient.contains { $0 != 0 } == isAligned, "\(path): \(entry.parameter.name)")
      }
      // The mean over aligned layers of each layer's own error.
      let alone = aligned.map { layer in
        student.path = SupernetPath(full: (0..<4).filter { $0 != layer })
        return losses.sums(of: [data])[0].mixerOutput
      }
      let mean = alone.isEmpty ? 0 : alone.reduce(0, +) / Double(alone.count)
      #expect(abs(sums.mixerOutput - mean) <= 1e-6 * mean)
    }
  }

  /// Steps on drawn paths bring every linear path nearer to the teacher's attention, and leave the rest alone.
  @Test func alignedSupernetsLearn() throws {
    let backend = CPUBackend(threads: 1)
    let (student, teacher) = try supernetOfATeacher(backend)
    let read = try job(
      Self.good,
      set: [
        "train.losses.mixer_output=1", "train.freeze=[mlp, embeddings, norms, attention]", "train.context=24",
        "train.global_batch=4", "train.lr=1e-2", "train.schedule=constant",
      ])
    let sampling = PathSampling(fullLayers: 1, slidingLayers: 1, budgetShare: 0.75)
    func aligned() -> [Double] {
      let losses = MicroBatchLosses(
        student: student, teacher: teacher, weights: read.phases[0].losses, checkpointing: false, backend: backend)
      return (0..<4).map { layer in
        student.path = SupernetPath(full: (0..<4).filter { $0 != layer })
        return losses.sums(of: [Self.batch(99)])[0].mixerOutput
      }
    }
    let frozen = student.store.parameters.filter { !$0.name.contains("linear_attn") }.map { $0.value.toArray() }
    let before = aligned()
    let runner = StepRunner(student: student, teacher: teacher, phase: read.phases[0], world: .alone, backend: backend)
    var updates = PathUpdates(of: student, sampling, seed: 1)
    for step in 0..<400 {
      student.path = sampling.path(step: step, layers: 4, seed: 1)
      let data = (0..<2).map { Self.batch(UInt64(step * 2 + $0)) }
      _ = try runner.run(data, updates: updates.count(step), learningRate: 1e-2)
    }
    try runner.settle()
    let after = aligned()
    print("aligned: \(zip(before, after).map { $1 / $0 })")
    #expect(zip(before, after).allSatisfy { $1 < 0.7 * $0 }, "\(before) \(after)")
    #expect(student.store.parameters.filter { !$0.name.contains("linear_attn") }.map { $0.value.toArray() } == frozen)
  }
}

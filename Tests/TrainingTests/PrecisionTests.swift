import CPUBackend
import Fabric
import Models
import NN
import Tensors
import TestSupport
import Testing
import TokenStreams
import Training

/// `train.compute`: bfloat16 matrices with float32 masters.
extension TrainingTests {
  /// In bfloat16 a rank holds 2 bytes of a matrix element in place of 4, and 4 more of those that it owns; the rest is as it
  /// was. The next phase begins from float32 again.
  @Test(arguments: [1, 4]) func planCountsThePrecision(ranks: Int) throws {
    let path = "\(repository)/Jobs/models/jet-mini.json"
    let configuration = try ModelConfiguration(path: path)
    func estimates(_ compute: String) throws -> [StepEstimate] {
      let read = try job(
        Self.good, kind: .pretrain, ranks: ranks,
        set: [
          "model.teacher=", "train.losses.cross_entropy=1", "train.compute=\(compute)",
          "phases=[{name: a, freeze: []}, {name: b, freeze: [embeddings]}]",
        ])
      return StepEstimate.phases(read.phases, student: configuration, teacher: nil, ranks: ranks)
    }
    let (wide, narrow) = (try estimates("float32"), try estimates("bfloat16"))
    let model = HybridLM(configuration)
    let matrices = model.store.parameters.filter(\.isMatrix)
    let trained = [matrices, matrices.filter { !$0.name.contains("embed") && !$0.name.contains("lm_head") }].map {
      $0.reduce(0) { $0 + $1.count }
    }
    for phase in 0..<2 {
      let saved = Double(wide[phase].stateBytes - narrow[phase].stateBytes)
      let expected = Double(trained[phase]) * (2 - 4 / Double(ranks))
      print("\(ranks) ranks, phase \(phase): \(saved) bytes less, by formula \(expected)")
      #expect(abs(saved - expected) < 0.02 * Double(4 * trained[phase]))
      #expect(wide[phase].trained == narrow[phase].trained && wide[phase].saveBytes > 0)
    }
  }

  /// On a card activations are bfloat16 where matrices train in it, on CPUs never; the state is the same on both.
  @Test func planCountsTheDevice() throws {
    let configuration = try ModelConfiguration(path: "\(repository)/Jobs/models/jet-mini.json")
    func read(_ compute: String) throws -> [Phase] {
      try job(
        Self.good, kind: .pretrain,
        set: ["model.teacher=", "train.losses.cross_entropy=1", "train.compute=\(compute)", "train.context=512"]
      ).phases
    }
    for compute in ["float32", "bfloat16"] {
      let phases = try read(compute)
      let kept = [ShapeBackend.Counted.cpu, .card].map {
        KeptBytes(phases[0], student: configuration, on: $0).total
      }
      let states = [ShapeBackend.Counted.cpu, .card].map {
        StepEstimate.phases(phases, student: configuration, teacher: nil, ranks: 1, on: $0)[0].stateBytes
      }
      print("\(compute): \(kept[0]) bytes a token on CPUs, \(kept[1]) on a card")
      #expect(states[0] == states[1])
      // What kernels of a card keep besides is theirs; half is what is left of activations.
      #expect(compute == "float32" ? kept[1] >= kept[0] : kept[1] < 0.75 * kept[0])
    }
  }

  /// In bfloat16 buckets are of one type, and the masters of all ranks make up float32 values again.
  @Test func raisedValuesAreTheMasters() throws {
    let backend = CPUBackend(threads: 1)
    let (student, teacher) = try supernetOfATeacher(backend)
    let read = try job(
      Self.good,
      set: [
        "train.losses.logits=1", "train.freeze=[]", "train.context=24", "train.global_batch=4", "train.lr=1e-3",
        "train.compute=bfloat16",
      ])
    let runner = StepRunner(
      student: student, teacher: teacher, phase: read.phases[0], world: .alone,
      fabric: MPIFabric(.alone, backend.companion()), backend: backend)
    for slice in runner.optimizer.slices {
      let sections = runner.arena.sections.filter { $0.range.overlaps(slice) }
      #expect(sections.count == 1 && slice.lowerBound % Arena.blockSize == 0, "\(slice)")
    }
    let batches = (0..<2).map { Self.batch(UInt64($0)) }
    student.path = SupernetPath(full: [0, 2])
    _ = try runner.run(batches, updates: PathUpdates.all(of: student), learningRate: 1e-3)
    let masters = runner.arena.entries.map { entry in
      runner.optimizer.parts(of: entry.range).flatMap { runner.optimizer.master($0.range, $0.local).toArray() }
    }
    #expect(runner.arena.entries.allSatisfy { ($0.parameter.value.dtype == .bfloat16) == $0.parameter.isMatrix })
    try runner.raise()
    for (entry, values) in zip(runner.arena.entries, masters) {
      #expect(entry.parameter.value.dtype == .float32 && entry.parameter.value.toArray() == values)
    }
    let low = masters.joined().count { $0.bitPattern & 0xFFFF != 0 }
    #expect(low > masters.joined().count / 2)
  }
}

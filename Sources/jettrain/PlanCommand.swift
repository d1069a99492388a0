import ArgumentParser
import CUDA
import CUDABackend
import Foundation
import Models
import Reporting
import Tensors
import TokenStreams
import Tokenizers
import Training

struct PlanCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "plan",
    abstract: "What a job will take, without MPI: parameters, memory, steps, checkpoint size, time.")

  @Option(help: "The job file.") var job: String
  @Option(help: "pretrain, distill, finetune or search; default: the job's kind.") var kind: String?
  @Option(help: "Ranks that will run it.", transform: Whole.from(1, to: Most.ranks)) var ranks = 1
  @Option(help: "Ranks on one host.", transform: Whole.from(1, to: Most.ranks)) var ranksPerHost: Int?
  @Option(name: .customLong("set"), help: "Override a key of the job.") var overrides: [String] = []
  @Option(
    help: "Measured tokens per second of all ranks; default: half of this machine's SGEMM rate.",
    transform: Real.above(0, to: 1e15)) var rate: Double?

  @Option(
    help: "Gigabytes of a rank, or of its card: names the cheapest recomputation with which each phase fits.",
    transform: Real.above(0, to: 1e6)) var memory: Double?
  @OptionGroup var device: DeviceOption

  /// Whether the run would be on cards, and the memory of the one that is here.
  private func card(_ job: Job) throws -> (isOne: Bool, memory: Int?) {
    switch try device.choice(job: job.device) {
    case .cpu: return (false, nil)
    // What is planned for need not be here.
    case .cuda(let index): return (true, try? Device(index ?? 0).memory)
    case .automatic:
      guard let count = try? Device.count(), count > 0 else { return (false, nil) }
      return (true, try? Device(0).memory)
    }
  }

  func run() {
    withoutWorld {
      let declared = try kind ?? Job.declaredKind(of: job)
      if declared == "search" { return try planSearch() }
      guard let kind = JobKind(rawValue: declared) else { throw JobError(.usage, "--kind \(declared): unknown") }
      let job = try Job(kind, path: job, overrides: overrides, ranks: ranks)
      let (student, teacher) = try job.configurations()
      if let teacher { try Self.check(student, of: job.student, against: teacher, of: job.teacher ?? "") }
      print(
        "job \(job.name) (\(kind.rawValue)): \(Format.count(Double(job.totalTokens))) tokens, \(Format.counted(job.totalSteps, "step")), \(Format.counted(ranks, "rank"))"
      )
      let local = min(ranks, ranksPerHost ?? ranks)
      let threads = max(1, Machine.cores / local)
      let matrixRate = Machine.matrixRate(makeBackend(threads: threads)) * Double(ranks)
      var rows = [
        [
          "phase", "steps", "batch", "context", "trained", "ops/token", "state/rank", "peak/rank", "checkpoint",
          "tok/s", "time",
        ]
      ]
      var total = 0.0
      let openShards =
        (try? job.mix(job.mixName)).map { DataPlan.readerBytes(mix: $0, root: job.dataRoot) }
        ?? ShardCache.defaultLimit
      let (isCard, cardMemory) = try card(job)
      let counted = isCard ? ShapeBackend.Counted.card : .cpu
      let estimates = StepEstimate.phases(
        job.phases, student: student, teacher: teacher, ranks: ranks, on: counted)
      if isCard { rows[0].insert("host/rank", at: 8) }
      for (phase, estimate) in zip(job.phases, estimates) {
        let perToken = estimate.operationsPerMicroBatch / Double(phase.microBatch * phase.context)
        let speed = rate ?? matrixRate * 0.5 / perToken
        let seconds = Double(phase.tokens) / speed
        total += seconds
        rows.append([
          phase.name, "\(phase.steps)", "\(phase.globalBatch)", "\(phase.context)",
          Format.count(Double(estimate.trained)), Format.count(perToken), Format.bytes(Double(estimate.stateBytes)),
          Format.bytes(
            Double(
              isCard ? estimate.tensorBytes + CUDABackend.baseBytes : estimate.peakBytes + held(openShards, threads))),
          Format.bytes(Double(estimate.trained) * 12), Format.count(speed), Format.duration(seconds),
        ])
        if isCard {
          rows[rows.count - 1].insert(
            Format.bytes(Double(estimate.saveBytes + CUDABackend.asideBytes + held(openShards, threads))), at: 8)
        }
        if phase == job.phases.first {
          print("student \(Format.count(Double(estimate.parameters))) parameters (\(estimate.parameters))")
        }
      }
      print(Format.table(rows))
      for phase in job.phases where phase.crossesLayers {
        let kept = KeptBytes(phase, student: student, on: counted)
        print(
          "\(phase.name) keeps \(Format.bytes(kept.total)) a token for backward (recompute \(phase.recompute)): "
            + kept.parts.filter { $0.bytes >= 1 }.map { "\($0.name) \(Format.bytes($0.bytes))" }
            .joined(separator: ", "))
        if phase.compute == .bfloat16 {
          let other = KeptBytes(phase, student: student, on: isCard ? .cpu : .card)
          print(
            isCard
              ? "  on CPUs, where activations are float32, \(Format.bytes(other.total))"
              : "  on a card, where activations are bfloat16, \(Format.bytes(other.total))")
        }
      }
      if isCard, let cardMemory { print("the card has \(Format.bytes(Double(cardMemory)))") }
      if let bytes = memory.map({ $0 * 1e9 }) ?? cardMemory.map(Double.init) {
        printFitting(
          job, student, teacher, bytes: bytes, counted,
          held: Double(isCard ? CUDABackend.baseBytes : held(openShards, threads)))
      }
      print("time \(Format.duration(total))")
      printAssumptions(job, rate: matrixRate / Double(ranks))
      try printData(of: job, student, teacher)
    }
  }

  /// What the figures rest on.
  ///
  /// - Parameter measured: operations a second of one rank's products here
  private func printAssumptions(_ job: Job, rate measured: Double) {
    print(
      rate == nil
        ? "assumed: every rank has a machine such as this one (\(Int(measured / 1e9)) GF/s measured) and makes half of that; --rate "
          + "gives measured tokens a second of all ranks"
        : "assumed: the given rate, at every phase alike")
    for (path, planned) in [(job.teacher, job.plannedTeacher), (job.student, job.plannedStudent)] {
      guard let path, let planned, !FileManager.default.fileExists(atPath: path) else { continue }
      print("assumed: \(path), which is not there yet, is as \(planned) says")
    }
  }

  /// The job's data, and what a run would refuse of them as far as they are here.
  ///
  /// - Throws: as a run would: data that would run out, ids without rows, another tokenizer
  private func printData(of job: Job, _ student: ModelConfiguration, _ teacher: ModelConfiguration?) throws {
    if job.tokenizer == "bytes" || FileManager.default.fileExists(atPath: job.tokenizer) {
      try Vocabulary(of: makeTokenizer(job.tokenizer)).check(fits: student, teacher: teacher)
    }
    let mix = try job.mix(job.mixName)
    var isComplete = true
    for source in mix.sources {
      let folder = job.dataRoot + "/" + source.name
      guard FileManager.default.fileExists(atPath: folder) else {
        isComplete = false
        print("source \(source.name): weight \(source.weight), not in \(job.dataRoot)")
        continue
      }
      let manifest = try Manifest(folder: folder)
      print(
        "source \(source.name): weight \(source.weight), \(Format.counted(manifest.shards.count, "shard")), "
          + "\(Format.count(Double(manifest.tokens))) tokens"
          + (manifest.standsInFor.map { ", a stand-in for \($0)" } ?? ""))
      try Vocabulary(of: manifest).check(fits: student, teacher: teacher)
    }
    if isComplete {
      _ = try job.dataPlans(student: student, teacher: teacher)
    } else {
      print("assumed: the sources that are not there hold enough")
    }
  }

  /// Bytes of host memory that a rank holds besides tensors.
  private func held(_ openShards: Int, _ threads: Int) -> Int { openShards + Machine.baseMemory(threads: threads) }

  /// The first way of ``LayerRecomputation/byCost`` that fits, of every phase.
  ///
  /// - Parameter held: bytes that a rank takes besides
  private func printFitting(
    _ job: Job, _ student: ModelConfiguration, _ teacher: ModelConfiguration?, bytes: Double,
    _ counted: ShapeBackend.Counted, held: Double
  ) {
    func taken(_ estimate: StepEstimate) -> Double {
      Double(counted == .card ? estimate.tensorBytes : estimate.peakBytes) + held
    }
    let ways = LayerRecomputation.byCost.map { way in
      let phases = job.phases.map { phase in
        var phase = phase
        phase.recompute = way
        return phase
      }
      return (way, StepEstimate.phases(phases, student: student, teacher: teacher, ranks: ranks, on: counted))
    }
    for (index, phase) in job.phases.enumerated() {
      let fitting = ways.first { taken($0.1[index]) <= bytes }
      print(
        fitting.map {
          "\(phase.name) fits with recompute \($0.0): \(Format.bytes(taken($0.1[index]))) a rank"
        } ?? "\(phase.name) does not fit: make micro_batch or context smaller, or let more ranks share the state")
    }
  }

  /// Refuses a student that is not of this teacher: layer by layer, and width by width.
  private static func check(
    _ student: ModelConfiguration, of path: String, against teacher: ModelConfiguration, of teacherPath: String
  ) throws {
    let pairs = [
      ("layers", student.layerTypes.count, teacher.layerTypes.count),
      ("channels", student.hiddenSize, teacher.hiddenSize),
      ("rows of the vocabulary", student.vocabularySize, teacher.vocabularySize),
    ]
    for (what, own, others) in pairs where own != others {
      throw JobError(.data, "\(path): has \(own) \(what), its teacher \(teacherPath) \(others): another model's")
    }
  }
}

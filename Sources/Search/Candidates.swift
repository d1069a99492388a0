import Checkpointing
import Evaluation
import Files
import Foundation
import Hashing
import MPI
import Models
import NN
import Tensors
import Training

/// A student that takes part in a comparison.
package struct Candidate: Sendable {
  package let name: String
  package let configuration: ModelConfiguration

  package init(name: String, configuration: ModelConfiguration) {
    (self.name, self.configuration) = (name, configuration)
  }
}

/// What a candidate cost and what it is worth.
package struct CandidateResult: Codable, Sendable {
  package let name: String
  package let parameters: Int
  package let cacheBytes: Int
  /// By objective, smaller is better.
  package let scores: [Double]
  package let trainTokensPerSecond: Double
  package let decodeTokensPerSecond: Double

  package init(
    name: String, parameters: Int, cacheBytes: Int, scores: [Double], trainTokensPerSecond: Double,
    decodeTokensPerSecond: Double
  ) {
    (self.name, self.parameters, self.cacheBytes, self.scores) = (name, parameters, cacheBytes, scores)
    (self.trainTokensPerSecond, self.decodeTokensPerSecond) = (trainTokensPerSecond, decodeTokensPerSecond)
  }
}

/// Trains candidates by one job, on the same tokens from the same start, and measures them. Runs that were cut short go on,
/// and those that are done are not trained again. A run's folder is named after all that decides what comes of it, so that
/// a changed job, teacher, data or configuration has another and never the weights of the old one.
package struct CandidateTrial {
  /// Its student and run folder are replaced.
  package let job: Job
  package let folder: String
  package let objectives: [Objective]
  package let teacher: HybridLM?
  /// Tokens in front when decoding is timed.
  package let decodeContext: Int
  package let stop: StopRequest
  package let world: Communicator
  package let backend: any Backend

  package init(
    job: Job, folder: String, objectives: [Objective], teacher: HybridLM?, decodeContext: Int, stop: StopRequest,
    world: Communicator, backend: any Backend
  ) {
    self.job = job
    self.folder = folder
    self.objectives = objectives
    self.teacher = teacher
    self.decodeContext = decodeContext
    self.stop = stop
    self.world = world
    self.backend = backend
  }

  /// Candidate of a trial, with what decides its run.
  private struct Entrant {
    let candidate: Candidate
    /// SHA-256 of the job, its data, its teacher's weights and the configuration.
    let identity: String
    let runFolder: String

    init(_ candidate: Candidate, job: String, folder: String) {
      self.candidate = candidate
      identity = sha256(job + " " + String(decoding: candidate.configuration.json, as: UTF8.self))
      runFolder = "\(folder)/candidates/\(candidate.name)-\(identity.prefix(8))"
    }
  }

  /// The results in the order of `candidates`, on every rank.
  package func run(_ candidates: [Candidate], rates: inout MeasuredRates) throws -> [CandidateResult] {
    let identity = try jobIdentity(candidates)
    let entrants = candidates.map { Entrant($0, job: identity, folder: folder) }
    try train(entrants)
    let scores = try score(entrants)
    let groupSize = world.size / groupCount(candidates.count)
    let context = job.phases.last?.context ?? 0
    var results: [CandidateResult] = []
    for (index, entrant) in entrants.enumerated() {
      let candidate = entrant.candidate
      let model = try HybridLM.load(entrant.runFolder + "/model", backend: backend)
      let machine = Machine.description(of: backend)
      let trains = MeasuredRates.Key(
        "train", candidate.name, identity: entrant.identity, context: context, ranks: groupSize, machine: machine)
      let decodes = MeasuredRates.Key(
        "decode", candidate.name, identity: sha256(candidate.configuration.json), context: decodeContext, ranks: 1,
        machine: machine)
      // Speeds are measured by one rank while the others wait.
      var speeds: [Double] = []
      try agree(world) {
        guard world.isCoordinator else { return }
        speeds = [
          try rates.rate(trains) { try Self.medianRate(entrant.runFolder + "/metrics.jsonl") },
          rates.rate(decodes) { decodeRate(model) },
        ]
      }
      let known = try world.broadcast(speeds.withUnsafeBytes(Array.init)).withUnsafeBytes {
        Array($0.bindMemory(to: Double.self))
      }
      results.append(
        CandidateResult(
          name: candidate.name, parameters: model.store.count, cacheBytes: model.cacheBytes(context: decodeContext),
          scores: scores[index], trainTokensPerSecond: known[0], decodeTokensPerSecond: known[1]))
    }
    return results
  }

  /// What the job makes of any candidate depends on this; the teacher's weights are hashed once, by the coordinator.
  private func jobIdentity(_ candidates: [Candidate]) throws -> String {
    var hash = ""
    var teacherConfiguration: ModelConfiguration?
    try agree(world) {
      teacherConfiguration = try job.teacher.map { try modelConfiguration(of: $0) }
      guard world.isCoordinator, let path = job.teacher else { return }
      hash = ModelSetup.hash(try loadModel(path, backend: backend))
    }
    hash = String(decoding: try world.broadcast(Array(hash.utf8)), as: UTF8.self)
    let plans = try job.dataPlans(student: candidates[0].configuration, teacher: teacherConfiguration)
    return job.identity(plans, teacher: "\(hash) \(teacherConfiguration.map { sha256($0.json) } ?? "")")
  }

  /// Groups into which the ranks are parted for so many candidates.
  private func groupCount(_ candidates: Int) -> Int {
    (1...world.size).last { $0 <= candidates && world.size % $0 == 0 } ?? 1
  }

  /// Groups of ranks take the candidates in turn. A run's bits do not depend on how many ranks share it.
  private func train(_ entrants: [Entrant]) throws {
    let groups = groupCount(entrants.count)
    let mine = world.rank / (world.size / groups)
    let group = try world.split(mine)
    var isStopped = false
    for (index, entrant) in entrants.enumerated() where index % groups == mine && !isStopped {
      var job = job
      job.runFolder = entrant.runFolder
      job.student = job.runFolder + "-config.json"
      try agree(group) {
        guard group.isCoordinator else { return }
        try createFolder(folder + "/candidates")
        try writeDurably(entrant.candidate.configuration.json, to: job.student)
      }
      let trainer = try Trainer(job, world: group, backend: backend, resume: .auto, isQuiet: !world.isCoordinator)
      if case .stopped = try trainer.train(stop: stop) { isStopped = true }
    }
    var stopped = [Int64(isStopped ? 1 : 0)]
    try world.sum(&stopped)
    if stopped[0] > 0 { throw Stopped() }
  }

  /// Scores of all candidates by objective; each is computed by one rank, so that they do not depend on how many there are.
  private func score(_ entrants: [Entrant]) throws -> [[Double]] {
    let width = objectives.count
    let rows = (entrants.count + world.size - 1) / world.size
    var mine = [Double](repeating: 0, count: rows * width)
    for (row, index) in stride(from: world.rank, to: entrants.count, by: world.size).enumerated() {
      let model = try HybridLM.load(entrants[index].runFolder + "/model", backend: backend)
      for (o, objective) in objectives.enumerated() {
        mine[row * width + o] = try objective.score(model, teacher: teacher, backend: backend)
      }
    }
    let all = try world.allGather(mine)
    return entrants.indices.map { index in
      let row = (index % world.size * rows + index / world.size) * width
      return Array(all[row..<row + width])
    }
  }

  private func decodeRate(_ model: HybridLM) -> Double {
    var plan = Throughput.Plan()
    plan.wholePrefill = 1
    plan.samples = 1
    plan.steps = 32
    return Throughput(model, context: decodeContext, batch: 1, plan: plan, bandwidth: 1, backend: backend).decode
  }

  private static func medianRate(_ path: String) throws -> Double {
    let rates = String(decoding: try readFile(path), as: UTF8.self).split(separator: "\n").compactMap { line in
      let object = try? JSONSerialization.jsonObject(with: Data(line.utf8)) as? [String: Any]
      return object?["tokens_per_s"] as? Double
    }.sorted()
    return rates.isEmpty ? 0 : rates[rates.count / 2]
  }
}

extension ModelConfiguration {
  /// The linear mixer of the first layer that has one, and its shape.
  package var linearShape: (mixer: LayerType, heads: Int, keySize: Int, valueSize: Int)? {
    guard let mixer = self.layerTypes.first(where: { !$0.isAttention }), let shape = architecture.state(of: mixer)
    else { return nil }
    return (mixer, shape.heads, shape.keySize, shape.valueSize)
  }

  /// The same model with another linear mixer in all its linear layers. A mixer whose shape the file does not give gets
  /// that of the mixer it replaces, as near as its kind allows.
  package func replacingLinear(with mixer: LayerType) throws -> ModelConfiguration {
    guard let old = linearShape else { throw Self.noLinearLayer }
    return try changing("candidate \(mixer.rawValue)") { architecture in
      if architecture.state(of: mixer) == nil {
        architecture.setState(of: mixer, Self.state(of: mixer, old.heads, old.keySize, old.valueSize))
      }
      architecture.layerTypes = architecture.layerTypes.map { $0.isAttention ? $0 : mixer }
    }
  }

  /// The same model with another shape of its linear mixer's state.
  package func reshapingLinear(heads: Int, keySize: Int, valueSize: Int) throws -> ModelConfiguration {
    guard let old = linearShape else { throw Self.noLinearLayer }
    return try changing("candidate \(keySize)/\(valueSize)/\(heads)") { architecture in
      architecture.setState(of: old.mixer, Self.state(of: old.mixer, heads, keySize, valueSize))
    }
  }

  private static var noLinearLayer: ModelError {
    ModelError(path: "config.json", reason: "has no linear layer that a candidate could replace")
  }

  private static func state(of mixer: LayerType, _ heads: Int, _ keys: Int, _ values: Int) -> HeadShape {
    if mixer == .rwkv7 { return rwkv7State(elements: heads * keys * values, size: keys * values) }
    return HeadShape(heads: heads, keySize: keys, valueSize: values)
  }

  /// Its keys and values are of one size d: of all heads × d × d that make a state of just as many elements the d nearest to
  /// the geometric mean of the sizes that it replaces; where there is none near, the nearest state that can be had.
  private static func rwkv7State(elements: Int, size: Int) -> HeadShape {
    func distance(_ d: Int) -> Double { Double(max(d * d, size)) / Double(min(d * d, size)) }
    let exact = (1...max(1, Int(Double(elements).squareRoot()))).filter { elements % ($0 * $0) == 0 }
    // Of two as near the larger, which has the fewer heads.
    if let d = exact.reversed().min(by: { distance($0) < distance($1) }), distance(d) <= 4 {
      return HeadShape(heads: elements / (d * d), keySize: d, valueSize: d)
    }
    let d = max(1, Int(Double(size).squareRoot().rounded()))
    return HeadShape(
      heads: max(1, Int((Double(elements) / Double(d * d)).rounded())), keySize: d, valueSize: d)
  }
}

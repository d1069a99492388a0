import CPUBackend
import Checkpointing
import Evaluation
import Files
import Foundation
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
}

/// Trains candidates by one job, on the same tokens from the same start, and measures them. Runs that were cut short go on,
/// and those that are done are not trained again.
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
  package let backend: CPUBackend

  package init(
    job: Job, folder: String, objectives: [Objective], teacher: HybridLM?, decodeContext: Int, stop: StopRequest,
    world: Communicator, backend: CPUBackend
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

  /// The results in the order of `candidates`, on every rank.
  package func run(_ candidates: [Candidate], rates: inout MeasuredRates) throws -> [CandidateResult] {
    try train(candidates)
    let scores = try score(candidates)
    var results: [CandidateResult] = []
    for (index, candidate) in candidates.enumerated() {
      let model = try HybridLM.load(runFolder(candidate) + "/model", backend: backend)
      // Speeds are measured by one rank while the others wait.
      var speeds: [Double] = []
      try agree(world) {
        guard world.isCoordinator else { return }
        speeds = [
          try rates.rate("train \(candidate.name)") { try Self.medianRate(runFolder(candidate) + "/metrics.jsonl") },
          rates.rate("decode \(candidate.name)") { decodeRate(model) },
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

  private func runFolder(_ candidate: Candidate) -> String { folder + "/" + candidate.name }

  /// Groups of ranks take the candidates in turn. A run's bits do not depend on how many ranks share it.
  private func train(_ candidates: [Candidate]) throws {
    let groups = (1...world.size).last { $0 <= candidates.count && world.size % $0 == 0 } ?? 1
    let mine = world.rank / (world.size / groups)
    let group = try world.split(mine)
    var isStopped = false
    for (index, candidate) in candidates.enumerated() where index % groups == mine && !isStopped {
      var job = job
      job.runFolder = runFolder(candidate)
      job.student = job.runFolder + "-config.json"
      try agree(group) {
        if group.isCoordinator { try writeDurably(candidate.configuration.json, to: job.student) }
      }
      let trainer = try Trainer(job, world: group, backend: backend, resume: .auto, isQuiet: !world.isCoordinator)
      if case .stopped = try trainer.train(stop: stop) { isStopped = true }
    }
    var stopped = [Int64(isStopped ? 1 : 0)]
    try world.sum(&stopped)
    if stopped[0] > 0 { throw Stopped() }
  }

  /// Scores of all candidates by objective; each is computed by one rank, so that they do not depend on how many there are.
  private func score(_ candidates: [Candidate]) throws -> [[Double]] {
    let width = objectives.count
    let rows = (candidates.count + world.size - 1) / world.size
    var mine = [Double](repeating: 0, count: rows * width)
    for (row, index) in stride(from: world.rank, to: candidates.count, by: world.size).enumerated() {
      let model = try HybridLM.load(runFolder(candidates[index]) + "/model", backend: backend)
      for (o, objective) in objectives.enumerated() {
        mine[row * width + o] = try objective.score(model, teacher: teacher, backend: backend)
      }
    }
    let all = try world.allGather(mine)
    return candidates.indices.map { index in
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
    guard let mixer = layerTypes.first(where: { !$0.isAttention }) else { return nil }
    let shape =
      mixer == .jet
      ? jet.map { ($0.heads, $0.keySize, $0.valueSize) }
      : linear[mixer].map { ($0.heads, $0.keySize, $0.valueSize) }
    return shape.map { (mixer, $0.0, $0.1, $0.2) }
  }

  /// The same model with another linear mixer in all its linear layers. A mixer whose shape the file does not give gets
  /// that of the mixer it replaces, as near as its kind allows.
  package func replacingLinear(with mixer: LayerType) throws -> ModelConfiguration {
    guard let old = linearShape else { throw Self.noLinearLayer }
    return try editingEfficient(name: mixer.rawValue) { efficient in
      guard efficient[mixer.rawValue] == nil else { return }
      efficient[mixer.rawValue] = Self.shape(of: mixer, old.heads, old.keySize, old.valueSize)
    } layers: {
      $0.isAttention ? $0 : mixer
    }
  }

  /// The same model with another shape of its linear mixer's state.
  package func reshapingLinear(heads: Int, keySize: Int, valueSize: Int) throws -> ModelConfiguration {
    guard let old = linearShape else { throw Self.noLinearLayer }
    return try editingEfficient(name: "\(keySize)/\(valueSize)/\(heads)") { efficient in
      var settings = efficient[old.mixer.rawValue] as? [String: Any] ?? [:]
      settings.merge(Self.shape(of: old.mixer, heads, keySize, valueSize)) { $1 }
      efficient[old.mixer.rawValue] = settings
    } layers: {
      $0
    }
  }

  private static var noLinearLayer: ModelError {
    ModelError(path: "config.json", reason: "has no linear layer that a candidate could replace")
  }

  private static func shape(of mixer: LayerType, _ heads: Int, _ keys: Int, _ values: Int) -> [String: Any] {
    switch mixer {
    case .mamba2: ["num_heads": heads, "head_dim": values, "state_size": keys]
    case .rwkv7: ["num_heads": heads, "head_dim": values]
    default: ["num_heads": heads, "head_dim": keys, "expand_v": Double(values) / Double(keys)]
    }
  }

  private func editingEfficient(
    name: String, _ edit: (inout [String: Any]) -> Void, layers: (LayerType) -> LayerType
  ) throws -> ModelConfiguration {
    guard var object = try JSONSerialization.jsonObject(with: json) as? [String: Any],
      var efficient = object["efficient_attention_config"] as? [String: Any]
    else { throw ModelError(path: "config.json", reason: "has no efficient_attention_config") }
    edit(&efficient)
    object["efficient_attention_config"] = efficient
    object["layer_types"] = layerTypes.map { layers($0).rawValue }
    return try ModelConfiguration(
      json: JSONSerialization.data(
        withJSONObject: object, options: [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]),
      path: "candidate \(name)")
  }
}

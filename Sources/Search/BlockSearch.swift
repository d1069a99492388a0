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

/// One candidate of the block selection: what it cost and what it is worth.
package struct BlockResult: Codable, Sendable {
  package let mixer: String
  package let parameters: Int
  package let cacheBytes: Int
  /// Scores by objective, smaller is better.
  package let scores: [Double]
  package let trainTokensPerSecond: Double
  package let decodeTokensPerSecond: Double
}

/// Rates that were measured once, apart from results, so that a search can be repeated exactly.
package struct MeasuredRates: Codable {
  private var rates: [String: Double] = [:]

  /// Reads `path`, where it is.
  package init(path: String) throws {
    guard FileManager.default.fileExists(atPath: path) else { return }
    guard let known = try? JSONDecoder().decode(MeasuredRates.self, from: readFile(path)) else {
      throw FileError(path, "is not a file of measured rates; remove it to measure again")
    }
    self = known
  }

  /// The rate of this name, measured when it is not known.
  package mutating func rate(_ name: String, measure: () throws -> Double) rethrows -> Double {
    if let known = rates[name] { return known }
    let rate = try measure()
    rates[name] = rate
    return rate
  }

  package func write(to path: String) throws {
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.prettyPrinted, .sortedKeys]
    try writeDurably(encoder.encode(self) + Data("\n".utf8), to: path)
  }
}

extension ModelConfiguration {
  /// The same model with another linear mixer in all its linear layers. A mixer whose shape the file does not give gets
  /// that of the mixer it replaces, as near as its kind allows.
  package func replacingLinear(with mixer: LayerType) throws -> ModelConfiguration {
    guard var object = try JSONSerialization.jsonObject(with: json) as? [String: Any],
      var efficient = object["efficient_attention_config"] as? [String: Any]
    else { throw ModelError(path: "config.json", reason: "has no efficient_attention_config") }
    guard let old = layerTypes.first(where: { !$0.isAttention }),
      let shape = old == .jet
        ? jet.map({ ($0.heads, $0.keySize, $0.valueSize) })
        : linear[old].map({ ($0.heads, $0.keySize, $0.valueSize) })
    else { throw ModelError(path: "config.json", reason: "has no linear layer that a candidate could replace") }
    if efficient[mixer.rawValue] == nil {
      let (heads, keys, values) = shape
      efficient[mixer.rawValue] =
        switch mixer {
        case .mamba2: ["num_heads": heads, "head_dim": values, "state_size": keys] as [String: Any]
        case .rwkv7: ["num_heads": heads, "head_dim": values]
        default: ["num_heads": heads, "head_dim": keys, "expand_v": Double(values) / Double(keys)]
        }
    }
    object["efficient_attention_config"] = efficient
    object["layer_types"] = layerTypes.map { $0.isAttention ? $0.rawValue : mixer.rawValue }
    return try ModelConfiguration(
      json: JSONSerialization.data(
        withJSONObject: object, options: [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]),
      path: "candidate \(mixer.rawValue)")
  }
}

extension BlockResult {
  /// Trains the candidate by `job`, whose student and run folder it replaces, and measures it. A run that was cut short goes
  /// on, and one that is done is not trained again.
  package init(
    _ mixer: LayerType, of base: ModelConfiguration, job: Job, folder: String, objectives: [Objective],
    teacher: HybridLM?, rates: inout MeasuredRates, context: Int, world: Communicator, backend: CPUBackend
  ) throws {
    let configuration = try base.replacingLinear(with: mixer)
    var job = job
    job.runFolder = folder + "/" + mixer.rawValue
    job.student = job.runFolder + "-config.json"
    try agree(world) {
      if world.isCoordinator { try writeDurably(configuration.json, to: job.student) }
    }
    _ = try Trainer(job, world: world, backend: backend, resume: .auto).train(stopStep: nil)
    let model = try HybridLM.load(job.runFolder + "/model", backend: backend)
    self.mixer = mixer.rawValue
    parameters = model.store.count
    cacheBytes = model.cacheBytes(context: context)
    // Objectives are shared out over the ranks, whole, so that the scores do not depend on how many there are.
    var mine = [Double](repeating: 0, count: objectives.count)
    for (index, objective) in objectives.enumerated() where index % world.size == world.rank {
      mine[index] = objective.score(model, teacher: teacher, backend: backend)
    }
    let all = try world.allGather(mine)
    scores = objectives.indices.map { all[$0 % world.size * objectives.count + $0] }
    trainTokensPerSecond = try rates.rate("train \(mixer.rawValue)") {
      try Self.medianRate(job.runFolder + "/metrics.jsonl")
    }
    decodeTokensPerSecond = rates.rate("decode \(mixer.rawValue)") {
      var plan = Throughput.Plan()
      plan.wholePrefill = 1
      plan.samples = 1
      return Throughput(model, context: context, batch: 1, plan: plan, bandwidth: 1, backend: backend).decode
    }
  }

  private static func medianRate(_ path: String) throws -> Double {
    let rates = String(decoding: try readFile(path), as: UTF8.self).split(separator: "\n").compactMap { line in
      let object = try? JSONSerialization.jsonObject(with: Data(line.utf8)) as? [String: Any]
      return object?["tokens_per_s"] as? Double
    }.sorted()
    return rates.isEmpty ? 0 : rates[rates.count / 2]
  }
}

import Foundation
import Hashing
import Models
import TokenStreams
import Tokenizers

/// What a job reads, looked at before anything is computed.
extension Job {
  /// The data plan of every phase.
  ///
  /// - Parameter checksFiles: whether to look at every shard; of many ranks one does
  /// - Throws: where a plan would run out of data, was built with another tokenizer than the job's, or has ids that the
  ///   models have no rows for
  package func dataPlans(student: ModelConfiguration, teacher: ModelConfiguration?, checksFiles: Bool = true)
    throws -> [DataPlan]
  {
    let tokenizer = try makeTokenizer(tokenizer)
    // Phases that read the same shards share what they have open.
    let openShards = ShardCache()
    return try phases.indices.map { index in
      let plan = try dataPlan(ofPhase: index, cache: openShards, checksFiles: checksFiles)
      try plan.checkSupply(sequences: phases[index].sequences(before: phases[index].steps))
      let manifest = plan.manifest
      guard tokenizer.hash == manifest.tokenizerHash else {
        throw JobError(
          .data,
          "dataset \(manifest.name) was built with tokenizer \(manifest.tokenizer) (\(manifest.tokenizerHash.prefix(12))), "
            + "the job says \(tokenizer.name) (\(tokenizer.hash.prefix(12)))")
      }
      try Vocabulary(of: manifest).check(fits: student, teacher: teacher)
      return plan
    }
  }

  /// Refuses a teacher that is not there, and models that the run itself would change.
  package func checkModels() throws {
    let run = URL(fileURLWithPath: runFolder).standardizedFileURL.path
    for (key, path) in [("model.teacher", teacher), ("model.student", student)] {
      guard let path, case let place = URL(fileURLWithPath: path).standardizedFileURL.path else { continue }
      if place == run || place.hasPrefix(run + "/") {
        throw JobError(
          .usage, "\(key) \(path): lies in the run's own folder \(runFolder): choose another --run-dir")
      }
    }
    guard let teacher, !namesModel(teacher) else { return }
    throw JobError(
      .data,
      "model.teacher \(teacher): there is no model folder, run folder or checkpoint; train one with `jettrain pretrain`, or give the folder of "
        + "a downloaded model")
  }

  /// Decides, beside the student's configuration, what this job makes of it: phases with their losses, budgets and contexts,
  /// seed, data and teacher. How often it saves, validates and logs does not.
  ///
  /// - Parameter teacher: SHA-256 of its weights
  package func identity(_ plans: [DataPlan], teacher: String) -> String {
    let data = plans.map { $0.hash(before: .max) }
    return sha256("\(kind) \(phases) seed \(seed) \(initialization) \(spikes) \(supernet as Any) \(data) \(teacher)")
  }
}

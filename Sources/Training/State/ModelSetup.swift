import Conversion
import Files
import Foundation
import Hashing
import Models
import NN
import Tensors

/// The models of a job: the student to be trained and, where losses or inheritance need it, its frozen teacher.
package struct ModelSetup {
  package let student: HybridLM
  package let teacher: HybridLM?
  /// What the student's layers could not take over from the teacher; empty where it did not begin from one.
  package let transferLosses: [TransferLoss]

  /// Loads and initialises what `job` names.
  package init(_ job: Job, backend: any Backend) throws {
    var losses: [TransferLoss] = []
    try job.checkModels()
    teacher = try job.teacher.map { try loadModel($0, backend: backend) }
    if job.kind == .finetune {
      guard namesModel(job.student) else {
        throw JobError(
          .data,
          "model.student \(job.student): there is no model folder, run folder or checkpoint; run `jettrain distill` first, or "
            + "set model.student")
      }
      student = try loadModel(job.student, backend: backend)
    } else {
      guard job.kind != .distill || teacher != nil else {
        throw JobError(.usage, "\(job.path): model.teacher is missing")
      }
      student = try Self.begin(
        ModelConfiguration(path: job.student), weights: job.student, teacher: job.kind == .distill ? teacher : nil,
        initialization: job.initialization, seed: job.seed, backend: backend
      ) { losses = $0 }
    }
    transferLosses = losses
  }

  /// The model that a run begins with: from the folder `weights` where that has some (what `convert` wrote), else made
  /// from the teacher, else from nothing.
  ///
  /// - Parameter report: is told what a student could not take over from its teacher
  package static func begin(
    _ configuration: ModelConfiguration, weights: String, teacher: HybridLM?, initialization: StudentInitialization,
    seed: UInt64, backend: any Backend, report: ([TransferLoss]) -> Void = { _ in }
  ) throws -> HybridLM {
    let names = ["model.safetensors", "model.safetensors.index.json"]
    if isGGUF(weights) || names.contains(where: { FileManager.default.fileExists(atPath: weights + "/" + $0) }) {
      return try HybridLM.load(weights, backend: backend)
    }
    guard let teacher else {
      let model = HybridLM(configuration)
      model.initialize(seed: seed, backend: backend)
      return model
    }
    let student = try Student(
      configuration, of: teacher, initialization: initialization, seed: seed, backend: backend)
    report(student.complete())
    return student.model
  }

  /// SHA-256 over names and values of the parameters that `isIncluded`.
  package static func hash(_ model: HybridLM, where isIncluded: (Parameter) -> Bool = { _ in true }) -> String {
    var hasher = SHA256()
    for parameter in model.store.parameters where isIncluded(parameter) {
      hasher.update(parameter.name)
      parameter.value.backend.read(parameter.value) { hasher.update($0) }
    }
    return hasher.finish()
  }
}

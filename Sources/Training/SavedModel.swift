import Checkpointing
import Foundation
import Models
import NN
import Tensors

/// A model by any path that names one: a model folder, a run folder, or a checkpoint in it.
package func loadModel(_ path: String, backend: any Backend) throws -> HybridLM {
  guard FileManager.default.fileExists(atPath: path) else {
    throw ModelError(path: path, reason: "there is no such model folder, run folder or checkpoint")
  }
  if FileManager.default.fileExists(atPath: path + "/config.json") {
    return try HybridLM.load(path, backend: backend)
  }
  return try loadModel(Checkpoint(RunFolder.resolve(path)), backend: backend)
}

/// The model of a checkpoint: what never trained comes from where the job took it, the rest from the shards.
package func loadModel(_ checkpoint: Checkpoint, backend: any Backend) throws -> HybridLM {
  let manifest = checkpoint.manifest
  let job = manifest.job
  let model: HybridLM
  if manifest.identity.kind == JobKind.finetune.rawValue {
    model = try HybridLM.load(job["student"] ?? "", backend: backend)
  } else {
    model = HybridLM(
      try ModelConfiguration(json: Data((job["config"] ?? "").utf8), path: checkpoint.path + "/manifest.json"))
    if manifest.identity.kind == JobKind.distill.rawValue {
      try model.inherit(from: HybridLM.load(job["teacher"] ?? "", backend: backend))
    }
    model.initialize(seed: UInt64(job["seed"] ?? "") ?? 0, backend: backend)
  }
  var restored: Set<String> = []
  try checkpoint.forEachPiece { role, name, start, count, read in
    guard role == "parameter" else { return }
    guard let parameter = model.store[name], start + count <= parameter.count else {
      throw CheckpointError(checkpoint.path, "holds \(name), which the model does not have")
    }
    // It may lie in a mapped file, or be shared with the teacher.
    if restored.insert(name).inserted { parameter.own(on: backend) }
    try read(parameter.value.floats + start)
  }
  guard ModelSetup.hash(model, where: { !restored.contains($0.name) }) == manifest.identity.frozen else {
    throw CheckpointError(
      checkpoint.path, "the weights it was trained upon have changed since (\(job["teacher"] ?? job["student"] ?? ""))")
  }
  return model
}

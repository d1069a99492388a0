import Foundation
import Models
import NN

/// A job as it was resolved from file, overrides and defaults: what decides the result of its run, and what a person may
/// turn while it goes on. A checkpoint keeps it, and a resume compares.
extension Job {
  /// Every setting by its key in docs/jobs.md, those of phases under `phases.N`.
  package var settings: [String: String] {
    var settings: [String: String] = [
      "kind": kind.rawValue, "model.teacher": teacher ?? "", "model.student": student,
      "model.init": initialization.rawValue,
      "data.root": dataRoot, "data.mix": mixName, "data.mixes": mixFolder, "data.tokenizer": tokenizer,
      "train.seed": "\(seed)", "validation.every": "\(validationEvery)",
      "validation.sequences": "\(validationSequences)",
      "checkpoints.every": "\(checkpointEvery)", "checkpoints.minutes": "\(checkpointMinutes)",
      "checkpoints.keep_last": "\(keepLast)", "checkpoints.keep_every": "\(keepEvery)",
      "checkpoints.compression_level": "\(compressionLevel)", "checkpoints.on_failure": onSaveFailure.rawValue,
      "checkpoints.gather": "\(gathersCheckpoints)", "spikes.policy": spikes.policy.rawValue,
      "spikes.factor": "\(spikes.factor)", "spikes.limit": "\(spikes.limit)", "watchdog.floor": "\(watchdogFloor)",
      "watchdog.replicas_every": "\(replicaCheckEvery)", "log_every": "\(logEvery)",
    ]
    if let supernet {
      settings["model.full_layers"] = "\(supernet.fullLayers)"
      settings["model.sliding_layers"] = "\(supernet.slidingLayers)"
      settings["model.budget_share"] = "\(supernet.budgetShare)"
    }
    for (index, phase) in phases.enumerated() {
      for (key, value) in phase.settings { settings["phases.\(index).\(key)"] = value }
    }
    return settings
  }

  /// What a checkpoint's manifest keeps of the job: for people, for export, and for the comparison at a resume.
  ///
  /// - Parameter kernels: that the matrix products used
  func manifestFields(student configuration: ModelConfiguration, kernels: String) throws -> [String: String] {
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
    return [
      "path": path, "text": text, "settings": String(decoding: try encoder.encode(settings), as: UTF8.self),
      "teacher": teacher ?? "", "student": student, "seed": String(seed), "init": initialization.rawValue,
      "config": String(decoding: configuration.json, as: UTF8.self), "matrix_kernels": kernels,
    ]
  }

  /// Compares this job with the one that the run had when it was saved at `position`.
  ///
  /// - Returns: what a person may turn and has, for the log
  /// - Throws: When it is another run now; with every setting that makes it so
  func changes(since saved: [String: String], at position: Position, checkpoint: String) throws -> [String] {
    let now = settings
    // Runs of before there was a choice computed in float32.
    let saved = Dictionary(
      uniqueKeysWithValues: now.keys.filter { $0.hasSuffix(".compute") }.map { ($0, ComputePrecision.float32.rawValue) }
    ).merging(saved) { $1 }
    var refused: [String] = []
    var accepted: [String] = []
    for key in Set(saved.keys).intersection(now.keys).sorted() where saved[key] != now[key] {
      let change = "\(key) was \(saved[key]!), is \(now[key]!)"
      if isFixed(key, at: position) { refused.append(change) } else { accepted.append(change) }
    }
    guard refused.isEmpty else {
      let isBatch = refused.contains { $0.contains(".global_batch ") }
      throw JobError(
        .data,
        "\(checkpoint) belongs to another run: \(refused.joined(separator: "; ")). Put that back"
          + (isBatch ? ", append what is to change to the phase's changes," : "") + " or choose another --run-dir")
    }
    return accepted
  }

  /// Whether a setting belongs to what a run at `position` is. What the hashes of models and data decide is left to them.
  private func isFixed(_ key: String, at position: Position) -> Bool {
    let parts = key.split(separator: ".").map(String.init)
    guard parts[0] == "phases", let phase = Int(parts[1]) else {
      return ["kind", "model.init", "model.full_layers", "model.sliding_layers", "model.budget_share", "train.seed"]
        .contains(key)
    }
    guard phase <= position.phase else { return false }
    switch parts[2] {
    case "lr", "min_lr", "recompute", "recompute_mlp": return false
    // Of the phase at hand the position says whether what was done still fits.
    case "tokens", "changes": return phase < position.phase
    default: return true
    }
  }
}

extension Phase {
  fileprivate var settings: [String: String] {
    [
      "name": name, "tokens": "\(tokens)", "context": "\(context)", "global_batch": "\(globalBatch)",
      "micro_batch": "\(microBatch)", "lanes": "\(lanes)", "compute": compute.rawValue,
      "losses.mixer_output": "\(losses.mixerOutput)",
      "losses.hidden": "\(losses.hidden)",
      "losses.logits": "\(losses.logits)", "losses.cross_entropy": "\(losses.crossEntropy)",
      "freeze": "[\(frozen.map(\.rawValue).sorted().joined(separator: ", "))]", "lr": "\(schedule.peak)",
      "min_lr": "\(schedule.floor)", "schedule": schedule.shape.rawValue, "warmup_steps": "\(schedule.warmupSteps)",
      "beta1": "\(adam.beta1)", "beta2": "\(adam.beta2)", "epsilon": "\(adam.epsilon)",
      "weight_decay": "\(adam.weightDecay)", "clip": "\(clip)", "recompute": recompute.mixer.rawValue,
      "recompute_mlp": recompute.mlp.rawValue,
      "changes": changes.map {
        "{from_step: \($0.step), global_batch: \($0.globalBatch ?? 0), mix: \($0.mixName ?? "")}"
      }
      .joined(separator: ", "),
    ]
  }
}

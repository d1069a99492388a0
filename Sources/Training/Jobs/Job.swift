import Conversion
import Models
import TokenStreams

/// What a job does to its model.
package enum JobKind: String, Sendable {
  /// A full-attention model from random weights: a demo's teacher, a baseline.
  case pretrain
  /// Stage 1: a hybrid learns from its teacher.
  case distill
  /// Stage 2: the full model learns from text.
  case finetune
}

/// What to do when a checkpoint cannot be written: the disk is full, or gone. The last state of a run must be saved
/// whatever the policy.
package enum SaveFailurePolicy: String, Sendable, CaseIterable {
  /// Try again at the next steps, three times, then go on.
  case retry
  /// Go on until the next save is due.
  case `continue`
  /// End the run.
  case fail
}

/// A job file, read and checked.
package struct Job: Sendable {
  package let kind: JobKind
  package let path: String
  /// The file with its overrides, as YAML.
  package let text: String
  package var name: String
  package var runFolder: String
  /// Folder of the teacher; needed by losses that compare with it.
  package var teacher: String?
  /// `config.json` for a model to be made, a model folder for one to go on with.
  package var student: String
  /// How a student's new layers begin.
  package var initialization: StudentInitialization
  /// How a supernet's paths are drawn; nil for other students.
  package var supernet: PathSampling?
  /// Configurations that `plan` uses where the folders above do not exist yet.
  package var plannedTeacher: String?
  package var plannedStudent: String?
  package var dataRoot: String
  package var mixName: String
  /// Whether the data are one dataset, `mixName` in `dataRoot`, without a mix file (`data.path`).
  package var readsOneDataset = false
  package var mixFolder: String
  package var tokenizer: String
  package var seed: UInt64
  /// What ranks compute on, as `--device` takes it; nil where the job leaves it open.
  package var device: String?
  package var phases: [Phase]
  package var validationEvery: Int
  package var validationSequences: Int
  package var checkpointEvery: Int
  /// Minutes after which a save is due, whatever the step; 0 for none.
  package var checkpointMinutes: Double
  package var keepLast: Int
  package var keepEvery: Int
  package var logEvery: Int
  package var compressionLevel: Int32
  package var onSaveFailure: SaveFailurePolicy
  package var spikes: SpikeGuard.Settings
  /// Whether hosts may keep their parts of a checkpoint to themselves until they have travelled to the coordinator's,
  /// since they do not share a file system.
  package var gathersCheckpoints: Bool
  /// Seconds that no phase of a step may be suspected of hanging; 0 for no watchdog.
  package var watchdogFloor: Double
  /// Steps between comparisons of the ranks' parameters; 0 for none.
  package var replicaCheckEvery: Int

  package var totalSteps: Int { phases.reduce(0) { $0 + $1.steps } }
  package var totalTokens: Int { phases.reduce(0) { $0 + $1.tokens } }

  /// The mix of that name; the dataset itself where the job names one.
  package func mix(_ name: String) throws -> Mix {
    readsOneDataset && name == mixName ? Mix(of: name) : try Mix(name, folder: mixFolder)
  }

  /// The order of data of phase `index`, through all changes of its mix.
  package func dataPlan(ofPhase index: Int, cache: ShardCache = ShardCache(), checksFiles: Bool = true)
    throws -> DataPlan
  {
    let phase = phases[index]
    func plan(_ mix: String, after previous: (plan: DataPlan, index: Int)?) throws -> DataPlan {
      try DataPlan(
        mix: self.mix(mix), root: dataRoot, context: phase.context, seed: seed, label: phase.name,
        after: previous, cache: cache, checksFiles: checksFiles)
    }
    return try phase.changes.reduce(plan(mixName, after: nil)) { before, change in
      try change.mixName.map { try plan($0, after: (before, phase.sequences(before: change.step))) } ?? before
    }
  }

  /// The phase of global step `step`, counted from 0, and the step in it.
  package func locate(_ step: Int) -> (phase: Int, step: Int) {
    var rest = step
    for (index, phase) in phases.enumerated() {
      if rest < phase.steps { return (index, rest) }
      rest -= phase.steps
    }
    return (phases.count, 0)
  }
}

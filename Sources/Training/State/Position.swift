import Checkpointing
import Reporting

/// Where a run stands between two steps.
package struct Position: Sendable, Equatable {
  /// Optimizer steps done, in all phases.
  package private(set) var step = 0
  /// Tokens that those steps read.
  package private(set) var tokens = 0
  /// The phase, counted from 0, and its steps done.
  package private(set) var phase = 0
  package private(set) var phaseStep = 0
  /// The next sequence of the phase's plan.
  package private(set) var sequences = 0

  package init() {}

  /// Where the run stood that `manifest` is of.
  package init(_ manifest: CheckpointManifest) {
    (step, tokens, phase) = (manifest.step, manifest.tokens, manifest.phase)
    (phaseStep, sequences) = (manifest.phaseStep, manifest.sequences)
  }

  /// A step that read `read` sequences of `context` tokens, up to the sequence `end`, was done.
  mutating func advance(reading read: Int, to end: Int, context: Int) {
    step += 1
    phaseStep += 1
    sequences = end
    tokens += read * context
  }

  /// The next phase begins.
  mutating func beginNextPhase() {
    phase += 1
    (phaseStep, sequences) = (0, 0)
  }

  /// Compares what is counted with what `phases` would have counted, skipped windows included.
  ///
  /// - Returns: What does not fit, as a sentence without its subject; nil when all does
  func fault(in phases: [Phase], spikes: SpikeGuard) -> String? {
    guard phases.indices.contains(phase) else {
      return "was saved in phase \(phase + 1), the job has \(phases.count)"
    }
    let now = phases[phase]
    guard phaseStep <= now.steps else {
      return
        "has done \(Format.counted(phaseStep, "step")) of phase \(now.name), to which the job now gives \(now.steps): put its tokens back"
    }
    let earlier = phases[..<phase].reduce((steps: 0, tokens: 0)) { ($0.steps + $1.steps, $0.tokens + $1.tokens) }
    guard step == earlier.steps + phaseStep else {
      return
        "had done \(Format.counted(step - phaseStep, "step")) before phase \(now.name), the job now gives \(earlier.steps): put the tokens "
        + "of the phases before it back"
    }
    let expected = spikes.cursor(after: phaseStep, of: now)
    guard sequences == expected, tokens == earlier.tokens + now.sequences(before: phaseStep) * now.context else {
      return
        "had read \(Format.counted(sequences, "sequence")) in \(Format.counted(phaseStep, "step")) of phase \(now.name), and "
        + "\(tokens) tokens in all; the job as "
        + "it is now would have read \(expected) and \(earlier.tokens + now.sequences(before: phaseStep) * now.context): put the "
        + "old global_batch back, and append what is to change to the phase's changes: [{from_step: \(phaseStep), "
        + "global_batch: …}]"
    }
    return nil
  }
}

import Checkpointing

/// Decides before every update whether its gradient is to be trusted. All ranks see the same numbers and decide alike, and
/// a run that resumes decides as the one before did, because what the decision depends on is in the checkpoint.
package struct SpikeGuard: Sendable {
  /// What to do about a loss or gradient that is not finite, or a gradient far larger than usual.
  package enum Policy: String, Sendable, CaseIterable {
    /// End the run, with nothing updated.
    case fail
    /// Leave the update out; after several in a row roll back to the newest checkpoint before them and skip their data.
    case skip
  }

  package struct Settings: Sendable, Equatable {
    package var policy = Policy.fail
    /// A gradient norm of so many times the usual one is a spike; 0 asks for finite numbers only.
    package var factor = 0.0
    /// Skips in a row after which the run rolls back.
    package var limit = 5

    package init() {}
  }

  private let settings: Settings
  /// What the next decision depends on; saved with every checkpoint.
  package private(set) var state: CheckpointManifest.SpikeState

  package init(_ settings: Settings, state: CheckpointManifest.SpikeState = .init()) {
    (self.settings, self.state) = (settings, state)
  }

  /// Whether to update, at this step with data from this sequence on; what is learned of the numbers is kept.
  package mutating func accepts(loss: Double, norm: Double, step: Int, sequence: Int) -> Bool {
    let isSpike = settings.factor > 0 && state.usualNorm > 0 && norm > settings.factor * state.usualNorm
    guard loss.isFinite, norm.isFinite, !isSpike else {
      if state.skips == 0 { (state.firstStep, state.firstSequence) = (step, sequence) }
      state.skips += 1
      return false
    }
    (state.skips, state.returns) = (0, 0)
    state.usualNorm = state.usualNorm == 0 ? norm : 0.95 * state.usualNorm + 0.05 * norm
    return true
  }

  /// Whether so many were left out that the run must roll back.
  package var isExhausted: Bool { state.skips >= settings.limit }

  /// The run went to `earlier`, a state before the skips; the window of their data, up to `end`, is skipped from now on.
  package mutating func rollBack(to earlier: CheckpointManifest.SpikeState, end: Int) {
    let (window, returns) = ([state.firstSequence, end], state.returns + 1)
    state = earlier
    state.skippedWindows.append(window)
    state.returns = returns
  }

  /// Where a step begins that would begin at `cursor`.
  package func begin(at cursor: Int, count: Int) -> Int {
    var cursor = cursor
    while let window = state.skippedWindows.first(where: { $0[0] < cursor + count && cursor < $0[1] }) {
      cursor = window[1]
    }
    return cursor
  }

  /// Where a phase stands after so many of its steps: windows are skipped where they are reached.
  package func cursor(after steps: Int, of phase: Phase) -> Int {
    guard !state.skippedWindows.isEmpty else { return phase.sequences(before: steps) }
    return (0..<steps).reduce(0) { cursor, step in
      let count = phase.batch(at: step)
      return begin(at: cursor, count: count) + count
    }
  }

  /// A new phase has its own data.
  package mutating func beginPhase() {
    state.skippedWindows = []
    state.skips = 0
  }
}

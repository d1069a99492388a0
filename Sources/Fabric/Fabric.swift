import Tensors

/// Carries tensors between the ranks of a world: transport alone. What is exchanged when, and what is done with it, is
/// decided above (`Training/Step/GradientExchange`).
///
/// Every rank must ask for the same exchanges in the same order. What is sent and received must stay where it is until the
/// transfer is done.
package protocol Fabric: AnyObject {
  /// What carries, for people.
  var description: String { get }

  /// Of the device whose tensors travel, for the thread that exchanges: a backend serves one thread.
  var backend: any Backend { get }

  /// Begins to send the elements `ranges[r]` of `send`, float32, to every rank r, and to receive from every rank what is
  /// meant for this one, end to end in the order of the ranks.
  ///
  /// - Parameters:
  ///   - received: `ranges.count` times the length of this rank's range
  ///   - ready: passes when `send` holds what is to be sent
  func allToAll(_ send: Tensor, _ ranges: [Range<Int>], into received: Tensor, after ready: any Event) throws
    -> any Transfer

  /// Begins to give every rank what the others own of `buffer`, float32 or bfloat16: rank r the elements `ranges[r]`.
  ///
  /// - Parameter ready: passes when `buffer` holds what this rank owns
  func allGather(_ buffer: Tensor, _ ranges: [Range<Int>], after ready: any Event) throws -> any Transfer

  /// Begins to find out whether any rank raises the flag.
  func any(_ flag: Flag) throws -> any Transfer
}

/// An exchange under way.
package protocol Transfer: AnyObject {
  /// Whether it has ended; lets it go on.
  func isDone() throws -> Bool
}

/// A flag of this rank that becomes that of any rank.
package final class Flag: @unchecked Sendable {
  let word: UnsafeMutablePointer<Int64>

  package init(_ isRaised: Bool) {
    word = .allocate(capacity: 1)
    word.initialize(to: isRaised ? 1 : 0)
  }

  deinit { word.deallocate() }

  /// To be read when no transfer of it is under way.
  package var isRaised: Bool { word.pointee > 0 }
}

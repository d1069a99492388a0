/// A device that trains and runs models: its memory, its kernels, and the tape that records what ops do with them.
///
/// Ops enqueue; storage may live elsewhere; no code outside a backend touches elements but through ``Memory``'s copies.
package protocol Backend: Memory, Kernels, FusedKernels {
  /// The tape that records the ops now running; nil when no gradient is asked.
  var tape: Tape? { get set }
  /// What computes, in a few words: `2 threads`.
  var deviceDescription: String { get }
  /// What decides the last bits of its results beside the program and its inputs, for example the kernels that a library
  /// chose for this processor.
  var kernelIdentity: String { get }
  /// Float multiply-adds times two that this backend was asked for since it began.
  var operations: Double { get }
  /// Whether its kernels read and write columns of wider rows in place (``Tensor/columns(_:)``), where `Kernels` and
  /// `FusedKernels` say that an argument may be such a view. Others are given copies.
  var takesColumnViews: Bool { get }
  /// The type of the residual stream, and so of all that is made of it. bfloat16 is asked for where matrices train in
  /// bfloat16; a device whose kernels want float32 stays with that.
  var activationType: DType { get set }
  /// Rows of logits over so large a vocabulary that are in memory at a time.
  func vocabularyRows(_ vocabulary: Int) -> Int
  /// Another backend on the same device, for what a second thread asks of it: a backend serves one thread.
  func companion() -> any Backend
  /// Tokens of prompts that are read in one pass: enough to keep the device busy, few enough for its memory.
  var promptTokens: Int { get }
  /// Work that is done again and again on the same tensors: all that changes from run to run lies in their elements. A device
  /// may record what `body` enqueues and repeat it, with the memory of what `body` makes, without running `body`.
  func routine(_ body: @escaping () -> Void) -> any Routine
}

/// Work that is asked for again and again (``Backend/routine(_:)``).
package protocol Routine: AnyObject {
  /// Enqueues the work once more.
  func run()
}

/// The routine of backends that record nothing.
private final class RepeatedCall: Routine {
  private let body: () -> Void

  init(_ body: @escaping () -> Void) { self.body = body }
  func run() { body() }
}

extension Backend {
  package var activationType: DType {
    get { .float32 }
    set {}
  }

  /// About 8 MB of logits, but enough rows that the gradient of the head, as large as itself, is not read and written for a
  /// few.
  package func vocabularyRows(_ vocabulary: Int) -> Int { max(512, (1 << 21) / vocabulary) }

  package var takesColumnViews: Bool { false }

  package var promptTokens: Int { 512 }

  package func routine(_ body: @escaping () -> Void) -> any Routine { RepeatedCall(body) }

  /// A tensor of zeros.
  package func zeros(_ shape: [Int], _ dtype: DType = .float32) -> Tensor { filled(shape, with: 0, dtype) }

  /// A tensor whose elements are all `value`.
  package func filled(_ shape: [Int], with value: Float, _ dtype: DType = .float32) -> Tensor {
    let tensor = empty(shape, dtype)
    fill(tensor, with: value)
    return tensor
  }
}

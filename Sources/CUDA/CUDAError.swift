/// What can go wrong with a card or its libraries: one line that says what failed, why, and what helps.
package struct CUDAError: Error, CustomStringConvertible {
  package enum Kind: Sendable {
    /// No library, driver or card where one was asked for.
    case missing
    /// The card, its driver or a library refused or failed.
    case fault
    /// More memory was asked for than the card has: the same on every card of its kind.
    case memory
    /// A kernel's source does not compile: a fault of this program.
    case compilation
  }

  package let kind: Kind

  /// Of a process that ends with it: too much memory is a mistake of whoever asked, which no other host mends.
  package var exitCode: Int32 {
    switch kind {
    case .missing, .fault: 69
    case .memory: 64
    case .compilation: 70
    }
  }
  package let description: String

  package init(_ kind: Kind, _ description: String) {
    self.kind = kind
    self.description = description
  }
}

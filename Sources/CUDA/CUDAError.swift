/// What can go wrong with a card or its libraries: one line that says what failed, why, and what helps.
package struct CUDAError: Error, CustomStringConvertible {
  package enum Kind: Sendable {
    /// No library, driver or card where one was asked for.
    case missing
    /// The card, its driver or a library refused or failed.
    case fault
    /// A kernel's source does not compile: a fault of this program.
    case compilation
  }

  package let kind: Kind
  package let description: String

  package init(_ kind: Kind, _ description: String) {
    self.kind = kind
    self.description = description
  }
}

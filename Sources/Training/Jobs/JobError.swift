/// What is wrong with a job, its data or its state; one line for each fault.
package struct JobError: Error, CustomStringConvertible {
  /// What a command exits with (docs/design.md, section 7).
  package enum Kind: Sendable { case usage, data, diverged }

  package let kind: Kind
  package let reasons: [String]

  package init(_ kind: Kind, _ reasons: String...) {
    self.kind = kind
    self.reasons = reasons
  }

  package init(_ kind: Kind, reasons: [String]) {
    self.kind = kind
    self.reasons = reasons
  }

  package var description: String { reasons.joined(separator: "\n") }
}

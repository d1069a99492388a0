/// A model that cannot be fetched, and why.
package struct FetchError: Error, CustomStringConvertible {
  package enum Kind: Sendable {
    /// What was asked for does not exist, or is not what it says.
    case content
    /// A program is missing, or the network or the disk failed.
    case system
  }

  package let what: String
  package let reason: String
  package let kind: Kind
  package var description: String { "\(what): \(reason)" }

  init(_ what: String, _ reason: String, kind: Kind = .content) {
    (self.what, self.reason, self.kind) = (what, reason, kind)
  }
}

import Foundation

/// A file that cannot be read, written or trusted: which, why, and what helps.
package struct FileError: Error, CustomStringConvertible {
  /// Whether the content is wrong or the system refused.
  package enum Kind: Sendable { case content, system }

  package let path: String
  package let reason: String
  package let kind: Kind

  package init(_ path: String, _ reason: String, kind: Kind = .content) {
    self.path = path
    self.reason = reason
    self.kind = kind
  }

  /// The failure that `errno` names.
  package static func system(_ path: String, _ operation: String) -> FileError {
    FileError(path, "\(operation): \(String(cString: strerror(errno)))", kind: .system)
  }

  package var description: String { "\(path): \(reason)" }
}

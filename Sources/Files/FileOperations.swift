import Synchronization

/// What this process has asked of its file systems since it began: what a thousand ranks ask of one together decides
/// whether it holds (docs/reliability.md, A thousand ranks).
package struct FileOperations: Sendable, Equatable {
  /// Files and folders opened.
  package var opens = 0
  /// Looks at whether and how a file is there.
  package var looks = 0
  /// Flushes of files and folders, and renames.
  package var syncs = 0
  package var bytesRead = 0
  package var bytesWritten = 0

  package init() {}

  private static let opens = Atomic(0)
  private static let looks = Atomic(0)
  private static let syncs = Atomic(0)
  private static let bytesRead = Atomic(0)
  private static let bytesWritten = Atomic(0)

  /// What there was until now.
  package static var sinceStart: FileOperations {
    var all = FileOperations()
    all.opens = opens.load(ordering: .relaxed)
    all.looks = looks.load(ordering: .relaxed)
    all.syncs = syncs.load(ordering: .relaxed)
    all.bytesRead = bytesRead.load(ordering: .relaxed)
    all.bytesWritten = bytesWritten.load(ordering: .relaxed)
    return all
  }

  package static func opened() { opens.add(1, ordering: .relaxed) }
  package static func looked() { looks.add(1, ordering: .relaxed) }
  package static func synced() { syncs.add(1, ordering: .relaxed) }
  package static func read(_ bytes: Int) { bytesRead.add(bytes, ordering: .relaxed) }
  package static func wrote(_ bytes: Int) { bytesWritten.add(bytes, ordering: .relaxed) }
}

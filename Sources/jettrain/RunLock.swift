import Checkpointing
import Files
import MPI

/// Keeps the folder of a search to one program, as a run keeps its own.
final class RunLock {
  private var lock: FolderLock?

  /// All ranks call it; the coordinator holds the lock.
  init(_ folder: String, _ world: Communicator) throws {
    try agree(world) {
      guard world.isCoordinator else { return }
      do {
        try createFolder(folder)
        lock = try FolderLock(folder, remedy: "wait for it, stop it, or choose another --run-dir")
      } catch let error as FileError where error.kind == .system {
        throw FileError(error.path, error.reason + "; choose another --run-dir", kind: .system)
      }
    }
  }

  func giveBack() { lock = nil }
}

import Foundation
import Hashing

/// A file that appears whole or not at all: written under a temporary name, hashed on the way, flushed to disk and
/// renamed by ``finish()``. One that is never finished leaves nothing behind but its temporary file.
///
/// One thread hashes and another writes, so that the caller can go on with the next piece.
package final class DurableFile {
  package let path: String
  private let temporary: String
  private let writer: Writer
  package private(set) var byteCount = 0

  /// How many pieces may wait, each to be hashed and to be written: what bounds the memory.
  package static let waitingPieces = 8

  /// Creates the temporary file.
  package init(_ path: String) throws {
    self.path = path
    temporary = path + ".partial"
    // One that a killed run left goes; a link is not followed, wherever it leads.
    unlink(temporary)
    let descriptor = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o666)
    // It is the folder that does not let itself be written to.
    guard descriptor >= 0 else { throw FileError.system(folder(of: path), "cannot be written to") }
    FileOperations.opened()
    writer = Writer(descriptor, path: temporary)
  }

  /// Appends bytes and takes them into the hash. A failure to write them may show only at a later call.
  package func write(_ bytes: [UInt8]) throws {
    byteCount += bytes.count
    writer.write(bytes)
  }

  /// Flushes, renames to the final name, and flushes the folder.
  ///
  /// - Parameter flushesFolder: false where somebody flushes it once for many files
  /// - Returns: The SHA-256 of the content, in hexadecimal.
  package func finish(flushesFolder: Bool = true) throws -> String {
    let hash = try writer.flush()
    if flushesFolder { try renameDurably(temporary, to: path) } else { try renameFile(temporary, to: path) }
    return hash
  }

  /// Hashes and writes in the order of the calls, each on a queue of its own.
  private final class Writer: @unchecked Sendable {
    private let descriptor: Int32
    private let path: String
    private let queue = DispatchQueue(label: "jettrain.durable-file.write")
    private let hashQueue = DispatchQueue(label: "jettrain.durable-file.hash")
    /// Touched on the hash queue alone.
    private var hasher = SHA256()
    private let room = DispatchSemaphore(value: 2 * DurableFile.waitingPieces)
    /// Touched on the writing queue alone, both.
    private var fault: FileError?
    private var unflushed = 0

    private static let flushInterval = 64 << 20

    init(_ descriptor: Int32, path: String) {
      self.descriptor = descriptor
      self.path = path
    }

    deinit { close(descriptor) }

    func write(_ bytes: [UInt8]) {
      room.wait()
      room.wait()
      hashQueue.async { [self] in
        hasher.update(bytes)
        room.signal()
      }
      queue.async { [self] in
        bytes.withUnsafeBytes { append($0) }
        room.signal()
      }
    }

    private func append(_ bytes: UnsafeRawBufferPointer) {
      var rest = bytes
      while !rest.isEmpty, fault == nil {
        let written = Foundation.write(descriptor, rest.baseAddress, FailPoint.length(rest.count))
        if written >= 0 {
          FileOperations.wrote(written)
          rest = UnsafeRawBufferPointer(rebasing: rest.dropFirst(written))
        } else if errno != EINTR {
          fault = FileError.system(path, "cannot be written")
        }
      }
      unflushed += bytes.count
      // The disk works while the caller compresses, so that the final flush finds little left.
      if unflushed >= Self.flushInterval, fault == nil {
        if fdatasync(descriptor) != 0 { fault = FileError.system(path, "cannot be flushed") }
        unflushed = 0
      }
    }

    /// Waits for all writes, brings them to disk, and gives the hash of all bytes.
    func flush() throws -> String {
      try queue.sync {
        if let fault { throw fault }
        guard fsync(descriptor) == 0 else { throw FileError.system(path, "cannot be flushed") }
        FileOperations.synced()
      }
      return hashQueue.sync { hasher.finish() }
    }
  }
}

/// Renames `old` to `new` and flushes the folder, so that the new name survives a crash.
package func renameDurably(_ old: String, to new: String) throws {
  try renameFile(old, to: new)
  try flushFolder(folder(of: new))
}

/// The folder that `path` lies in, `.` for one without. Foundation's own ends the process at some names of one letter.
package func folder(of path: String) -> String {
  guard let slash = path.lastIndex(of: "/") else { return "." }
  return slash == path.startIndex ? "/" : String(path[..<slash])
}

/// Renames `old` to `new`, which a crash may still undo.
package func renameFile(_ old: String, to new: String) throws {
  guard rename(old, new) == 0 else { throw FileError.system(new, "cannot be renamed from \(old)") }
  FileOperations.synced()
}

/// Flushes the entries of a folder to disk.
package func flushFolder(_ path: String) throws {
  let descriptor = open(path.isEmpty ? "." : path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
  guard descriptor >= 0 else { throw FileError.system(path, "cannot be opened") }
  defer { close(descriptor) }
  guard fsync(descriptor) == 0 else { throw FileError.system(path, "cannot be flushed") }
  FileOperations.synced()
}

/// Replaces the file at `path` by `content`, durably and at once.
package func writeDurably(_ content: Data, to path: String) throws {
  let file = try DurableFile(path)
  try file.write(Array(content))
  _ = try file.finish()
}

/// Creates the folder and those above it.
package func createFolder(_ path: String) throws {
  if mkdir(path, 0o777) == 0 { return }
  if errno == ENOENT, case let above = folder(of: path), above != path, above != "." {
    try createFolder(above)
    if mkdir(path, 0o777) == 0 { return }
  }
  guard errno == EEXIST else { throw FileError.system(path, "cannot be created") }
  var status = stat()
  guard stat(path, &status) == 0, status.st_mode & S_IFMT == S_IFDIR else {
    throw FileError(path, "is a file where a folder is wanted", kind: .system)
  }
}

/// The whole content of a file.
package func readFile(_ path: String) throws -> Data {
  FileOperations.opened()
  guard let data = try? Data(contentsOf: URL(fileURLWithPath: path), options: .mappedIfSafe) else {
    throw FileError(path, "cannot be read; is it there, and readable?", kind: .system)
  }
  FileOperations.read(data.count)
  try refusePointer(data.prefix(1024), of: path)
  return data
}

/// SHA-256 of a file's content, read in pieces.
package func sha256(file path: String) throws -> String {
  let descriptor = open(path, O_RDONLY | O_CLOEXEC)
  guard descriptor >= 0 else { throw FileError.system(path, "cannot be opened") }
  defer { close(descriptor) }
  FileOperations.opened()
  var hasher = SHA256()
  var buffer = [UInt8](repeating: 0, count: 1 << 20)
  while true {
    let count = read(descriptor, &buffer, buffer.count)
    guard count >= 0 else { throw FileError.system(path, "cannot be read") }
    if count == 0 { return hasher.finish() }
    FileOperations.read(count)
    hasher.update(buffer[..<count])
  }
}

import Foundation

/// The bytes of a file, mapped read-only: the system reads what is touched, and processes on a host share it.
///
/// A file that another program cuts short while it is mapped ends the process with SIGBUS; model files are replaced
/// by renaming, never overwritten.
package final class MappedFile: @unchecked Sendable {
  package let path: String
  package let bytes: UnsafeRawBufferPointer

  /// Maps the file at `path`.
  package init(_ path: String) throws {
    self.path = path
    let descriptor = open(path, O_RDONLY | O_CLOEXEC)
    guard descriptor >= 0 else { throw FileError.system(path, "cannot be opened") }
    FileOperations.opened()
    defer { close(descriptor) }
    var status = stat()
    guard fstat(descriptor, &status) == 0 else { throw FileError.system(path, "cannot be read") }
    guard status.st_mode & S_IFMT == S_IFREG else { throw FileError(path, "is not a regular file") }
    let size = Int(status.st_size)
    guard size > 0 else {
      bytes = UnsafeRawBufferPointer(start: nil, count: 0)
      return
    }
    guard let address = mmap(nil, size, PROT_READ, MAP_PRIVATE, descriptor, 0), address != MAP_FAILED else {
      throw FileError.system(path, "cannot be mapped")
    }
    bytes = UnsafeRawBufferPointer(start: address, count: size)
    if size < 1024 { try refusePointer(bytes, of: path) }
  }

  /// A file that is not on disk: a copy of `content`, at an address as even as a mapped file's; `path` names it in errors.
  package init(content: [UInt8], path: String) {
    self.path = path
    guard !content.isEmpty else {
      bytes = UnsafeRawBufferPointer(start: nil, count: 0)
      return
    }
    let address = mmap(nil, content.count, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    guard let address, address != MAP_FAILED else { preconditionFailure("no memory for \(content.count) bytes") }
    content.withUnsafeBytes { address.copyMemory(from: $0.baseAddress!, byteCount: content.count) }
    bytes = UnsafeRawBufferPointer(start: address, count: content.count)
  }

  deinit {
    if let address = bytes.baseAddress { munmap(UnsafeMutableRawPointer(mutating: address), bytes.count) }
  }
}

import Foundation

/// Refuses the few lines that Git LFS leaves in a checkout, or a download, in the place of a large file.
///
/// - Parameter head: what the file begins with, 1,024 bytes or more, or all of it
package func refusePointer(_ head: some Collection<UInt8>, of path: String) throws {
  guard head.count < 1024, head.starts(with: "version https://git-lfs.github.com/spec/".utf8) else { return }
  let lines = String(decoding: head, as: UTF8.self).split(separator: "\n")
  let size = lines.first { $0.hasPrefix("size ") }.flatMap { Int($0.dropFirst(5)) }
  throw FileError(
    path,
    "is a Git LFS pointer, not the file\(size.map { " of \($0) bytes" } ?? "") itself: run `git lfs pull` where it was "
      + "cloned, or download the file")
}

/// The same of a file that is read otherwise than as a whole. One that cannot be opened is left to whoever reads it.
package func refusePointer(at path: String) throws {
  guard let file = FileHandle(forReadingAtPath: path) else { return }
  try refusePointer((try? file.read(upToCount: 1024)) ?? Data(), of: path)
}

import CZstd
import Foundation
import Hashing

/// Zstandard frames (RFC 8878).
package enum Zstd {
  /// One frame that holds `bytes`, with a content checksum. Negative levels are the fast ones.
  package static func compress(_ bytes: UnsafeRawBufferPointer, level: Int32) -> [UInt8] {
    let context = ZSTD_createCCtx()
    defer { ZSTD_freeCCtx(context) }
    ZSTD_CCtx_setParameter(context, ZSTD_c_compressionLevel, level)
    ZSTD_CCtx_setParameter(context, ZSTD_c_checksumFlag, 1)
    let bound = ZSTD_compressBound(bytes.count)
    return [UInt8](unsafeUninitializedCapacity: bound) { buffer, count in
      let size = ZSTD_compress2(context, buffer.baseAddress, bound, bytes.baseAddress, bytes.count)
      precondition(ZSTD_isError(size) == 0, "zstd cannot compress into a buffer of the bound it gave")
      count = size
    }
  }

  /// Decompresses one frame into exactly `out`.
  package static func decompress(
    _ frame: UnsafeRawBufferPointer, into out: UnsafeMutableRawBufferPointer, path: String
  ) throws {
    let size = ZSTD_decompress(out.baseAddress, out.count, frame.baseAddress, frame.count)
    guard ZSTD_isError(size) == 0 else {
      throw FileError(path, "damaged zstd frame (\(String(cString: ZSTD_getErrorName(size))))")
    }
    guard size == out.count else {
      throw FileError(path, "zstd frame of \(size) bytes where \(out.count) were expected")
    }
  }

  /// The content of one frame, whose size its header must tell and which may not exceed `limit`.
  package static func decompress(_ frame: Data, limit: Int, path: String) throws -> [UInt8] {
    try frame.withUnsafeBytes { frame in
      let size = ZSTD_getFrameContentSize(frame.baseAddress, frame.count)
      guard size <= UInt64(limit) else {
        throw FileError(path, "not a zstd frame of at most \(limit) bytes")
      }
      return try [UInt8](unsafeUninitializedCapacity: Int(size)) { buffer, count in
        try decompress(
          frame, into: UnsafeMutableRawBufferPointer(rebasing: UnsafeMutableRawBufferPointer(buffer)[..<Int(size)]),
          path: path)
        count = Int(size)
      }
    }
  }
}

/// Decompresses a stream of frames piece by piece.
package final class ZstdReader {
  private let context = ZSTD_createDStream()
  private let descriptor: Int32
  private let path: String
  private var input = [UInt8](repeating: 0, count: 1 << 17)
  private var position = 0
  private var filled = 0
  /// What the library still expects; not zero at the end of the file means truncation.
  private var expected = 0
  private var hash: SHA256?
  /// Bytes of the file that were read.
  package private(set) var byteCount = 0

  /// Opens the file at `path`.
  ///
  /// - Parameter hashes: whether to hash the file on the way, for ``finish()``
  package init(_ path: String, hashes: Bool = false) throws {
    self.path = path
    hash = hashes ? SHA256() : nil
    descriptor = open(path, O_RDONLY | O_CLOEXEC)
    guard descriptor >= 0 else { throw FileError.system(path, "cannot be opened") }
    FileOperations.opened()
  }

  deinit {
    ZSTD_freeDStream(context)
    close(descriptor)
  }

  /// Fills `out` with the next bytes; fewer only at the end.
  package func read(into out: UnsafeMutableRawBufferPointer) throws -> Int {
    var target = ZSTD_outBuffer(dst: out.baseAddress, size: out.count, pos: 0)
    while target.pos < target.size {
      if position == filled {
        let count = Foundation.read(descriptor, &input, input.count)
        guard count >= 0 else { throw FileError.system(path, "cannot be read") }
        if count == 0 {
          guard expected == 0 else { throw FileError(path, "ends within a zstd frame") }
          break
        }
        (position, filled) = (0, count)
        FileOperations.read(count)
        byteCount += count
        input.withUnsafeBytes { hash?.update(UnsafeRawBufferPointer(rebasing: $0[..<count])) }
      }
      let status = input.withUnsafeBytes { bytes in
        var source = ZSTD_inBuffer(src: bytes.baseAddress, size: filled, pos: position)
        let status = ZSTD_decompressStream(context, &target, &source)
        position = source.pos
        return status
      }
      guard ZSTD_isError(status) == 0 else {
        try refusePointer(at: path)
        throw FileError(path, "damaged zstd data (\(String(cString: ZSTD_getErrorName(status))))")
      }
      expected = status
    }
    return target.pos
  }

  /// Ends the reading of the whole file.
  ///
  /// - Returns: The SHA-256 of the file as it lies on disk, where it was hashed
  /// - Throws: When there is more in it
  package func finish() throws -> String? {
    var rest: UInt8 = 0
    guard try withUnsafeMutableBytes(of: &rest, { try read(into: $0) }) == 0 else {
      throw FileError(path, "holds more than its header says")
    }
    return hash?.finish()
  }
}

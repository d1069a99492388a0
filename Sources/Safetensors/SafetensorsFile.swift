import Foundation
import Tensors

/// A safetensors file that cannot be used, and why.
package struct SafetensorsError: Error, CustomStringConvertible {
  package let path: String
  package let reason: String
  package var description: String { "\(path): \(reason)" }

  package init(path: String, reason: String) {
    self.path = path
    self.reason = reason
  }
}

/// Element types of the format that jettrain reads.
package enum SafetensorsType: String, Sendable {
  case float32 = "F32"
  case float16 = "F16"
  case bfloat16 = "BF16"
  case int32 = "I32"
  case int64 = "I64"

  package var size: Int {
    switch self {
    case .float32, .int32: 4
    case .float16, .bfloat16: 2
    case .int64: 8
    }
  }
}

/// A file of named arrays, read by memory map (format: github.com/huggingface/safetensors).
///
/// The header is not trusted: lengths, offsets, shapes, and overlaps are checked before anything is read.
package final class SafetensorsFile {
  /// One array: where it lies in the file.
  package struct Entry: Sendable {
    package let type: SafetensorsType
    package let shape: [Int]
    package let bytes: Range<Int>
    package var count: Int { shape.reduce(1, *) }
  }

  package let path: String
  package let entries: [String: Entry]
  package let metadata: [String: String]
  private let data: Data

  package convenience init(path: String) throws {
    do {
      try self.init(data: Data(contentsOf: URL(fileURLWithPath: path), options: .alwaysMapped), path: path)
    } catch let error as SafetensorsError {
      throw error
    } catch {
      throw SafetensorsError(path: path, reason: "cannot be read: \(error.localizedDescription)")
    }
  }

  /// The arrays in `data`; `path` names them in errors.
  package init(data: Data, path: String) throws {
    self.path = path
    self.data = data
    func fail(_ reason: String) -> SafetensorsError { SafetensorsError(path: path, reason: reason) }
    guard data.count >= 8 else { throw fail("\(data.count) bytes are too few for a safetensors header") }
    let length = data.withUnsafeBytes { UInt64(littleEndian: $0.loadUnaligned(as: UInt64.self)) }
    guard length <= 100_000_000, Int(length) <= data.count - 8 else {
      throw fail("the header claims \(length) bytes, the file has \(data.count)")
    }
    let body = 8 + Int(length)
    guard
      let object = try? JSONSerialization.jsonObject(with: data.subdata(in: 8..<body)) as? [String: Any]
    else { throw fail("the header is not a JSON object") }
    var entries: [String: Entry] = [:]
    for (name, value) in object where name != "__metadata__" {
      guard let fields = value as? [String: Any], let typeName = fields["dtype"] as? String,
        let shape = fields["shape"] as? [Int], let offsets = fields["data_offsets"] as? [Int],
        offsets.count == 2
      else { throw fail("\(name): dtype, shape or data_offsets are missing") }
      guard let type = SafetensorsType(rawValue: typeName) else {
        throw fail("\(name): element type \(typeName) is not supported (F32, F16, BF16, I32, I64 are)")
      }
      var count = 1
      for extent in shape {
        let (product, overflow) = count.multipliedReportingOverflow(by: extent)
        guard extent >= 0, !overflow else { throw fail("\(name): impossible shape \(shape)") }
        count = product
      }
      let (size, overflow) = count.multipliedReportingOverflow(by: type.size)
      guard offsets[0] >= 0, offsets[0] <= offsets[1], offsets[1] <= data.count - body, !overflow,
        offsets[1] - offsets[0] == size
      else { throw fail("\(name): offsets \(offsets) do not fit shape \(shape) of \(typeName) and the file") }
      entries[name] = Entry(type: type, shape: shape, bytes: body + offsets[0]..<body + offsets[1])
    }
    var end = body
    for (name, entry) in entries.sorted(by: { $0.value.bytes.lowerBound < $1.value.bytes.lowerBound }) {
      guard entry.bytes.lowerBound >= end else { throw fail("\(name) overlaps another array") }
      end = entry.bytes.upperBound
    }
    self.entries = entries
    metadata = object["__metadata__"] as? [String: String] ?? [:]
  }

  /// Converts elements `range` of `name` to float32 into `out`.
  package func read(_ name: String, _ range: Range<Int>? = nil, into out: UnsafeMutablePointer<Float>) throws {
    guard let entry = entries[name] else {
      throw SafetensorsError(path: path, reason: "there is no array \(name)")
    }
    let range = range ?? 0..<entry.count
    precondition(range.upperBound <= entry.count, "elements \(range) of \(name) \(entry.shape)")
    try data.withUnsafeBytes { bytes in
      let source = UnsafeRawBufferPointer(rebasing: bytes[entry.bytes]).baseAddress!
        .advanced(by: range.lowerBound * entry.type.size)
      switch entry.type {
      case .float32:
        UnsafeMutableRawPointer(out).copyMemory(from: source, byteCount: range.count * 4)
      case .bfloat16:
        for i in 0..<range.count {
          let bits = source.loadUnaligned(fromByteOffset: i * 2, as: UInt16.self)
          out[i] = Float(bitPattern: UInt32(bits) << 16)
        }
      case .float16:
        for i in 0..<range.count {
          out[i] = Self.single(half: source.loadUnaligned(fromByteOffset: i * 2, as: UInt16.self))
        }
      case .int32, .int64:
        throw SafetensorsError(path: path, reason: "\(name) holds integers where floats are expected")
      }
    }
  }

  /// The array as floats.
  package func floats(_ name: String) throws -> [Float] {
    guard let entry = entries[name] else {
      throw SafetensorsError(path: path, reason: "there is no array \(name)")
    }
    var values = [Float](repeating: 0, count: entry.count)
    try values.withUnsafeMutableBufferPointer { buffer in
      if let base = buffer.baseAddress { try read(name, into: base) }
    }
    return values
  }

  /// The array as 32-bit integers.
  package func integers(_ name: String) throws -> [Int32] {
    guard let entry = entries[name], entry.type == .int32 || entry.type == .int64 else {
      throw SafetensorsError(path: path, reason: "there is no integer array \(name)")
    }
    return data.withUnsafeBytes { bytes in
      (0..<entry.count).map { i in
        let offset = entry.bytes.lowerBound + i * entry.type.size
        return entry.type == .int32
          ? bytes.loadUnaligned(fromByteOffset: offset, as: Int32.self)
          : Int32(truncatingIfNeeded: bytes.loadUnaligned(fromByteOffset: offset, as: Int64.self))
      }
    }
  }

  /// IEEE half precision to single, without relying on hardware support.
  private static func single(half: UInt16) -> Float {
    let sign = UInt32(half & 0x8000) << 16
    let exponent = UInt32(half >> 10) & 0x1F
    let fraction = UInt32(half & 0x3FF)
    switch exponent {
    case 0: return Float(bitPattern: sign) + (sign == 0 ? 1 : -1) * Float(fraction) * 0x1p-24
    case 31: return Float(bitPattern: sign | 0x7F80_0000 | fraction << 13)
    default: return Float(bitPattern: sign | (exponent + 112) << 23 | fraction << 13)
    }
  }
}

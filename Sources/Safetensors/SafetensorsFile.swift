import Files
import JSON
import Tensors

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
/// The header is not trusted: lengths, offsets, shapes, overlaps and names that occur twice are checked before
/// anything is read or allocated by what they say.
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
  private let file: MappedFile
  private var bytes: UnsafeRawBufferPointer { file.bytes }

  /// Maps the file at `path`.
  package convenience init(path: String) throws { try self.init(MappedFile(path)) }

  /// The arrays in `content`; `path` names it in errors.
  package convenience init(content: [UInt8], path: String) throws {
    try self.init(MappedFile(content: content, path: path))
  }

  private init(_ file: MappedFile) throws {
    self.file = file
    path = file.path
    let (path, bytes) = (file.path, file.bytes)
    func fail(_ reason: String) -> FileError { FileError(path, reason) }
    guard bytes.count >= 8 else { throw fail("\(bytes.count) bytes are too few for a safetensors header") }
    let length = UInt64(littleEndian: bytes.loadUnaligned(as: UInt64.self))
    guard length <= UInt64(SafetensorsHeader.mostBytes), Int(length) <= bytes.count - 8 else {
      throw fail("the header claims \(length) bytes, the file has \(bytes.count)")
    }
    let body = 8 + Int(length)
    (entries, metadata) = try Self.entries(
      header: UnsafeRawBufferPointer(rebasing: bytes[8..<body]), fileSize: bytes.count, path: path)
  }

  /// What a header says, checked: element types, shapes and places that fit each other and a file of `fileSize` bytes,
  /// no two of which overlap.
  ///
  /// - Parameter header: the JSON between the eight bytes of its length and the first array
  package static func entries(
    header json: UnsafeRawBufferPointer, fileSize: Int, path: String
  ) throws -> (entries: [String: Entry], metadata: [String: String]) {
    func fail(_ reason: String) -> FileError { FileError(path, reason) }
    let body = 8 + json.count
    var entries: [String: Entry] = [:]
    var metadata: [String: String] = [:]
    for (name, value) in try members(of: header(json, fail), "the header", fail) {
      if name == "__metadata__" {
        metadata = try members(of: value, name, fail).mapValues { value in
          guard let text = value.text else { throw fail("__metadata__ holds something that is no string") }
          return text
        }
        continue
      }
      let fields = try members(of: value, name, fail)
      if let key = fields.keys.first(where: { !["dtype", "shape", "data_offsets"].contains($0) }) {
        throw fail("\(name): \(key) is unknown")
      }
      guard let typeName = fields["dtype"]?.text, let shape = fields["shape"]?.list,
        let places = fields["data_offsets"]?.list
      else { throw fail("\(name): dtype, shape or data_offsets are missing") }
      guard let type = SafetensorsType(rawValue: typeName) else {
        throw fail("\(name): element type \(typeName) is not supported (F32, F16, BF16, I32, I64 are)")
      }
      let extents = try counts(shape, name, fail)
      let offsets = try counts(places, name, fail)
      var size = type.size
      for extent in extents {
        let (product, overflow) = size.multipliedReportingOverflow(by: extent)
        guard !overflow else { throw fail("\(name): impossible shape \(extents)") }
        size = product
      }
      guard offsets.count == 2, offsets[0] <= offsets[1], offsets[1] <= fileSize - body, offsets[1] - offsets[0] == size
      else { throw fail("\(name): offsets \(offsets) do not fit shape \(extents) of \(typeName) and the file") }
      entries[name] = Entry(type: type, shape: extents, bytes: body + offsets[0]..<body + offsets[1])
    }
    var end = body
    let inOrder = entries.sorted {
      ($0.value.bytes.lowerBound, $0.value.bytes.upperBound, $0.key) < (
        $1.value.bytes.lowerBound, $1.value.bytes.upperBound, $1.key
      )
    }
    for (name, entry) in inOrder {
      guard entry.bytes.lowerBound >= end else { throw fail("\(name) overlaps another array") }
      end = entry.bytes.upperBound
    }
    return (entries, metadata)
  }

  private static func header(_ json: UnsafeRawBufferPointer, _ fail: (String) -> FileError) throws -> JSONValue {
    do { return try JSONValue.parse(json) } catch { throw fail("the header " + error.reason) }
  }

  /// The members of an object, none of them twice.
  private static func members(
    of value: JSONValue, _ what: String, _ fail: (String) -> FileError
  ) throws -> [String: JSONValue] {
    guard let members = value.members else { throw fail("\(what) is no JSON object") }
    var values: [String: JSONValue] = [:]
    for (key, value) in members {
      let key = String(decoding: key, as: UTF8.self)
      guard values.updateValue(value, forKey: key) == nil else { throw fail("in \(what), \(key) occurs twice") }
    }
    return values
  }

  /// Numbers of things: whole ones, which a double holds exactly.
  private static func counts(_ values: [JSONValue], _ name: String, _ fail: (String) -> FileError) throws -> [Int] {
    try values.map { value in
      guard let count = value.integer, (0...1 << 53).contains(count) else {
        throw fail("\(name): shape or data_offsets hold what is not a whole number, or too large")
      }
      return count
    }
  }

  /// The array as it lies in the file, borrowed by `backend`: for float32 and bfloat16 at a whole multiple of their
  /// size; nil for others. The tensor must not be written to.
  package func view(_ name: String, on backend: any Backend) -> Tensor? {
    guard let entry = entries[name], entry.count > 0, let base = bytes.baseAddress else { return nil }
    let dtype: DType
    switch entry.type {
    case .float32: dtype = .float32
    case .bfloat16: dtype = .bfloat16
    case .float16, .int32, .int64: return nil
    }
    guard Int(bitPattern: base + entry.bytes.lowerBound) % dtype.size == 0 else { return nil }
    return backend.borrow(
      UnsafeRawBufferPointer(rebasing: bytes[entry.bytes]), shape: entry.shape, dtype: dtype, owner: self)
  }

  /// The array as float32 of its own, converted a few megabytes at a time.
  package func copy(_ name: String, on backend: any Backend) throws -> Tensor {
    guard let entry = entries[name] else { throw FileError(path, "there is no array \(name)") }
    let tensor = backend.empty(entry.shape)
    let piece = 1 << 20
    for first in stride(from: 0, to: entry.count, by: piece) {
      let range = first..<min(first + piece, entry.count)
      tensor.elements(range).upload(try floats(name, range))
    }
    return tensor
  }

  /// Converts elements `range` of `name` to float32 into `out`.
  package func read(_ name: String, _ range: Range<Int>? = nil, into out: UnsafeMutablePointer<Float>) throws {
    guard let entry = entries[name] else {
      throw FileError(path, "there is no array \(name)")
    }
    guard [.float32, .float16, .bfloat16].contains(entry.type) else {
      throw FileError(path, "\(name) holds integers where floats are expected")
    }
    let range = range ?? 0..<entry.count
    precondition(range.upperBound <= entry.count, "elements \(range) of \(name) \(entry.shape)")
    if range.isEmpty { return }
    let source = bytes.baseAddress! + entry.bytes.lowerBound + range.lowerBound * entry.type.size
    Self.convert(source, entry.type, into: out, range.count)
  }

  // A function of its own: inside a throwing one, Swift 6.3 loses the register that says whether an error was thrown.
  @inline(never)
  private static func convert(
    _ source: UnsafeRawPointer, _ type: SafetensorsType, into out: UnsafeMutablePointer<Float>, _ count: Int
  ) {
    switch type {
    case .bfloat16:
      for i in 0..<count {
        out[i] = Float(bitPattern: UInt32(source.loadUnaligned(fromByteOffset: i * 2, as: UInt16.self)) << 16)
      }
    case .float16:
      for i in 0..<count { out[i] = single(half: source.loadUnaligned(fromByteOffset: i * 2, as: UInt16.self)) }
    default: UnsafeMutableRawPointer(out).copyMemory(from: source, byteCount: count * 4)
    }
  }

  /// The array, or elements `range` of it, as floats.
  package func floats(_ name: String, _ range: Range<Int>? = nil) throws -> [Float] {
    guard let entry = entries[name] else {
      throw FileError(path, "there is no array \(name)")
    }
    var values = [Float](repeating: 0, count: range?.count ?? entry.count)
    try values.withUnsafeMutableBufferPointer { buffer in
      if let base = buffer.baseAddress { try read(name, range, into: base) }
    }
    return values
  }

  /// The array as 32-bit integers.
  package func integers(_ name: String) throws -> [Int32] {
    guard let entry = entries[name], entry.type == .int32 || entry.type == .int64 else {
      throw FileError(path, "there is no integer array \(name)")
    }
    return try (0..<entry.count).map { i in
      let offset = entry.bytes.lowerBound + i * entry.type.size
      if entry.type == .int32 { return bytes.loadUnaligned(fromByteOffset: offset, as: Int32.self) }
      let wide = bytes.loadUnaligned(fromByteOffset: offset, as: Int64.self)
      guard let value = Int32(exactly: wide) else {
        throw FileError(path, "\(name) holds \(wide), which is no token id")
      }
      return value
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

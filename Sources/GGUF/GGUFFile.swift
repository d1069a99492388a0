import Files

/// A file of metadata and named arrays as llama.cpp keeps models (format: github.com/ggml-org/ggml, docs/gguf.md), read by
/// memory map.
///
/// The header is not trusted: counts, lengths, types, shapes, offsets, overlaps and names that occur twice are checked
/// before anything is read or allocated by what they say.
package final class GGUFFile: Sendable {
  /// One array: its type, its shape with the slowest extent first, and where it lies in the file.
  package struct Entry: Sendable {
    package let type: GGUFType
    package let shape: [Int]
    package let bytes: Range<Int>
    package var count: Int { shape.reduce(1, *) }
  }

  package let path: String
  package let metadata: [String: GGUFValue]
  package let entries: [String: Entry]
  private let file: MappedFile

  /// Maps the file at `path`.
  package convenience init(path: String) throws { try self.init(MappedFile(path)) }

  /// The file that `content` is; `path` names it in errors.
  package convenience init(content: [UInt8], path: String) throws {
    try self.init(MappedFile(content: content, path: path))
  }

  private init(_ file: MappedFile) throws {
    self.file = file
    path = file.path
    var reader = HeaderReader(file.bytes)
    do {
      (metadata, entries) = try reader.header()
    } catch {
      throw FileError(path, error.reason)
    }
  }

  private func entry(_ name: String) throws -> Entry {
    guard let entry = entries[name] else { throw FileError(path, "there is no array \(name)") }
    return entry
  }

  /// Elements `range` of `name` as float32 into `out`; the range begins and ends between blocks of the array's type.
  package func read(_ name: String, _ range: Range<Int>, into out: UnsafeMutablePointer<Float>) throws {
    let entry = try entry(name)
    let type = entry.type
    precondition(
      range.lowerBound >= 0 && range.upperBound <= entry.count && range.lowerBound % type.blockElements == 0
        && range.upperBound % type.blockElements == 0, "elements \(range) of \(name) \(entry.shape) \(type)")
    guard !range.isEmpty else { return }
    let first = entry.bytes.lowerBound + range.lowerBound / type.blockElements * type.blockBytes
    type.dequantize(file.bytes.baseAddress! + first, blocks: range.count / type.blockElements, into: out)
  }

  /// The whole array as floats.
  package func floats(_ name: String) throws -> [Float] {
    let count = try entry(name).count
    var values = [Float](repeating: 0, count: count)
    try values.withUnsafeMutableBufferPointer { buffer in
      if let base = buffer.baseAddress { try read(name, 0..<count, into: base) }
    }
    return values
  }
}

/// A value of the metadata. Strings are bytes: nothing promises that they are UTF-8.
package enum GGUFValue: Sendable {
  case integer(Int)
  case number(Double)
  case boolean(Bool)
  case string([UInt8])
  case list([GGUFValue])

  package var integer: Int? { if case .integer(let value) = self { value } else { nil } }
  package var boolean: Bool? { if case .boolean(let value) = self { value } else { nil } }
  package var bytes: [UInt8]? { if case .string(let value) = self { value } else { nil } }
  package var text: String? { bytes.map { String(decoding: $0, as: UTF8.self) } }
  package var list: [GGUFValue]? { if case .list(let values) = self { values } else { nil } }
  package var number: Double? {
    switch self {
    case .number(let value): value
    case .integer(let value): Double(value)
    default: nil
    }
  }
}

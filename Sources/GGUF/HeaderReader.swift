/// Reads what comes before the arrays of a GGUF file, believing nothing.
struct HeaderReader {
  struct Fault: Error {
    let reason: String
  }

  private let bytes: UnsafeRawBufferPointer
  private var position = 0
  /// More entries than any model or vocabulary has.
  private static let mostEntries = 1 << 24

  init(_ bytes: UnsafeRawBufferPointer) { self.bytes = bytes }

  mutating func header() throws(Fault) -> ([String: GGUFValue], [String: GGUFFile.Entry]) {
    guard bytes.starts(with: "GGUF".utf8) else {
      throw Fault(reason: "is not a GGUF file: it does not begin with GGUF")
    }
    position = 4
    let version = try number(UInt32.self)
    guard version == 2 || version == 3 else { throw Fault(reason: "is GGUF of version \(version); 2 and 3 are read") }
    let arrays = try count("arrays", each: 24)
    let pairs = try count("values", each: 13)
    var metadata: [String: GGUFValue] = [:]
    for _ in 0..<pairs {
      let key = try name("key")
      let type = try number(UInt32.self)
      guard metadata.updateValue(try value(type, depth: 0), forKey: key) == nil else {
        throw Fault(reason: "the header has \(key) twice")
      }
    }
    var found: [(name: String, type: GGUFType, shape: [Int], offset: UInt64)] = []
    for _ in 0..<arrays {
      let name = try name("array")
      let rank = try number(UInt32.self)
      guard (1...4).contains(rank) else { throw Fault(reason: "\(name) has \(rank) extents") }
      var extents: [Int] = []
      var product = 1
      for _ in 0..<rank {
        let extent = try number(UInt64.self)
        guard extent > 0, let size = Int(exactly: extent),
          case (let next, let overflow) = product.multipliedReportingOverflow(by: size),
          !overflow
        else { throw Fault(reason: "\(name) has the impossible extent \(extent)") }
        product = next
        extents.append(size)
      }
      let code = try number(UInt32.self)
      guard let type = GGUFType(rawValue: code) else {
        throw Fault(
          reason: "\(name) is of type \(GGUFType.name(of: code)), which is not supported (\(GGUFType.supported) are)")
      }
      guard extents[0] % type.blockElements == 0 else {
        throw Fault(reason: "\(name): rows of \(extents[0]) are not whole blocks of \(type)")
      }
      found.append((name, type, extents.reversed(), try number(UInt64.self)))
    }
    return (metadata, try entries(found, alignment: metadata["general.alignment"]))
  }

  /// Places in the file, checked against it and each other.
  private func entries(
    _ found: [(name: String, type: GGUFType, shape: [Int], offset: UInt64)], alignment value: GGUFValue?
  ) throws(Fault) -> [String: GGUFFile.Entry] {
    let alignment = value == nil ? 32 : value?.integer ?? 0
    guard (1...1 << 20).contains(alignment), alignment & (alignment - 1) == 0 else {
      throw Fault(reason: "general.alignment is no power of two")
    }
    let body = (position + alignment - 1) / alignment * alignment
    var entries: [String: GGUFFile.Entry] = [:]
    for (name, type, shape, offset) in found {
      let (size, overflow) = (shape.reduce(1, *) / type.blockElements).multipliedReportingOverflow(by: type.blockBytes)
      guard !overflow, body <= bytes.count, offset <= UInt64(bytes.count - body),
        size <= bytes.count - body - Int(offset)
      else {
        throw Fault(
          reason: "\(name) \(shape) of \(type) does not fit the file of \(bytes.count) bytes: was it cut short?")
      }
      let start = body + Int(offset)
      let entry = GGUFFile.Entry(type: type, shape: shape, bytes: start..<start + size)
      guard entries.updateValue(entry, forKey: name) == nil else { throw Fault(reason: "the header has \(name) twice") }
    }
    var end = body
    for (name, entry) in entries.sorted(by: {
      ($0.value.bytes.lowerBound, $0.key) < ($1.value.bytes.lowerBound, $1.key)
    }) {
      guard entry.bytes.lowerBound >= end else { throw Fault(reason: "\(name) overlaps another array") }
      end = entry.bytes.upperBound
    }
    return entries
  }

  private mutating func number<Number: FixedWidthInteger>(_: Number.Type) throws(Fault) -> Number {
    let size = MemoryLayout<Number>.size
    guard size <= bytes.count - position else { throw Fault(reason: "the header ends too early, at byte \(position)") }
    defer { position += size }
    return Number(littleEndian: bytes.loadUnaligned(fromByteOffset: position, as: Number.self))
  }

  /// A number of things, each of which takes at least `each` bytes.
  private mutating func count(_ what: String, each: Int) throws(Fault) -> Int {
    let count = try number(UInt64.self)
    guard count <= UInt64(Self.mostEntries), Int(count) * each <= bytes.count - position else {
      throw Fault(reason: "the header claims \(count) \(what) in \(bytes.count) bytes")
    }
    return Int(count)
  }

  private mutating func string() throws(Fault) -> [UInt8] {
    let length = try count("bytes of a string", each: 1)
    defer { position += length }
    return Array(bytes[position..<position + length])
  }

  private mutating func name(_ what: String) throws(Fault) -> String {
    guard let name = String(validating: try string(), as: UTF8.self) else {
      throw Fault(reason: "the name of a \(what) is not UTF-8, before byte \(position)")
    }
    return name
  }

  private static func value(_ number: some BinaryInteger) -> GGUFValue {
    Int(exactly: number).map { .integer($0) } ?? .number(Double(number))
  }

  private mutating func value(_ type: UInt32, depth: Int) throws(Fault) -> GGUFValue {
    switch type {
    case 0: return Self.value(try number(UInt8.self))
    case 1: return Self.value(try number(Int8.self))
    case 2: return Self.value(try number(UInt16.self))
    case 3: return Self.value(try number(Int16.self))
    case 4: return Self.value(try number(UInt32.self))
    case 5: return Self.value(try number(Int32.self))
    case 6: return .number(Double(Float(bitPattern: try number(UInt32.self))))
    case 7: return .boolean(try number(UInt8.self) != 0)
    case 8: return .string(try string())
    case 9:
      guard depth < 4 else { throw Fault(reason: "the header has lists \(depth) deep") }
      let element = try number(UInt32.self)
      let sizes = [1, 1, 2, 2, 4, 4, 4, 1, 8, 12, 8, 8, 8]
      guard element < sizes.count else { throw Fault(reason: "the header has a list of the unknown type \(element)") }
      let length = try count("elements of a list", each: sizes[Int(element)])
      var values: [GGUFValue] = []
      values.reserveCapacity(length)
      for _ in 0..<length { values.append(try value(element, depth: depth + 1)) }
      return .list(values)
    case 10: return Self.value(try number(UInt64.self))
    case 11: return Self.value(try number(Int64.self))
    case 12: return .number(Double(bitPattern: try number(UInt64.self)))
    default: throw Fault(reason: "the header has a value of the unknown type \(type)")
    }
  }
}

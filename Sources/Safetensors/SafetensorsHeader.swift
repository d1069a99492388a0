import Foundation

/// The beginning of a safetensors file: arrays lie behind it in the given order, without gaps.
package struct SafetensorsHeader {
  /// An array to be written.
  package struct Field {
    package let name: String
    package let type: SafetensorsType
    package let shape: [Int]

    package init(name: String, type: SafetensorsType = .float32, shape: [Int]) {
      self.name = name
      self.type = type
      self.shape = shape
    }

    fileprivate var byteCount: Int { shape.reduce(1, *) * type.size }
  }

  /// Length, JSON and padding to eight bytes: what comes before the first array.
  package let bytes: Data
  /// Bytes of the whole file.
  package let fileSize: Int

  /// The longest header that is believed.
  package static let mostBytes = 100_000_000

  package init(_ fields: [Field], metadata: [String: String]) throws {
    var object: [String: Any] = ["__metadata__": metadata]
    var offset = 0
    for field in fields {
      precondition(object[field.name] == nil, "array \(field.name) is written twice")
      object[field.name] = [
        "dtype": field.type.rawValue, "shape": field.shape,
        "data_offsets": [offset, offset + field.byteCount],
      ]
      offset += field.byteCount
    }
    var json = try JSONSerialization.data(
      withJSONObject: object, options: [.sortedKeys, .withoutEscapingSlashes])
    while json.count % 8 != 0 { json.append(UInt8(ascii: " ")) }
    var header = Data()
    withUnsafeBytes(of: UInt64(json.count).littleEndian) { header.append(contentsOf: $0) }
    header.append(json)
    bytes = header
    fileSize = header.count + offset
  }
}

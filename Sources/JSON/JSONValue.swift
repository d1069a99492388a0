/// A value of a JSON text as it stands there: strings are bytes, and an object keeps all of its members, in order.
///
/// That is what files need which a general parser reads wrongly: tokens may differ only in how their characters are composed,
/// which `String` takes for equal, so that a vocabulary would lose some; and a header that names an array twice must be seen to.
package enum JSONValue: Sendable {
  case null
  case boolean(Bool)
  case number(Double)
  case string([UInt8])
  case list([JSONValue])
  case object([(key: [UInt8], value: JSONValue)])

  /// A text that is not JSON, and where, as the end of a sentence: "has a string without end at byte 7".
  package struct Fault: Error {
    package let reason: String
  }

  /// Parses a whole text.
  package static func parse(_ bytes: UnsafeRawBufferPointer) throws(Fault) -> JSONValue {
    var parser = JSONParser(bytes)
    return try parser.whole()
  }

  /// The member `key`; of a key that occurs twice the last, as other readers take it.
  package subscript(_ key: String) -> JSONValue? {
    guard case .object(let members) = self else { return nil }
    return members.last { $0.key.elementsEqual(key.utf8) }?.value
  }

  package var bytes: [UInt8]? { if case .string(let bytes) = self { bytes } else { nil } }
  package var text: String? { bytes.map { String(decoding: $0, as: UTF8.self) } }
  package var boolean: Bool? { if case .boolean(let value) = self { value } else { nil } }
  package var integer: Int? { if case .number(let value) = self { Int(exactly: value) } else { nil } }
  package var list: [JSONValue]? { if case .list(let values) = self { values } else { nil } }
  package var members: [(key: [UInt8], value: JSONValue)]? {
    if case .object(let members) = self { members } else { nil }
  }
  package var isNull: Bool { if case .null = self { true } else { false } }
}

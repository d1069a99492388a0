import Files
import Foundation
import GGUF

/// A `config.json` or a model folder that cannot be used.
package struct ModelError: Error, CustomStringConvertible {
  package let path: String
  package let reason: String
  package var description: String { "\(path): \(reason)" }

  package init(path: String, reason: String) {
    self.path = path
    self.reason = reason
  }
}

/// A model as Hugging Face's `config.json` describes it: its architecture, and what else the file says.
@dynamicMemberLookup
package struct ModelConfiguration: Sendable {
  package let architecture: Architecture
  package let endOfText: Int?
  /// The file as it was, for writing it beside the weights.
  package let json: Data

  package subscript<Value>(dynamicMember path: KeyPath<Architecture, Value>) -> Value { architecture[keyPath: path] }

  /// Whether weights as released are bfloat16, and so stay in memory.
  package var keepsBFloat16: Bool {
    let object = rawObject
    return (object["torch_dtype"] ?? object["dtype"]) as? String == "bfloat16"
  }

  /// The file's object with all its keys.
  var rawObject: [String: Any] {
    // It was parsed before.
    (try? JSONSerialization.jsonObject(with: json) as? [String: Any]) ?? [:]
  }

  /// Reads `path`, a `config.json` or a folder that holds one, or a GGUF file.
  package init(path: String) throws {
    if isGGUF(path) {
      self = try GGUFModel(GGUFFile(path: path)).configuration()
      return
    }
    var isFolder: ObjCBool = false
    let exists = FileManager.default.fileExists(atPath: path, isDirectory: &isFolder)
    let file = isFolder.boolValue ? path + "/config.json" : path
    guard exists, FileManager.default.fileExists(atPath: file) else {
      throw ModelError(path: file, reason: "there is no such configuration; give a config.json or its folder")
    }
    try self.init(json: readFile(file), path: file)
  }

  /// Parses the JSON text `json`; `path` names it in errors.
  package init(json: Data, path: String) throws {
    guard let object = try? JSONSerialization.jsonObject(with: json) as? [String: Any] else {
      throw ModelError(path: path, reason: "is not a JSON object")
    }
    self.json = json
    architecture = try Architecture(ConfigurationReader(object: object, path: path))
    endOfText = object["eos_token_id"] as? Int
  }

  /// The configuration of another architecture, with the keys of `base` that say nothing of it; checked like one that is
  /// read. `path` names it in errors.
  package init(_ architecture: Architecture, over base: [String: Any] = [:], path: String) throws {
    try self.init(
      json: JSONSerialization.data(
        withJSONObject: architecture.written(over: base),
        options: [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]),
      path: path)
  }

  /// The same model with another architecture.
  package func changing(
    _ path: String, _ change: (inout Architecture) throws -> Void
  ) throws -> ModelConfiguration {
    var changed = architecture
    try change(&changed)
    return try ModelConfiguration(changed, over: rawObject, path: path)
  }
}

/// Reads typed fields of a JSON object; numbers may be strings ("1e-5"), as released files have them.
struct ConfigurationReader {
  let object: [String: Any]
  let path: String

  func string(_ key: String) throws -> String {
    guard let value = object[key] as? String else {
      throw ModelError(path: path, reason: "\(key) is missing or not a string")
    }
    return value
  }

  func number(_ key: String) -> Double? {
    if let text = object[key] as? String { return Double(text) }
    return (object[key] as? NSNumber)?.doubleValue
  }

  func positive(_ key: String) throws -> Int {
    guard let value = try optionalPositive(key) else {
      throw ModelError(path: path, reason: "\(key) is missing")
    }
    return value
  }

  /// A whole number that may be 0.
  func optionalCount(_ key: String) throws -> Int? { number(key) == 0 ? 0 : try optionalPositive(key) }

  func optionalPositive(_ key: String) throws -> Int? {
    guard let value = number(key) else { return nil }
    // No size of a model comes near it, and no product of two can overflow.
    guard value >= 1, value <= 0x1p24, value == value.rounded() else {
      throw ModelError(path: path, reason: "\(key) must be a whole number from 1 to 16777216, not \(value)")
    }
    return Int(value)
  }
}

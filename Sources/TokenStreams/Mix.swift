import Files
import Foundation

/// What to do when a source has been read to its end.
package enum Exhaustion: String, Codable, Sendable {
  /// A plan that would read more than there is does not compile.
  case stop
  /// Begin again, in another order.
  case `repeat`
}

/// A named blend of datasets, from a file in Jobs/mixes.
package struct Mix: Codable, Sendable {
  /// One dataset and its share of the tokens.
  package struct Source: Codable, Sendable {
    package let name: String
    package let weight: Int
  }

  package let name: String
  package let sources: [Source]
  package let exhaustion: Exhaustion
  /// Epochs that `repeat` may read of a source before the plan refuses; none: no limit.
  package let maxEpochs: Int?
  /// Shards at the end of every source that training never reads: the validation split.
  package let validationShards: Int
  /// What to tell whoever wrote it.
  package let warnings: [String]

  /// What `validation_shards` was called before, read for one version more.
  private static let formerKey = "holdout_shards"

  private static let keys: [String: Set<String>] = [
    "": ["name", "description", "exhaustion", "max_epochs", "validation_shards", formerKey, "sources"],
    "sources": ["name", "weight", "note"],
  ]

  /// A mix of one dataset, whose last shard is held out.
  package init(of dataset: String) {
    name = dataset
    sources = [Source(name: dataset, weight: 1)]
    exhaustion = .repeat
    maxEpochs = nil
    validationShards = 1
    warnings = []
  }

  /// Reads `name`, a path or the name of a file in `folder`.
  package init(_ name: String, folder: String) throws {
    let path = name.contains("/") || name.hasSuffix(".yaml") ? name : folder + "/" + name + ".yaml"
    guard FileManager.default.fileExists(atPath: path) else {
      let known = ((try? FileManager.default.contentsOfDirectory(atPath: folder)) ?? [])
        .filter { $0.hasSuffix(".yaml") }.map { String($0.dropLast(5)) }.sorted()
      throw FileError(path, "there is no such mix; \(folder) has \(known.joined(separator: ", "))")
    }
    let text = String(decoding: try readFile(path), as: UTF8.self)
    let loaded: Any?
    do { loaded = try parseYAML(text) } catch { throw FileError(path, "is not YAML: \(error)") }
    guard let top = loaded as? [String: Any] else { throw FileError(path, "is not a YAML mapping") }
    func check(_ object: [String: Any], _ place: String) throws {
      if let unknown = object.keys.first(where: { Self.keys[place]?.contains($0) != true }) {
        throw FileError(path, "\(place.isEmpty ? "" : place + ": ")unknown key \(unknown)")
      }
    }
    try check(top, "")
    func value<Value>(_ key: String, _ what: String, _: Value.Type) throws -> Value? {
      guard let given = top[key], !(given is NSNull) else { return nil }
      guard let value = given as? Value else {
        throw FileError(path, "\(key): \("\(given)".prefix(60)) is not \(what)")
      }
      return value
    }
    self.name =
      try value("name", "a text", String.self)
      ?? ((path as NSString).lastPathComponent as NSString).deletingPathExtension
    let exhaustionName = try value("exhaustion", "stop or repeat", String.self) ?? "repeat"
    guard let exhaustion = Exhaustion(rawValue: exhaustionName) else {
      throw FileError(path, "exhaustion: \(exhaustionName) is neither stop nor repeat")
    }
    self.exhaustion = exhaustion
    maxEpochs = try value("max_epochs", "a whole number", Int.self)
    warnings =
      top[Self.formerKey] == nil
      ? [] : ["\(path): \(Self.formerKey) is called validation_shards now; the old name goes with the next version"]
    validationShards =
      try value("validation_shards", "a whole number", Int.self) ?? value(Self.formerKey, "a whole number", Int.self)
      ?? 1
    guard let list = try value("sources", "a list of names and weights", [[String: Any]].self), !list.isEmpty else {
      throw FileError(path, "sources: a list of names and weights is missing")
    }
    sources = try list.map { object in
      try check(object, "sources")
      guard let name = object["name"] as? String, let weight = object["weight"] as? Int,
        (1...Int(Int32.max)).contains(weight)
      else {
        throw FileError(path, "sources: each needs a name and a whole weight from 1 to \(Int32.max)")
      }
      return Source(name: name, weight: weight)
    }
    guard validationShards >= 0, Set(sources.map(\.name)).count == sources.count else {
      throw FileError(path, "validation_shards is negative, or a source is named twice")
    }
  }
}

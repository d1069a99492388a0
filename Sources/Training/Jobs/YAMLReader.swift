import Foundation

/// Reads typed values out of nested YAML mappings and collects every fault, unknown keys included, so that a user
/// sees all errors of a file at once.
package final class YAMLReader {
  private let object: [String: Any]
  private let path: String
  private let faults: Faults
  private var used: Set<String> = []
  /// Where values are looked up that this mapping lacks: the job's `train` for a phase.
  private let fallback: YAMLReader?
  /// Whether the file has something else in the place of this mapping, which was reported: nothing is missing in it then.
  let isMisplaced: Bool

  /// The faults of one file.
  package final class Faults {
    package init() {}
    package fileprivate(set) var lines: [String] = []
  }

  /// - Parameter path: of keys above, for what faults say
  package convenience init(_ object: [String: Any], path: String, faults: Faults, fallback: YAMLReader? = nil) {
    self.init(object, path: path, faults: faults, fallback: fallback, isMisplaced: false)
  }

  private init(
    _ object: [String: Any], path: String, faults: Faults, fallback: YAMLReader?, isMisplaced: Bool
  ) {
    self.isMisplaced = isMisplaced
    self.object = object
    self.path = path
    self.faults = faults
    self.fallback = fallback
  }

  package func fault(_ key: String, _ reason: String) {
    faults.lines.append("\(path.isEmpty ? "" : path + ".")\(key): \(reason)")
  }

  private func value(_ key: String) -> Any? {
    used.insert(key)
    if let value = object[key], !(value is NSNull) { return value }
    return fallback?.value(key)
  }

  private func typed<Value>(_ key: String, _ what: String, _ convert: (Any) -> Value?) -> Value? {
    guard let raw = value(key) else { return nil }
    guard let value = convert(raw) else {
      fault(key, "\(raw) is not \(what)")
      return nil
    }
    return value
  }

  package func string(_ key: String) -> String? {
    typed(key, "a text") { $0 as? String ?? ($0 as? Int).map(String.init) }
  }

  package func required(_ key: String, _ what: String) -> String {
    if let value = string(key) { return value }
    demand(key, what)
    return ""
  }

  /// Reports a key that is not given and must be; one of a wrong type is reported by whoever reads it.
  package func demand(_ key: String, _ what: String) {
    if !isGiven(key), !isMisplaced { fault(key, "is missing: \(what)") }
  }

  package func boolean(_ key: String) -> Bool? { typed(key, "true or false") { $0 as? Bool } }

  /// No count of a job comes near it, and no product of two can overflow.
  package static let most = Int(Int32.max)

  package func integer(_ key: String, from least: Int = 0, to most: Int = most) -> Int? {
    guard let value = typed(key, "a whole number", { $0 as? Int }) else { return nil }
    guard value >= least else {
      fault(key, "must be at least \(least), not \(value)")
      return nil
    }
    guard value <= most else {
      fault(key, "must be at most \(most), not \(value)")
      return nil
    }
    return value
  }

  package func number(_ key: String, from least: Double = 0, to most: Double = 1e9) -> Double? {
    // YAML 1.1 takes 3e-4 for a text.
    let value = typed(key, "a number") { raw in
      raw as? Double ?? (raw as? Int).map(Double.init) ?? (raw as? String).flatMap(Double.init)
    }
    guard let value else { return nil }
    guard value >= least else {
      fault(key, "must be at least \(least), not \(value)")
      return nil
    }
    guard value <= most else {
      fault(key, "must be \(most == 1.0.nextDown ? "below 1" : "at most \(most)"), not \(value)")
      return nil
    }
    return value
  }

  /// A count of tokens: 1000000, 1M, 50B. Exact is whether it was given to the token.
  func tokens(_ key: String) -> (count: Int, isExact: Bool)? {
    typed(key, "a count of tokens such as 500K, 20M or 50B") { raw -> (count: Int, isExact: Bool)? in
      if let count = raw as? Int { return (1..<1_000_000_000_000_000).contains(count) ? (count, true) : nil }
      guard let text = raw as? String, let suffix = text.last,
        let factor = ["K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12][suffix.uppercased()],
        let number = Double(text.dropLast()), number * factor >= 1, number * factor < 1e15
      else { return nil }
      return (Int(number * factor), false)
    }
  }

  package func choice<Value: RawRepresentable & CaseIterable>(_ key: String, _: Value.Type) -> Value?
  where Value.RawValue == String {
    let known = Value.allCases.map(\.rawValue).joined(separator: ", ")
    return typed(key, "one of \(known)") { ($0 as? String).flatMap(Value.init(rawValue:)) }
  }

  package func list<Value: RawRepresentable & CaseIterable>(_ key: String, _: Value.Type) -> [Value]?
  where Value.RawValue == String {
    let known = Value.allCases.map(\.rawValue).joined(separator: ", ")
    return typed(key, "a list of \(known)") { raw in
      guard let names = raw as? [String] else { return (raw as? [Any])?.isEmpty == true ? [] : nil }
      let values = names.compactMap(Value.init(rawValue:))
      return values.count == names.count ? values : nil
    }
  }

  /// Texts: a list, or a single one.
  package func strings(_ key: String) -> [String]? {
    typed(key, "a list of texts") { raw in raw as? [String] ?? (raw as? String).map { [$0] } }
  }

  /// Whole numbers above zero, none larger than ``most``.
  package func counts(_ key: String) -> [Int]? {
    typed(key, "a list of numbers above zero") { raw in
      guard let values = raw as? [Int] else { return nil }
      return values.allSatisfy { (1...Self.most).contains($0) } ? values : nil
    }
  }

  /// Whether a value was found, here or where this mapping falls back on; it may be of a wrong type.
  package func isGiven(_ key: String) -> Bool { value(key) != nil }

  /// Whether the file gives this key a value; `null` is none.
  package func has(_ key: String) -> Bool { object[key].map { !($0 is NSNull) } ?? false }

  /// The mapping at `key`; an empty one where there is none.
  package func section(_ key: String) -> YAMLReader {
    let child = typed(key, "a mapping") { $0 as? [String: Any] }
    return YAMLReader(
      child ?? [:], path: path.isEmpty ? key : path + "." + key, faults: faults, fallback: nil,
      isMisplaced: child == nil && isGiven(key))
  }

  /// The mappings in the list at `key`, each falling back on `fallback`.
  func sections(_ key: String, fallback: YAMLReader? = nil) -> [YAMLReader]? {
    typed(key, "a list of mappings") { $0 as? [[String: Any]] }?.enumerated().map { index, object in
      YAMLReader(
        object, path: (path.isEmpty ? "" : path + ".") + "\(key)[\(index)]", faults: faults, fallback: fallback)
    }
  }

  /// Reports the keys that nothing asked for, with the nearest one that something did.
  package func rejectUnknownKeys(known: Set<String> = []) {
    let known = used.union(known)
    for key in object.keys.sorted() where !known.contains(key) {
      if key.utf8.count > 60 {
        fault(String(key.prefix(60)) + "…", "is not a key of this file")
        continue
      }
      let nearest = known.min { Self.distance(key, $0) < Self.distance(key, $1) }
      let hint = nearest.map { Self.distance(key, $0) < min(4, key.count) ? "; did you mean \($0)?" : "" } ?? ""
      fault(key, "is not a key of this file\(hint)")
    }
  }

  var keysAsked: Set<String> { used }

  /// Levenshtein's edit distance.
  private static func distance(_ a: String, _ b: String) -> Int {
    let (a, b) = (Array(a), Array(b))
    var row = Array(0...b.count)
    for (i, x) in a.enumerated() {
      var diagonal = row[0]
      row[0] = i + 1
      for (j, y) in b.enumerated() {
        let substituted = diagonal + (x == y ? 0 : 1)
        diagonal = row[j + 1]
        row[j + 1] = min(substituted, row[j] + 1, diagonal + 1)
      }
    }
    return row[b.count]
  }
}

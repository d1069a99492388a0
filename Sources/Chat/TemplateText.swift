/// Methods of texts and objects, by scalars as in Python.
enum TemplateText {
  private static func isSpace(_ scalar: Unicode.Scalar) -> Bool { scalar.properties.isWhitespace }

  static func trimmed(_ text: String) -> String {
    stripped(text, "", left: true, right: true)
  }

  /// Without the characters of `set`, or white space where that is empty, at its ends.
  private static func stripped(_ text: String, _ set: String, left: Bool, right: Bool) -> String {
    var view = Substring(text).unicodeScalars
    let scalars = Set(set.unicodeScalars)
    func goes(_ scalar: Unicode.Scalar) -> Bool { set.isEmpty ? isSpace(scalar) : scalars.contains(scalar) }
    if left { while let first = view.first, goes(first) { view.removeFirst() } }
    if right { while let last = view.last, goes(last) { view.removeLast() } }
    return String(String.UnicodeScalarView(view))
  }

  /// Where `piece` first is in `text`.
  static func range(of piece: String, in text: String) -> Range<String.Index>? {
    text.unicodeScalars.firstRange(of: piece.unicodeScalars)
  }

  static func method(
    _ base: TemplateValue, _ name: String, _ arguments: [TemplateValue]
  ) throws(TemplateError) -> TemplateValue {
    func text(_ index: Int) throws(TemplateError) -> String {
      guard index < arguments.count, case .string(let text) = arguments[index] else {
        throw TemplateError("\(name) takes a text")
      }
      return text
    }
    switch (base, name) {
    case (.object(let members), "items"): return .list(members.map { .list([.string($0.key), $0.value]) })
    case (.object(let members), "keys"): return .list(members.map { .string($0.key) })
    case (.object(let members), "values"): return .list(members.map(\.value))
    case (.object, "get"):
      let value = base.member(try text(0))
      if case .undefined = value { return arguments.count > 1 ? arguments[1] : .none }
      return value
    case (.string(let own), "strip"), (.string(let own), "lstrip"), (.string(let own), "rstrip"):
      let set = arguments.isEmpty ? "" : try text(0)
      return .string(stripped(own, set, left: name != "rstrip", right: name != "lstrip"))
    case (.string(let own), "split"):
      if arguments.isEmpty {
        return .list(
          own.unicodeScalars.split(whereSeparator: isSpace).map { .string(String(String.UnicodeScalarView($0))) })
      }
      let separator = try text(0)
      guard !separator.isEmpty else { throw TemplateError("split takes a text that is not empty") }
      return .list(split(own, at: separator).map { .string($0) })
    case (.string(let own), "startswith"): return .boolean(own.unicodeScalars.starts(with: try text(0).unicodeScalars))
    case (.string(let own), "endswith"):
      return .boolean(own.unicodeScalars.reversed().starts(with: try text(0).unicodeScalars.reversed()))
    case (.string(let own), "replace"):
      let (old, new) = (try text(0), try text(1))
      guard !old.isEmpty else { throw TemplateError("replace takes a text that is not empty") }
      let pieces = split(own, at: old)
      guard own.utf8.count + pieces.count * new.utf8.count <= 16 << 20 else {
        throw TemplateError("replace makes too long a text")
      }
      return .string(pieces.joined(separator: new))
    case (.string(let own), "upper"): return .string(own.uppercased())
    case (.string(let own), "lower"): return .string(own.lowercased())
    case (.string(let own), "title"), (.string(let own), "capitalize"):
      guard own.utf8.allSatisfy({ $0 < 0x80 }) else {
        throw TemplateError("\(name) of other than ASCII is not supported")
      }
      return .string(name == "title" ? own.capitalized(everyWord: true) : own.capitalized(everyWord: false))
    default: throw TemplateError("the method \(name) is not supported")
    }
  }

  private static func split(_ text: String, at separator: String) -> [String] {
    var parts: [String] = []
    var rest = Substring(text).unicodeScalars
    while let found = rest.firstRange(of: separator.unicodeScalars) {
      parts.append(String(String.UnicodeScalarView(rest[..<found.lowerBound])))
      rest = rest[found.upperBound...]
    }
    return parts + [String(String.UnicodeScalarView(rest))]
  }
}

extension String {
  /// ASCII words with a capital first and small letters behind.
  fileprivate func capitalized(everyWord: Bool) -> String {
    var begins = true
    return String(
      map { character in
        defer { begins = everyWord && !character.isLetter }
        return Character(begins ? character.uppercased() : character.lowercased())
      })
  }
}

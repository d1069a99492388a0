import JSON

/// The steps of a `tokenizer.json`; what none of the known families does is refused by name.
extension TokenizerSteps {
  init(_ file: JSONValue, path: String) throws {
    func fail(_ reason: String) -> TokenizerError { TokenizerError(path: path, reason: reason) }
    for step in Self.sequence(file["normalizer"], "normalizers") {
      switch step["type"]?.text {
      case "NFC" where !prepends && !replacesSpaces: composes = true
      case "Prepend" where step["prepend"]?.bytes == Self.space && !replacesSpaces: prepends = true
      case "Replace" where step["pattern"]?["String"]?.text == " " && step["content"]?.bytes == Self.space:
        replacesSpaces = true
      case let type: throw fail("the normalizer \(type ?? "without a type") is not supported, or not in this place")
      }
    }
    guard !prepends || replacesSpaces else { throw fail("a Prepend without a Replace of spaces is not supported") }
    pieces = try Self.pieces(Self.sequence(file["pre_tokenizer"], "pretokenizers"), replaces: replacesSpaces, fail)
    guard !isByteLevel || !replacesSpaces else { throw fail("a ByteLevel behind a Replace of spaces is not supported") }
    guard isByteLevel || !composes else { throw fail("an NFC without a ByteLevel is not supported") }
  }

  /// The steps of a sequence, or the one that stands alone.
  static func sequence(_ value: JSONValue?, _ key: String) -> [JSONValue] {
    guard let value, !value.isNull else { return [] }
    // A sequence may leave out its type.
    guard let steps = value[key]?.list else { return [value] }
    return steps
  }

  private static func pieces(
    _ steps: [JSONValue], replaces: Bool, _ fail: (String) -> TokenizerError
  ) throws -> Pieces {
    guard let last = steps.last else { return .whole }
    let rest = steps.dropLast()
    switch last["type"]?.text {
    case "ByteLevel":
      guard last["add_prefix_space"]?.boolean == false else {
        throw fail("a ByteLevel that adds a space before the text is not supported")
      }
      if last["use_regex"]?.boolean ?? true {
        if rest.isEmpty { return .gpt2(isolatesDigits: false) }
        guard rest.count == 1, rest[0]["type"]?.text == "Digits", rest[0]["individual_digits"]?.boolean == true else {
          throw fail("only Digits, one by one, are supported before a ByteLevel with its pattern")
        }
        return .gpt2(isolatesDigits: true)
      }
      guard rest.count == 1, rest[0]["type"]?.text == "Split", rest[0]["behavior"]?.text == "Isolated",
        rest[0]["invert"]?.boolean == false, let regex = rest[0]["pattern"]?["Regex"]?.text
      else { throw fail("the pre-tokenizer is not a Split by pattern and a ByteLevel, as Qwen2.5's is") }
      switch regex {
      case PreTokenizer.pattern(digits: ""): return .qwen2(maximalDigits: 1)
      case PreTokenizer.pattern(digits: "{1,3}"): return .qwen2(maximalDigits: 3)
      default: throw fail("the pre-tokenizer's pattern is not Qwen2's or cl100k's: \(regex)")
      }
    case "Metaspace" where rest.isEmpty && !replaces && last["replacement"]?.bytes == Self.space:
      let isAdded = last["add_prefix_space"]?.boolean ?? true
      let scheme = last["prepend_scheme"]?.text ?? (isAdded ? "always" : "never")
      guard let prefix = Prefix(rawValue: scheme) else { throw fail("Metaspace: prepend_scheme \(scheme) is unknown") }
      return .metaspace(prefix, splits: last["split"]?.boolean ?? true)
    // Gemma's: no space is left that it could split at.
    case "Split" where rest.isEmpty && replaces && last["pattern"]?["String"]?.text == " ": return .whole
    case let type: throw fail("the pre-tokenizer \(type ?? "without a type") is not supported, or not in this place")
    }
  }
}

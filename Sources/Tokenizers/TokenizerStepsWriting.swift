import JSON

/// The steps as `tokenizer.json` spells them.
extension TokenizerSteps {
  var json: (normalizer: JSONValue, preTokenizer: JSONValue, decoder: JSONValue) {
    let space = JSONValue.string(Self.space)
    var normalizers: [JSONValue] = []
    if composes { normalizers.append(["type": "NFC"]) }
    if prepends { normalizers.append(["type": "Prepend", "prepend": space]) }
    if replacesSpaces { normalizers.append(["type": "Replace", "pattern": ["String": " "], "content": space]) }
    let normalizer: JSONValue =
      normalizers.count > 1 ? ["type": "Sequence", "normalizers": .list(normalizers)] : normalizers.first ?? .null
    func byteLevel(regex: Bool) -> JSONValue {
      ["type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": .boolean(regex)]
    }
    func sequence(_ steps: JSONValue...) -> JSONValue { ["type": "Sequence", "pretokenizers": .list(steps)] }
    switch pieces {
    case .qwen2(let digits):
      let pattern = PreTokenizer.pattern(digits: digits == 1 ? "" : "{1,\(digits)}")
      let split: JSONValue = [
        "type": "Split", "pattern": ["Regex": JSONValue(pattern)], "behavior": "Isolated", "invert": false,
      ]
      return (normalizer, sequence(split, byteLevel(regex: false)), byteLevel(regex: true))
    case .gpt2(let isolatesDigits):
      let regex = byteLevel(regex: true)
      let digits: JSONValue = ["type": "Digits", "individual_digits": true]
      return (normalizer, isolatesDigits ? sequence(digits, regex) : regex, regex)
    case .metaspace(let prefix, let splits):
      let metaspace: JSONValue = [
        "type": "Metaspace", "replacement": space, "prepend_scheme": JSONValue(prefix.rawValue),
        "split": .boolean(splits),
      ]
      return (normalizer, metaspace, Self.spaceDecoder(strips: prefix != .never))
    case .whole: return (normalizer, .null, Self.spaceDecoder(strips: prepends))
    }
  }

  private static func spaceDecoder(strips: Bool) -> JSONValue {
    let steps: [JSONValue] = [
      ["type": "Replace", "pattern": ["String": .string(space)], "content": " "], ["type": "ByteFallback"],
      ["type": "Fuse"],
    ]
    let strip: JSONValue = ["type": "Strip", "content": " ", "start": 1, "stop": 0]
    return ["type": "Sequence", "decoders": .list(strips ? steps + [strip] : steps)]
  }
}

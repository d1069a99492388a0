/// The steps as `tokenizer.json` spells them.
extension TokenizerSteps {
  var json: (normalizer: JSONText, preTokenizer: JSONText, decoder: JSONText) {
    let space = JSONText.string(Self.space)
    var normalizers: [JSONText] = []
    if composes { normalizers.append(["type": "NFC"]) }
    if prepends { normalizers.append(["type": "Prepend", "prepend": space]) }
    if replacesSpaces { normalizers.append(["type": "Replace", "pattern": ["String": " "], "content": space]) }
    let normalizer: JSONText =
      normalizers.count > 1 ? ["type": "Sequence", "normalizers": .list(normalizers)] : normalizers.first ?? .null
    func byteLevel(regex: Bool) -> JSONText {
      ["type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": .boolean(regex)]
    }
    func sequence(_ steps: JSONText...) -> JSONText { ["type": "Sequence", "pretokenizers": .list(steps)] }
    switch pieces {
    case .qwen2(let digits):
      let pattern = PreTokenizer.pattern(digits: digits == 1 ? "" : "{1,\(digits)}")
      let split: JSONText = [
        "type": "Split", "pattern": ["Regex": JSONText(pattern)], "behavior": "Isolated", "invert": false,
      ]
      return (normalizer, sequence(split, byteLevel(regex: false)), byteLevel(regex: true))
    case .gpt2(let isolatesDigits):
      let regex = byteLevel(regex: true)
      let digits: JSONText = ["type": "Digits", "individual_digits": true]
      return (normalizer, isolatesDigits ? sequence(digits, regex) : regex, regex)
    case .metaspace(let prefix, let splits):
      let metaspace: JSONText = [
        "type": "Metaspace", "replacement": space, "prepend_scheme": JSONText(prefix.rawValue),
        "split": .boolean(splits),
      ]
      return (normalizer, metaspace, Self.spaceDecoder(strips: prefix != .never))
    case .whole: return (normalizer, .null, Self.spaceDecoder(strips: prepends))
    }
  }

  private static func spaceDecoder(strips: Bool) -> JSONText {
    let steps: [JSONText] = [
      ["type": "Replace", "pattern": ["String": .string(space)], "content": " "], ["type": "ByteFallback"],
      ["type": "Fuse"],
    ]
    let strip: JSONText = ["type": "Strip", "content": " ", "start": 1, "stop": 0]
    return ["type": "Sequence", "decoders": .list(strips ? steps + [strip] : steps)]
  }
}

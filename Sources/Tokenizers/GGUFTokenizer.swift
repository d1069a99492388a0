import GGUF

/// The tokenizer that a GGUF file carries.
extension TokenizerDescription {
  /// Kinds of token, as the file numbers them.
  private enum Kind: Int {
    case normal = 1
    case unknown = 2
    case control = 3
    case userDefined = 4
    case unused = 5
    case byte = 6
  }

  package init(_ file: GGUFFile, name: String) throws {
    self.init(path: file.path, name: name)
    func value(_ key: String) -> GGUFValue? { file.metadata["tokenizer.ggml." + key] }
    func strings(_ key: String) throws -> [[UInt8]] {
      guard let list = value(key)?.list, case let strings = list.compactMap(\.bytes), strings.count == list.count else {
        throw fail("tokenizer.ggml.\(key) is missing, or no list of strings")
      }
      return strings
    }
    guard let model = value("model")?.text else { throw fail("has no tokenizer (tokenizer.ggml.model)") }
    let tokens = try strings("tokens")
    for (id, token) in tokens.enumerated() { vocabulary[token] = id }
    let kinds = value("token_type")?.list?.map { $0.integer.flatMap(Kind.init(rawValue:)) } ?? []
    guard kinds.isEmpty || kinds.count == tokens.count, !kinds.contains(nil) else {
      throw fail("tokenizer.ggml.token_type does not say of every token what kind it is")
    }
    for (id, kind) in kinds.enumerated() where kind == .control || kind == .userDefined {
      added.append(AddedToken(content: tokens[id], id: id, isSpecial: kind == .control))
    }
    if let end = value("eos_token_id")?.integer, tokens.indices.contains(end) { endOfText = tokens[end] }
    let adds: Bool
    switch model {
    case "gpt2":
      let name = value("pre")?.text ?? "default"
      switch name {
      case "smollm": steps.pieces = .gpt2(isolatesDigits: true)
      case "gpt-2", "default": steps.pieces = .gpt2(isolatesDigits: false)
      case "qwen2": steps = TokenizerSteps(composes: true, pieces: .qwen2(maximalDigits: 1))
      case "llama-bpe", "llama-v3", "llama3":
        steps.pieces = .qwen2(maximalDigits: 3)
        ignoresMerges = true
      default: throw fail("tokenizer.ggml.pre \(name) is not supported (smollm, qwen2, llama-bpe and gpt-2 are)")
      }
      for line in try strings("merges") { try merge(line: line[...]) }
      adds = ignoresMerges
    case "llama":
      steps = TokenizerSteps(prepends: value("add_space_prefix")?.boolean ?? true, replacesSpaces: true)
      guard let scores = value("scores")?.list?.map({ $0.number ?? .nan }), scores.count == tokens.count,
        !scores.contains(where: \.isNaN)
      else { throw fail("tokenizer.ggml.scores does not give every token a number") }
      merge(tokens, scores)
      adds = true
    default: throw fail("tokenizer.ggml.model \(model) is not supported (gpt2 and llama are)")
    }
    if value("add_bos_token")?.boolean ?? adds {
      guard let begin = value("bos_token_id")?.integer, tokens.indices.contains(begin) else {
        throw fail("tokenizer.ggml.bos_token_id is missing, or no token")
      }
      beginOfText = begin
    }
  }

  /// The merges of a vocabulary with scores: every way of making a token of two, tokens with the highest score first, and
  /// of a token those with the longest left part; the order in which transformers' converters write them.
  private mutating func merge(_ tokens: [[UInt8]], _ scores: [Double]) {
    var ways: [(score: Double, left: Int, right: Int, merged: Int, lengths: (Int, Int))] = []
    for (id, token) in tokens.enumerated() where vocabulary[token] == id {
      // Where characters begin.
      let starts = token.indices.dropFirst().filter { token[$0] & 0xC0 != 0x80 }
      var found: [(Int, Int, Int)] = []
      for (index, start) in starts.enumerated() {
        guard let left = vocabulary[Array(token[..<start])], let right = vocabulary[Array(token[start...])] else {
          continue
        }
        found.append((left, right, index + 1))
      }
      found.sort { ($0.0, $0.1) < ($1.0, $1.1) }
      for (left, right, length) in found {
        ways.append((scores[id], left, right, id, (length, starts.count + 1 - length)))
      }
    }
    // The sort is stable where everything else is equal.
    let order = ways.indices.sorted { a, b in
      let (x, y) = (ways[a], ways[b])
      if x.score != y.score { return x.score > y.score }
      if x.lengths != y.lengths { return x.lengths > y.lengths }
      return a < b
    }
    merges = order.map { (ways[$0].left, ways[$0].right, ways[$0].merged) }
  }
}

import Foundation
import JSON

/// Writing a tokenizer as Hugging Face's files, for models that come in another form.
extension TokenizerDescription {
  /// The content of a `tokenizer.json`.
  package func tokenizerJSON() throws -> Data {
    var spellings: [Int: [UInt8]] = [:]
    for (token, id) in vocabulary { spellings[id] = token }
    let (normalizer, preTokenizer, decoder) = steps.json
    var processor = JSONValue.null
    if let beginOfText, let token = spellings[beginOfText] ?? added.first(where: { $0.id == beginOfText })?.content {
      let begin: JSONValue = ["SpecialToken": ["id": .string(token), "type_id": 0]]
      func text(_ name: JSONValue, _ type: JSONValue) -> JSONValue { ["Sequence": ["id": name, "type_id": type]] }
      let special: JSONValue = [
        "id": .string(token), "ids": .list([JSONValue(beginOfText)]), "tokens": .list([.string(token)]),
      ]
      processor = [
        "type": "TemplateProcessing", "single": [begin, text("A", 0)],
        "pair": [begin, text("A", 0), begin, text("B", 1)],
        "special_tokens": .object([(token, special)]),
      ]
    }
    let isByteLevel = steps.isByteLevel
    let file: JSONValue = [
      "version": "1.0", "truncation": .null, "padding": .null,
      "added_tokens": .list(
        added.sorted { $0.id < $1.id }.map { token in
          [
            "id": JSONValue(token.id), "content": .string(token.content), "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": .boolean(token.isNormalized), "special": .boolean(token.isSpecial),
          ]
        }),
      "normalizer": normalizer, "pre_tokenizer": preTokenizer, "post_processor": processor, "decoder": decoder,
      "model": [
        "type": "BPE", "dropout": .null, "unk_token": isByteLevel ? .null : "<unk>", "continuing_subword_prefix": .null,
        "end_of_word_suffix": .null, "fuse_unk": .boolean(!isByteLevel), "byte_fallback": .boolean(!isByteLevel),
        "ignore_merges": .boolean(ignoresMerges),
        "vocab": .object(
          vocabulary.sorted { ($0.value, $0.key.count) < ($1.value, $1.key.count) }.map {
            ($0.key, JSONValue($0.value))
          }
        ),
        "merges": .list(
          merges.map { .list([.string(spellings[$0.left] ?? []), .string(spellings[$0.right] ?? [])]) }),
      ],
    ]
    return Self.data(file)
  }

  /// The content of a `tokenizer_config.json`.
  ///
  /// - Parameter chatTemplate: the model's template, where it has one
  package func configurationJSON(chatTemplate: [UInt8]?) -> Data {
    var members: [(key: [UInt8], value: JSONValue)] = []
    func add(_ key: String, _ value: JSONValue) { members.append((Array(key.utf8), value)) }
    add("tokenizer_class", "PreTrainedTokenizerFast")
    add("clean_up_tokenization_spaces", false)
    add("add_bos_token", .boolean(beginOfText != nil))
    if let beginOfText, let token = vocabulary.first(where: { $0.value == beginOfText })?.key {
      add("bos_token", .string(token))
    }
    if let endOfText { add("eos_token", .string(endOfText)) }
    if let chatTemplate { add("chat_template", .string(chatTemplate)) }
    return Self.data(.object(members))
  }

  private static func data(_ value: JSONValue) -> Data {
    var out: [UInt8] = []
    value.append(to: &out)
    out.append(UInt8(ascii: "\n"))
    return Data(out)
  }
}

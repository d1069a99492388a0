import Foundation

/// A message of a conversation.
package struct ChatMessage: Sendable {
  /// `system`, `user` or `assistant`.
  package let role: String
  package let content: String

  package init(role: String, content: String) { (self.role, self.content) = (role, content) }
}

/// How a model wants conversations spelled: a template in the part of Jinja that models' templates use.
///
/// It may be used by several threads at once: what a template makes while it runs belongs to that run.
package struct ChatTemplate: @unchecked Sendable, CustomStringConvertible {
  /// The template's text, which is all that decides what it does but the two tokens.
  package let source: String
  private let nodes: [TemplateNode]
  /// The spellings that templates call `bos_token` and `eos_token`.
  private let beginOfText: String
  private let endOfText: String

  package init(_ source: String, beginOfText: String = "", endOfText: String = "") throws {
    guard source.utf8.count <= 1 << 20 else { throw TemplateError("is longer than a megabyte") }
    self.source = source
    nodes = try TemplateParser.parse(source)
    (self.beginOfText, self.endOfText) = (beginOfText, endOfText)
  }

  /// The template among the files of the model folder `path`: `chat_template.jinja`, or in `tokenizer_config.json`; nil where
  /// there is none.
  package init?(folder path: String) throws {
    let configuration = FileManager.default.contents(atPath: path + "/tokenizer_config.json").flatMap {
      try? JSONSerialization.jsonObject(with: $0) as? [String: Any]
    }
    func token(_ key: String) -> String {
      let value = configuration?[key]
      return value as? String ?? (value as? [String: Any])?["content"] as? String ?? ""
    }
    let named = configuration?["chat_template"] as? [[String: Any]]
    let source =
      FileManager.default.contents(atPath: path + "/chat_template.jinja").map { String(decoding: $0, as: UTF8.self) }
      ?? configuration?["chat_template"] as? String
      ?? named?.first { $0["name"] as? String == "default" }?["template"] as? String
    guard let source else { return nil }
    try self.init(source, beginOfText: token("bos_token"), endOfText: token("eos_token"))
  }

  package var description: String { "\(source)|\(beginOfText)|\(endOfText)" }

  /// A conversation in pieces, of which the assistant's answers count in a loss: from behind what an answer is asked with to
  /// its end.
  package func pieces(_ messages: [ChatMessage]) throws -> [(text: String, counts: Bool)] {
    let whole = Array(try text(messages, asksForAnswer: false).utf8)
    var pieces: [(text: String, counts: Bool)] = []
    var done = 0
    func add(upTo end: Int, counts: Bool) {
      if end > done { pieces.append((String(decoding: whole[done..<end], as: UTF8.self), counts)) }
      done = max(done, end)
    }
    for (index, message) in messages.enumerated() where message.role == "assistant" {
      let asked = Array(try text(Array(messages[..<index]), asksForAnswer: true).utf8)
      let answered = Array(try text(Array(messages[...index]), asksForAnswer: false).utf8)
      guard whole.starts(with: asked), whole.starts(with: answered), done <= asked.count, asked.count <= answered.count
      else {
        throw TemplateError(
          "spells the beginning of a conversation otherwise once it goes on, so that nobody can say where answer "
            + "\(index) lies; leave out earlier answers, or use another template")
      }
      add(upTo: asked.count, counts: false)
      add(upTo: answered.count, counts: true)
    }
    add(upTo: whole.count, counts: false)
    return pieces
  }

  /// The text of a conversation.
  ///
  /// - Parameter asksForAnswer: ends with what an answer of the assistant begins with
  package func text(_ messages: [ChatMessage], asksForAnswer: Bool) throws -> String {
    let list = messages.map { TemplateValue.object([("role", .string($0.role)), ("content", .string($0.content))]) }
    return try TemplateInterpreter.run(
      nodes,
      [
        "messages": .list(list), "add_generation_prompt": .boolean(asksForAnswer), "bos_token": .string(beginOfText),
        "eos_token": .string(endOfText), "tools": .none, "documents": .none,
      ])
  }
}

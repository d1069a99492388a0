import Chat
import Foundation
import TestSupport
import Testing

/// Templates written like those of the families, against what Jinja makes of them (Tests/Interop/make_chat_fixtures.py).
@Suite struct ChatTemplateTests {
  private static let folder = repository + "/Tests/Fixtures/chat/"

  private struct Expected: Decodable {
    let conversations: [[[String]]]
    let texts: [String: [String?]]
  }

  @Test func textsAreJinjas() throws {
    let expected = try JSONDecoder().decode(
      Expected.self, from: Data(contentsOf: URL(fileURLWithPath: Self.folder + "expected.json")))
    var compared = 0
    for (name, texts) in expected.texts {
      let source = try String(contentsOfFile: Self.folder + name + ".jinja", encoding: .utf8)
      let template = try ChatTemplate(source, beginOfText: "<bos>", endOfText: "<eos>")
      for (index, text) in texts.enumerated() {
        let messages = expected.conversations[index / 2].map { ChatMessage(role: $0[0], content: $0[1]) }
        let found = try? template.text(messages, asksForAnswer: index % 2 == 1)
        #expect(found.map { Array($0.utf8) } == text.map { Array($0.utf8) }, "\(name), conversation \(index / 2)")
        compared += 1
      }
    }
    #expect(compared == 70)
  }

  /// What is not computed is refused, and what does not end ends.
  @Test(arguments: [
    "{% macro f() %}{% endmacro %}", "{{ messages | selectattr('role') }}", "{{ strftime_now('%d') }}", "{% if %}",
    "{{ 'open", "{% for x in messages %}", "{{ messages[0].content.format(1) }}", "{% include 'x' %}", "{{ x.y }}",
    "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
    "{% set n = namespace(s='aaaaaaaa') %}{% for a in range(64) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "{% set n = namespace(s=['a']) %}{% for a in range(64) %}{% set n.s = [n.s, n.s] %}{% endfor %}{{ n.s }}",
    "{% set n = namespace(s='aaaaaaaa') %}{% for a in range(20) %}{% set n.s = n.s + n.s %}{% endfor %}"
      + "{{ [n.s, n.s, n.s, n.s] | join(n.s) }}",
    "{{ range(-9223372036854775807, 9223372036854775807) }}", "{{ 1 // 0 }}", "{{ messages[::0] }}",
    "{{ raise_exception('no') }}",
  ]) func othersAreRefused(source: String) {
    #expect(throws: TemplateError.self) {
      try ChatTemplate(source).text([ChatMessage(role: "user", content: "x")], asksForAnswer: true)
    }
  }

  /// Quotients are rounded down and remainders have the divisor's sign, as Python's, of the largest numbers, too.
  @Test func quotientsAreRoundedDown() throws {
    for (source, expected) in [
      ("{{ -7 // 2 }} {{ -7 % 2 }} {{ 7 // -2 }} {{ 7 % -2 }} {{ -8 // 2 }} {{ -8 % 2 }}", "-4 1 -4 -1 -4 0"),
      ("{{ 9223372036854775807 % 9223372036854775806 }}", "1"), ("{{ 9223372036854775807 % -2 }}", "-1"),
      ("{{ -9223372036854775807 // 2 }}", "-4611686018427387904"),
      ("{{ -9223372036854775807 % 9223372036854775807 }}", "0"),
    ] {
      #expect(try ChatTemplate(source).text([], asksForAnswer: false) == expected, "\(source)")
    }
  }

  @Test func nestingIsBounded() {
    let deep = String(repeating: "(", count: 100_000)
    #expect(throws: TemplateError.self) { try ChatTemplate("{{ \(deep) }}") }
    #expect(throws: TemplateError.self) { try ChatTemplate(String(repeating: "{% if true %}", count: 10_000)) }
    #expect(throws: TemplateError.self) { try ChatTemplate("{{ " + String(repeating: "not ", count: 100_000) + "x }}") }
  }

  /// Of a conversation the answers count, each to its end.
  @Test func answersCount() throws {
    func template(_ name: String) throws -> ChatTemplate {
      try ChatTemplate(String(contentsOfFile: Self.folder + name + ".jinja", encoding: .utf8))
    }
    let messages = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")].map {
      ChatMessage(role: $0.0, content: $0.1)
    }
    let pieces = try template("smollm2").pieces(messages)
    #expect(pieces.map(\.counts) == [false, true, false, true])
    #expect(pieces[1].text == "b<|im_end|>\n" && pieces[3].text == "d<|im_end|>\n")
    #expect(pieces[2].text == "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n")
    #expect(try pieces.map(\.text).joined() == template("smollm2").text(messages, asksForAnswer: false))
    // Qwen3's takes the thoughts out of answers once a question follows.
    let thinking = messages.map {
      ChatMessage(role: $0.role, content: $0.role == "assistant" ? "<think>x</think>y" : "a")
    }
    #expect(throws: TemplateError.self) { try template("qwen3").pieces(thinking) }
  }
}

import Chat
import Files
import Foundation
import Parallel
import TestSupport
import Testing
import TokenStreams
import Tokenizers

/// Conversations in a model's chat template as training data: `tokens build --chat`.
@Suite struct ConversationTests {
  private static let fixtures = repository + "/Tests/Fixtures/"

  private func build(
    _ lines: [String], _ tokenizer: any Tokenizer, _ template: ChatTemplate, in folder: TemporaryFolder
  ) throws -> (tokens: [UInt32], counted: [UInt32], manifest: Manifest) {
    let path = folder.path + "/chat.jsonl"
    try Data(lines.joined(separator: "\n").utf8).write(to: URL(fileURLWithPath: path))
    let recipe = DatasetRecipe(
      name: "set", standsInFor: nil, inputs: [path], format: .conversations(field: "messages", template: template),
      codec: .rank, shardTokens: 1 << 20, level: 3)
    let output = folder.path + "/set"
    let manifest = try DatasetBuilder(
      recipe, tokenizer: tokenizer, folder: output, pool: ThreadPool(threads: 2)
    ).run { _, _ in }
    let shard = try Dataset(output).shard(0)
    var tokens: [UInt32] = []
    try shard.read(0..<shard.tokenCount, into: &tokens)
    return (tokens, tokens.indices.filter { shard.index.counts($0) }.map { tokens[$0] }, manifest)
  }

  /// The tokens are those of the whole conversation as the template spells it, the token before a text once; what counts is
  /// what the assistant says, up to and with what ends its turn, and the end of the document.
  @Test func answersAloneCount() throws {
    let folder = try TemporaryFolder()
    let tokenizer = try makeTokenizer(Self.fixtures + "tokenizers/gemma")
    let source = try String(contentsOfFile: Self.fixtures + "chat/gemma.jinja", encoding: .utf8)
    let template = try ChatTemplate(source, beginOfText: "<bos>", endOfText: "<eos>")
    let built = try build(
      [
        #"{"messages": [{"role": "user", "content": "Who wrote it?"}, {"role": "assistant", "content": "She did."}, "#
          + #"{"role": "user", "content": "When?"}, {"role": "assistant", "content": "In the year 12."}], "id": 7}"#,
        #"{"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "the the"}]}"#,
      ], tokenizer, template, in: folder)
    func text(_ tokens: [UInt32]) -> String { String(decoding: tokenizer.decode(tokens), as: UTF8.self) }
    #expect(
      text(built.tokens)
        == "<bos><start_of_turn>user\nWho wrote it?<end_of_turn>\n<start_of_turn>model\nShe did.<end_of_turn>\n"
        + "<start_of_turn>user\nWhen?<end_of_turn>\n<start_of_turn>model\nIn the year 12.<end_of_turn>\n<eos>"
        + "<bos><start_of_turn>user\nBe brief.\n\nthe the<end_of_turn>\n<eos>")
    #expect(text(built.counted) == "She did.<end_of_turn>\nIn the year 12.<end_of_turn>\n<eos><eos>")
    // Marks of turns are single tokens, and no others of that spelling are in between.
    let mark = try #require(tokenizer.encode("<start_of_turn>".utf8, special: .recognized).first)
    #expect(built.tokens.filter { $0 == mark }.count == 5 && built.tokens[1] == mark)
    #expect(built.manifest.documents == 2 && built.manifest.beginOfText == tokenizer.beginOfText)
  }

  @Test(arguments: [
    (#"{"messages": "hello"}"#, "list of messages"),
    (#"{"messages": [{"role": "user"}]}"#, "is not {"),
    (#"{"messages": [{"role": "assistant", "content": "I begin"}]}"#, "alternate"),
    ("no JSON", "is not a JSON object"),
  ])
  func whatIsNoConversationIsRefused(line: String, reason: String) throws {
    let folder = try TemporaryFolder()
    let source = try String(contentsOfFile: Self.fixtures + "chat/gemma.jinja", encoding: .utf8)
    let error = #expect(throws: FileError.self) {
      _ = try build(
        [line], makeTokenizer(Self.fixtures + "tokenizers/gemma"), ChatTemplate(source), in: folder)
    }
    #expect(error?.reason.contains(reason) == true && error?.path.contains("chat.jsonl") == true, "\(error as Any)")
  }
}

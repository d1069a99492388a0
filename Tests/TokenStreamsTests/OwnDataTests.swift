import Files
import Foundation
import Parallel
import Testing
import TokenStreams
import Tokenizers

/// A stranger's own data: one shard, and JSON that nobody said how to read.
@Suite struct OwnDataTests {
  private func build(_ text: String, _ name: String, format: DocumentFormat, in folder: TemporaryFolder) throws
    -> Manifest
  {
    let path = folder.path + "/" + name
    try Data(text.utf8).write(to: URL(fileURLWithPath: path))
    let recipe = DatasetRecipe(
      name: "set", standsInFor: nil, inputs: [path], format: format, codec: .rank, shardTokens: 1 << 30, level: 3)
    return try DatasetBuilder(
      recipe, tokenizer: ByteTokenizer(), folder: folder.path + "/set", pool: ThreadPool(threads: 1)
    ).run { _, _ in }
  }

  @Test(arguments: [(900, 3), (20_000, 78), (200_000, 781)])
  func oneShardIsDivided(bytes: Int, sequences: Int) throws {
    let folder = try TemporaryFolder()
    let text = (0..<bytes).map { String(UnicodeScalar(UInt8(97 + $0 * $0 % 26))) }.joined()
    _ = try build(text, "text.txt", format: .text(separator: nil), in: folder)
    guard sequences >= 4 else {
      #expect(throws: FileError.self) {
        _ = try DataPlan(mix: Mix(of: "set"), root: folder.path, context: 256, seed: 1, label: "x")
      }
      return
    }
    for trains in [true, false] {
      let plan = try DataPlan(
        mix: Mix(of: "set"), root: folder.path, context: 256, seed: 1, label: "x", trains: trains)
      let (source, heldOut) = (plan.sources[0].stream, plan.sources[0].validation)
      #expect(heldOut.sequenceCount == min(max(sequences / 16, 32), sequences / 4))
      #expect((sequences - 1...sequences).contains(source.sequenceCount + heldOut.sequenceCount))
      func tokens(_ stream: TokenStream) throws -> [Int32] {
        var batch = SequenceBatch()
        for index in 0..<stream.sequenceCount { try stream.read(index, into: &batch) }
        return batch.tokens
      }
      let all = Array(text.utf8).map(Int32.init)
      let (first, last) = (try tokens(source), try tokens(heldOut))
      // The beginning trains, the end is held out, and no token is both.
      #expect(first == Array(all[..<first.count]))
      let start = all.count + 1 - last.count - 1
      #expect(last == Array(all[start..<start + last.count]) && start >= first.count)
    }
  }

  @Test(arguments: [
    (#"{"id": 1, "text": "hello"}"#, "a.jsonl", "--field text"),
    (#"{"id": 1, "content": "hello", "url": "a much longer address than the content"}"#, "a.jsonl", "--field content"),
    (#"{"a": "x", "b": "the longest of all"}"#, "a.txt", "--field b"),
    (#"{"question": "1+1?", "answer": "2"}"#, "a.jsonl", "--template"),
    (#"{"parts": [{"text": "a", "loss": true}]}"#, "a.jsonl", "--pieces parts"),
    ("[\n{\"text\": \"a\"}]\n", "a.json", "jq -c"),
  ])
  func jsonIsNotTrainedOnAsItStands(line: String, name: String, remedy: String) throws {
    let folder = try TemporaryFolder()
    let error = #expect(throws: FileError.self) {
      _ = try build(line + "\n" + line + "\n", name, format: .text(separator: nil), in: folder)
    }
    #expect(error?.reason.contains(remedy) ?? false, "\(error?.reason ?? "")")
  }

  @Test func textThatBeginsWithABraceIsText() throws {
    let folder = try TemporaryFolder()
    let manifest = try build("{not JSON at all}\nbut a text\n", "a.txt", format: .text(separator: nil), in: folder)
    #expect(manifest.documents == 1)
  }
}

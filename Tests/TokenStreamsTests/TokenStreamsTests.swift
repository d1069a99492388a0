import Files
import Foundation
import Parallel
import TestSupport
import Testing
import TokenStreams
import Tokenizers

/// A folder of its own for a test, removed with it.
final class TemporaryFolder {
  let path: String
  init() throws {
    path = FileManager.default.temporaryDirectory.appendingPathComponent("jettrain-\(UUID())").path
    try createFolder(path)
  }
  deinit { try? FileManager.default.removeItem(atPath: path) }
}

@Suite struct TokenStreamsTests {
  @Test func permutationIsABijectionAtEverySize() {
    for count in Array(1...600) + [1023, 1024, 1025, 4097] {
      let permutation = Permutation(count: count, key: UInt64(count) &* 77)
      var seen = [Bool](repeating: false, count: count)
      for index in 0..<count { seen[permutation[index]] = true }
      #expect(seen.allSatisfy { $0 }, "size \(count)")
    }
  }

  @Test func permutationMixesLowBits() {
    // Neighbours must not keep their parity: an affine round function would.
    let permutation = Permutation(count: 1 << 16, key: 5)
    let flips = (0..<60_000).filter { (permutation[$0] ^ permutation[$0 + 1]) & 1 == 1 }.count
    #expect(abs(flips - 30_000) < 800, "\(flips) of 60000")
  }

  private func recipe(_ inputs: [String], codec: TokenCodec = .rank, shardTokens: Int = 40_000) -> DatasetRecipe {
    DatasetRecipe(
      name: "set", standsInFor: nil, inputs: inputs, format: .text(separator: "%"), codec: codec,
      shardTokens: shardTokens, level: 3)
  }

  /// Text of some 250 documents and 100,000 bytes.
  private func writeText(_ folder: TemporaryFolder, _ name: String = "text.txt", seed: UInt64 = 1) throws -> String {
    var text = ""
    for (index, value) in randomFloats(250, seed: seed).enumerated() {
      text += String(repeating: "document \(index) ", count: 1 + Int(abs(value) * 50)) + "\n%\n"
    }
    let path = folder.path + "/" + name
    try Data(text.utf8).write(to: URL(fileURLWithPath: path))
    return path
  }

  private func build(_ recipe: DatasetRecipe, _ folder: String, threads: Int = 2) throws -> Manifest {
    try DatasetBuilder(recipe, tokenizer: ByteTokenizer(), folder: folder, pool: ThreadPool(threads: threads))
      .run { _, _ in }
  }

  private func allTokens(_ folder: String) throws -> [UInt32] {
    let dataset = try Dataset(folder)
    var tokens: [UInt32] = []
    for ordinal in dataset.manifest.shards.indices {
      let shard = try dataset.shard(ordinal)
      try shard.read(0..<shard.tokenCount, into: &tokens)
    }
    return tokens
  }

  @Test(arguments: [TokenCodec.rank, .u32])
  func shardsGiveBackTheText(codec: TokenCodec) throws {
    let folder = try TemporaryFolder()
    let text = try writeText(folder)
    let manifest = try build(recipe([text], codec: codec), folder.path + "/set")
    #expect(manifest.shards.count > 1)
    let documents = try String(contentsOfFile: text, encoding: .utf8).components(separatedBy: "\n%\n")
    let expected = documents.filter { !$0.isEmpty }.flatMap { document -> [UInt32] in
      document.utf8.map { UInt32($0) } + [256]
    }
    #expect(try allTokens(folder.path + "/set") == expected)
    #expect(manifest.documents == 250)
  }

  /// A shard whose header claims more ids than its dataset has is refused, whatever its codec; so is a manifest with sizes
  /// that nothing has.
  @Test(arguments: [TokenCodec.rank, .u32])
  func shardsAreNotBelievedAboutTheirVocabulary(codec: TokenCodec) throws {
    let folder = try TemporaryFolder()
    let set = folder.path + "/set"
    let manifest = try build(recipe([try writeText(folder)], codec: codec), set)
    let path = set + "/" + manifest.shards[0].file
    func edit(_ path: String, _ old: String, _ new: String) throws {
      var bytes = try Data(contentsOf: URL(fileURLWithPath: path))
      let range = try #require(bytes.firstRange(of: Data(old.utf8)))
      bytes.replaceSubrange(range, with: Data(new.utf8))
      try bytes.write(to: URL(fileURLWithPath: path))
    }
    _ = try Dataset(set).shard(0)
    try edit(path, "\"vocabulary\":257", "\"vocabulary\":999")
    do {
      _ = try Dataset(set).shard(0)
      Issue.record("a shard with more ids than its dataset was opened")
    } catch { #expect("\(error)".contains("a vocabulary of 999, its dataset one of 257"), "\(error)") }
    for (vocabulary, endOfText, tokens) in [(0, 0, 1), (257, 257, 1), (257, 256, -1), (257, 256, Int.max)] {
      let odd = Manifest(
        name: "set", standsInFor: nil, tokenizer: "bytes", tokenizerHash: "", vocabulary: vocabulary,
        endOfText: UInt32(endOfText), codec: codec, codebookHash: "",
        shards: [ShardRecord(file: "a", bytes: 1, tokens: tokens, documents: 1, sha256: "")])
      try odd.write(to: folder.path)
      #expect(throws: FileError.self) { try Manifest(folder: folder.path) }
    }
  }

  /// The zstd program accepts every shard, and shows the ids of a u32 shard.
  @Test func zstdReadsShards() throws {
    let folder = try TemporaryFolder()
    let manifest = try build(recipe([try writeText(folder)], codec: .u32), folder.path + "/set")
    for shard in manifest.shards {
      let path = folder.path + "/set/" + shard.file
      #expect(try run("zstd", ["-t", "-q", path]).status == 0)
      let bytes = try run("zstd", ["-dc", path]).output
      #expect(bytes.count == shard.tokens * 4)
      let first = bytes.prefix(4).reversed().reduce(UInt32(0)) { $0 << 8 | UInt32($1) }
      #expect(first < 257)
    }
  }

  @Test func shardsDoNotDependOnThreadsOrInterruption() throws {
    let folder = try TemporaryFolder()
    let inputs = [try writeText(folder, "a.txt", seed: 1), try writeText(folder, "b.txt", seed: 2)]
    let one = try build(recipe(inputs), folder.path + "/one", threads: 1)
    let four = try build(
      DatasetRecipe(
        name: "set", standsInFor: nil, inputs: inputs, format: .text(separator: "%"), codec: .rank, shardTokens: 40_000,
        level: 3), folder.path + "/four", threads: 4)
    #expect(one.fingerprint == four.fingerprint)

    // Interrupt a build by making its third shard impossible to create, then go on.
    let broken = folder.path + "/broken"
    try createFolder(broken + "/set-00002.jtk.zst.partial")
    #expect(throws: FileError.self) { try build(recipe(inputs), broken) }
    #expect(throws: FileError.self) { _ = try Dataset(broken) }
    try FileManager.default.removeItem(atPath: broken + "/set-00002.jtk.zst.partial")
    #expect(try build(recipe(inputs), broken).fingerprint == one.fingerprint)
  }

  @Test func yamlIsReadAsPlainValues() throws {
    let text = "a: [1, -0x10, 1.5, .inf, true, no, ~, '7', 2026-11-24, 1:30, 1e3, x]\nb: &n {c: 2}\nd: *n\n"
    let object = try #require(try parseYAML(text) as? [String: Any])
    let list = try #require(object["a"] as? [Any])
    #expect(list[0] as? Int == 1 && list[1] as? Int == -16 && list[2] as? Double == 1.5)
    #expect(list[3] as? Double == .infinity && list[4] as? Bool == true && list[5] as? Bool == false)
    #expect(list[6] is NSNull && list[7..<10].map { $0 as? String } == ["7", "2026-11-24", "1:30"])
    #expect((object["d"] as? [String: Any])?["c"] as? Int == 2)
    #expect(try parseYAML("") == nil)
    // Nine lines that stand for ten to the eighth.
    let bomb = (1...8).map { n in
      "k\(n): &k\(n) [" + (0..<10).map { _ in n == 1 ? "x" : "*k\(n - 1)" }.joined(separator: ", ") + "]"
    }
    for bad in ["[a]: 1", "a: [", "a: 1\na: 2", "a: *b", bomb.joined(separator: "\n")] {
      let error = #expect(throws: YAMLError.self) { try parseYAML(bad) }
      #expect(error?.description.contains("\n") == false, "\(error?.description ?? "")")
    }
  }

  /// No question of the demo's held-out part is among those it trains on, nor twice in either.
  @Test func questionsOfSplitsDoNotOverlap() {
    func questions(_ seed: UInt64, _ split: QuestionMaker.Split?, _ count: Int) -> [String] {
      var maker = QuestionMaker(seed: seed, split: split)
      return (0..<count).map { _ in maker.next().question }
    }
    let (training, heldOut) = (questions(7, .training, 20_000), questions(8, .heldOut, 200))
    #expect(Set(training).count == 20_000 && Set(heldOut).count == 200)
    #expect(Set(training).isDisjoint(with: heldOut))
    // Without splits they do overlap, and a source has questions twice.
    let (all, others) = (questions(7, nil, 20_000), questions(8, nil, 200))
    #expect(Set(all).count < 20_000 && !Set(all).isDisjoint(with: others))
    #expect((2000..<3000).contains(Set(all).count { QuestionMaker.Split(of: $0) == .heldOut }))
  }

  /// Read across many shards in any order, few stay open; the tokens are those of readers that all stay.
  @Test func openShardsStayBounded() throws {
    let folder = try TemporaryFolder()
    let manifest = try build(recipe([try writeText(folder)], shardTokens: 1500), folder.path + "/set")
    let shards = manifest.shards.count
    #expect(shards > 40)
    let (all, few) = (ShardCache(), ShardCache(limit: 40_000))
    let streams = try [all, few].map { cache in
      TokenStream(try Dataset(folder.path + "/set", cache: cache), shards: 0..<shards, context: 200)
    }
    let order = Permutation(count: streams[0].sequenceCount, key: 9)
    for index in 0..<streams[0].sequenceCount {
      var batches = [SequenceBatch(), SequenceBatch()]
      for (s, stream) in streams.enumerated() { try stream.read(order[index], into: &batches[s]) }
      #expect(batches[0].tokens == batches[1].tokens && batches[0].labels == batches[1].labels)
      #expect(batches[0].segments == batches[1].segments)
      #expect(few.bytes <= few.limit && few.count <= few.limit / (4 * 1500))
    }
    #expect(all.opened == shards && all.count == shards && all.bytes > 4 * few.limit)
    #expect(few.opened > shards)
    let mix = Mix(of: "set")
    let counted = DataPlan.readerBytes(mix: mix, root: folder.path)
    #expect(counted >= all.bytes && counted < all.bytes * 5 / 4, "\(counted) for \(all.bytes)")
  }

  @Test func jsonLinesAndCompressedInputs() throws {
    let folder = try TemporaryFolder()
    let lines = (0..<50).map { #"{"question": "How many \#($0)?", "answer": "\#($0)"}"# }.joined(separator: "\n")
    let path = folder.path + "/qa.jsonl"
    try Data(lines.utf8).write(to: URL(fileURLWithPath: path))
    #expect(try run("gzip", ["-k", path]).status == 0)
    #expect(try run("zstd", ["-q", "-k", path]).status == 0)
    var prints: Set<[UInt32]> = []
    for (index, input) in [path, path + ".gz", path + ".zst"].enumerated() {
      let recipe = DatasetRecipe(
        name: "qa", standsInFor: nil, inputs: [input],
        format: .questions(template: "Q: {question} A: {answer}\n", answerOnly: true), codec: .rank, shardTokens: 1000,
        level: 3)
      let output = folder.path + "/\(index)"
      _ = try build(recipe, output)
      prints.insert(try allTokens(output))
      let shard = try Dataset(output).shard(0)
      let question = "Q: How many 0? A: ".utf8.count
      #expect((0..<question).allSatisfy { !shard.index.counts($0) })
      #expect((question..<question + 3).allSatisfy { shard.index.counts($0) })
      #expect(!shard.index.counts(question + 3))
    }
    #expect(prints.count == 1)
    #expect(throws: FileError.self) {
      _ = try build(
        DatasetRecipe(
          name: "x", standsInFor: nil, inputs: [path], format: .jsonField("text"), codec: .rank, shardTokens: 1000,
          level: 3), folder.path + "/missing-field")
    }
  }

  /// Of pieces only those count that say so, wherever they stand.
  @Test func piecesCountAsTheySay() throws {
    let folder = try TemporaryFolder()
    let path = folder.path + "/chat.jsonl"
    let line =
      #"{"turns": [{"text": "Hi", "loss": false}, {"text": " yes.", "loss": true}, {"text": "And", "loss": false}]}"#
    try Data((line + "\n" + line).utf8).write(to: URL(fileURLWithPath: path))
    func recipe(_ field: String) -> DatasetRecipe {
      DatasetRecipe(
        name: "chat", standsInFor: nil, inputs: [path], format: .pieces(field), codec: .rank, shardTokens: 1000,
        level: 3)
    }
    _ = try build(recipe("turns"), folder.path + "/chat")
    let shard = try Dataset(folder.path + "/chat").shard(0)
    let counted = (0..<22).filter { shard.index.counts($0) }
    #expect(shard.tokenCount == 22 && counted == [2, 3, 4, 5, 6, 10, 13, 14, 15, 16, 17, 21])
    #expect(throws: FileError.self) { _ = try build(recipe("texts"), folder.path + "/missing") }
  }

  /// Every flipped byte, truncation and missing file is found and named.
  @Test func damageIsFound() throws {
    let folder = try TemporaryFolder()
    let manifest = try build(recipe([try writeText(folder)]), folder.path + "/set")
    let file = manifest.shards[1].file
    let path = folder.path + "/set/" + file
    let good = try Data(contentsOf: URL(fileURLWithPath: path))
    func faults(_ data: Data?) throws -> [String] {
      try? FileManager.default.removeItem(atPath: path)
      if let data { try data.write(to: URL(fileURLWithPath: path)) }
      var found: [String] = []
      _ = try Dataset(folder.path + "/set").verify { found.append($0.description) }
      return found
    }
    #expect(try faults(good).isEmpty)
    for offset in stride(from: 0, to: good.count, by: max(1, good.count / 97)) {
      var bad = good
      bad[offset] ^= 0x10
      let found = try faults(bad)
      #expect(found.count == 1 && found[0].contains(file), "byte \(offset): \(found)")
    }
    for size in [0, 8, good.count / 2, good.count - 1] {
      let found = try faults(good.prefix(size))
      #expect(found.count == 1 && found[0].contains(file), "cut to \(size): \(found)")
    }
    #expect(try faults(nil).first?.contains("missing") == true)
    // Trailing bytes are not the file it was either.
    #expect(try faults(good + Data([0])).count == 1)
  }

  @Test func planReadsEverySequenceOnceAnEpoch() throws {
    let folder = try TemporaryFolder()
    for (index, name) in ["a", "b"].enumerated() {
      let text = try writeText(folder, name + ".txt", seed: UInt64(index + 1))
      _ = try build(
        DatasetRecipe(
          name: name, standsInFor: nil, inputs: [text], format: .text(separator: "%"), codec: .rank,
          shardTokens: 20_000,
          level: 3), folder.path + "/" + name)
    }
    let file = folder.path + "/mix.yaml"
    try Data("sources:\n- {name: a, weight: 30}\n- {name: b, weight: 70}\n".utf8).write(to: URL(fileURLWithPath: file))
    let plan = try DataPlan(mix: Mix(file, folder: ""), root: folder.path, context: 32, seed: 4, label: "x")
    func name(_ place: (source: DataPlan.Source, epoch: Int, sequence: Int)) -> String {
      "\(place.source.name) \(place.epoch) \(place.sequence)"
    }
    var counts: [String: Int] = [:]
    var seen: Set<String> = []
    let total = 1024 * 20
    for index in 0..<total {
      let place = plan.locate(index)
      counts[place.source.name, default: 0] += 1
      #expect(seen.insert(name(place)).inserted, "sequence \(index) was read before: \(place)")
    }
    // Shares are exact but for the rounding of one sequence.
    #expect(abs(counts["a"]! - total * 30 / 100) <= 1 && abs(counts["b"]! - total * 70 / 100) <= 1)
    let again = try DataPlan(mix: Mix(file, folder: ""), root: folder.path, context: 32, seed: 4, label: "x")
    #expect((0..<500).allSatisfy { name(plan.locate($0)) == name(again.locate($0)) } && plan.hash == again.hash)
    let other = try DataPlan(mix: Mix(file, folder: ""), root: folder.path, context: 32, seed: 5, label: "x")
    #expect(other.hash != plan.hash && (0..<500).contains { name(plan.locate($0)) != name(other.locate($0)) })

    // Another mix takes over at the end of a block; every source goes on where it stood.
    let second = folder.path + "/second.yaml"
    try Data("name: second\nsources: [{name: a, weight: 90}, {name: b, weight: 10}]\n".utf8)
      .write(to: URL(fileURLWithPath: second))
    let changed = try DataPlan(
      mix: Mix(second, folder: ""), root: folder.path, context: 32, seed: 4, label: "x", after: (plan, 3000))
    let end = 3 * 1024
    seen = []
    counts = [:]
    for index in 0..<8 * 1024 {
      let place = changed.locate(index)
      if index < end {
        #expect(name(place) == name(plan.locate(index)))
      } else {
        counts[place.source.name, default: 0] += 1
      }
      #expect(seen.insert(name(place)).inserted, "sequence \(index) was read before: \(name(place))")
    }
    // Nothing is left out either: what was read of a source is the beginning of its order.
    for source in ["a", "b"] {
      let places = (0..<8 * 1024).map { changed.locate($0) }.filter { $0.source.name == source }
      let length = places[0].source.stream.sequenceCount
      for epoch in 0..<places.count / length { #expect(places.filter { $0.epoch == epoch }.count == length) }
    }
    #expect(abs(counts["a"]! - 5 * 1024 * 9 / 10) <= 1)
    #expect(changed.hash(before: end) == plan.hash && changed.hash(before: end + 1) != plan.hash)
  }

  @Test func labelsStopAtDocumentEnds() throws {
    let folder = try TemporaryFolder()
    _ = try build(recipe([try writeText(folder)]), folder.path + "/set")
    let plan = try DataPlan(mix: Mix(of: "set"), root: folder.path, context: 700, seed: 1, label: "x")
    let batch = try plan.read(0..<8)
    #expect(batch.tokens.count == 8 * 700 && batch.segments.last?.upperBound == batch.tokens.count)
    var covered = 0
    for segment in batch.segments {
      #expect(segment.lowerBound == covered)
      covered = segment.upperBound
      for t in segment.dropLast() { #expect(batch.labels[t] == batch.tokens[t + 1]) }
      // The end of a document predicts nothing.
      if batch.tokens[segment.upperBound - 1] == 256 { #expect(batch.labels[segment.upperBound - 1] == -1) }
    }
  }
}

/// Runs a program and gives its exit status and output.
func run(_ program: String, _ arguments: [String]) throws -> (status: Int32, output: Data) {
  let process = Process()
  process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
  process.arguments = [program] + arguments
  let pipe = Pipe()
  process.standardOutput = pipe
  try process.run()
  let output = pipe.fileHandleForReading.readDataToEndOfFile()
  process.waitUntilExit()
  return (process.terminationStatus, output)
}

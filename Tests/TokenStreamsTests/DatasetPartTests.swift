import Files
import Foundation
import Parallel
import Testing
import TokenStreams
import Tokenizers

/// One dataset by several builds: what joins, what is refused, and what a killed part does.
@Suite struct DatasetPartTests {
  private let folder: TemporaryFolder
  private let inputs: [String]

  init() throws {
    folder = try TemporaryFolder()
    let path = folder.path
    // Of very different sizes, so that parts are of different numbers of files.
    inputs = try [40, 3, 300, 5, 120, 80, 2].enumerated().map { index, documents in
      let text = (0..<documents).map {
        "file \(index) document \($0) " + String(repeating: "x", count: ($0 * 37 + index) % 400)
      }
      .joined(separator: "\n%\n")
      let input = path + "/input-\(index).txt"
      try Data(text.utf8).write(to: URL(fileURLWithPath: input))
      return input
    }
  }

  private func recipe(level: Int32 = 3) -> DatasetRecipe {
    DatasetRecipe(
      name: "set", standsInFor: nil, inputs: inputs, format: .text(separator: "%"), codec: .rank, shardTokens: 9000,
      level: level)
  }

  @discardableResult
  private func build(
    _ part: String?, level: Int32 = 3, in place: String = "set"
  ) throws -> Manifest {
    let builder = DatasetBuilder(
      recipe(level: level), tokenizer: ByteTokenizer(), folder: folder.path + "/" + place,
      part: part.flatMap(DatasetPart.init), pool: ThreadPool(threads: 2))
    return try builder.run { _, _ in }
  }

  private func join(_ place: String = "set") throws -> Manifest {
    try joinParts(in: folder.path + "/" + place) { _ in }
  }

  private func tokens(_ place: String) throws -> [UInt32] {
    let dataset = try Dataset(folder.path + "/" + place)
    var tokens: [UInt32] = []
    for ordinal in dataset.manifest.shards.indices {
      let shard = try dataset.shard(ordinal)
      try shard.read(0..<shard.tokenCount, into: &tokens)
    }
    return tokens
  }

  /// What it throws says.
  private func refusal(_ body: () throws -> Void) -> String {
    do { try body() } catch { return "\(error)" }
    return "nothing was refused"
  }

  @Test(arguments: [1, 2, 3, 7])
  func partsJoinToTheDatasetOfOneBuild(count: Int) throws {
    let whole = try build(nil, in: "whole")
    // In any order, as hosts end.
    for number in (1...count).reversed() { try build("\(number)/\(count)") }
    let joined = try join()
    #expect(joined.documents == whole.documents && joined.tokens == whole.tokens)
    #expect(try tokens("set") == tokens("whole"))
    #expect(Set(joined.shards.map(\.file)).count == joined.shards.count)
    #expect(try Dataset(folder.path + "/set").verify { _ in } == 0)
    // Nothing of the builds is left, and nothing more is built or joined.
    let names = try FileManager.default.contentsOfDirectory(atPath: folder.path + "/set")
    #expect(
      names.allSatisfy { $0.hasSuffix(".jtk.zst") || ["manifest.json", "codebook.zst"].contains($0) }, "\(names)")
    #expect(refusal { _ = try join() }.contains("is joined already"))
    #expect(refusal { try build("1/\(count)") }.contains("already holds a dataset"))
    // A run reads it as any other.
    let plan = try DataPlan(mix: Mix(of: "set"), root: folder.path, context: 64, seed: 1, label: "x")
    #expect(try plan.read(0..<8).tokens.count == 8 * 64)
  }

  @Test func partsShareOutWholeInputs() throws {
    let counts = try (1...3).map { try build("\($0)/3").documents }
    #expect(counts.reduce(0, +) == 550 && counts.allSatisfy { $0 > 0 }, "\(counts)")
    #expect(refusal { try build("1/8", in: "eight") }.contains("there are 7 inputs for 8 parts"))
  }

  @Test func whatDoesNotBelongTogetherIsNotJoined() throws {
    #expect(refusal { _ = try join("nowhere") }.contains("holds no parts"))
    try build("1/3")
    #expect(refusal { _ = try join() }.contains("lacks parts 2, 3 of 3"))
    #expect(refusal { try build("1/2") }.contains("holds parts of a build in 3"))
    #expect(refusal { try build(nil) }.contains("holds parts of a build in 3"))
    try build("2/3")
    try build("3/3", level: 9)
    #expect(refusal { _ = try join() }.contains("part 3 was built with other settings"))
    #expect(refusal { try build("3/3") }.contains("holds part 3 of 3 of other inputs or settings"))
    try FileManager.default.removeItem(atPath: folder.path + "/set/part-3-of-3.json")
    try build("3/3")
    // A part that is there is not built again.
    #expect(try build("3/3").documents > 0)

    // A flipped byte in a shard of any part.
    let names = try FileManager.default.contentsOfDirectory(atPath: folder.path + "/set").filter {
      $0.hasSuffix(".jtk.zst")
    }
    let path = folder.path + "/set/" + names.sorted()[1]
    let whole = try Data(contentsOf: URL(fileURLWithPath: path))
    var flipped = whole
    flipped[flipped.count / 2] ^= 1
    try flipped.write(to: URL(fileURLWithPath: path))
    #expect(refusal { _ = try join() }.contains("1 of its shards is not as built"))
    // Another part's shard under its name.
    try FileManager.default.removeItem(atPath: path)
    try FileManager.default.copyItem(atPath: folder.path + "/set/" + names.sorted()[0], toPath: path)
    #expect(refusal { _ = try join() }.contains("1 of its shards is not as built"))
    try whole.write(to: URL(fileURLWithPath: path))

    // A record that somebody edited, and one of another input.
    let record = folder.path + "/set/part-2-of-3.json"
    let text = try String(contentsOfFile: record, encoding: .utf8)
    try Data(text.replacingOccurrences(of: "\"tokens\" : ", with: "\"tokens\" : 1").utf8).write(
      to: URL(fileURLWithPath: record))
    #expect(refusal { _ = try join() }.contains("does not match its fingerprint"))
    try Data(text.replacingOccurrences(of: "input-6.txt ", with: "input-6.txt 1").utf8).write(
      to: URL(fileURLWithPath: record))
    #expect(refusal { _ = try join() }.contains("saw other inputs than part 1"))
    try Data(text.utf8).write(to: URL(fileURLWithPath: record))
    #expect(!FileManager.default.fileExists(atPath: folder.path + "/set/manifest.json"))
    #expect(try join().documents == 550)
  }

  /// Hosts without a common file system build into folders of their own, whose files are then brought together.
  @Test func partsOfSeveralFoldersJoinInOne() throws {
    for number in 1...2 { try build("\(number)/2", in: "host\(number)/set") }
    for name in try FileManager.default.contentsOfDirectory(atPath: folder.path + "/host2/set")
    where !FileManager.default.fileExists(atPath: folder.path + "/host1/set/" + name) {
      try FileManager.default.copyItem(
        atPath: folder.path + "/host2/set/" + name, toPath: folder.path + "/host1/set/" + name)
    }
    #expect(try join("host1/set").documents == 550)
  }

  @Test(arguments: ["0/2", "3/2", "1", "1/2/3", "a/b", "1/5000", "-1/2", "1/0", ""])
  func whatIsNoPartIsNone(text: String) { #expect(DatasetPart(text) == nil) }
}

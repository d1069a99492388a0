import Files
import Foundation
import Parallel
import TestSupport
import Testing
import TokenStreams
import Tokenizers

/// Ids that other programs wrote, in files made here byte by byte as those programs make them.
@Suite struct TokenFileTests {
  private let folder: TemporaryFolder
  private let documents: [[UInt32]]
  private static let end: UInt32 = 256

  init() throws {
    folder = try TemporaryFolder()
    documents = (0..<40).map { n -> [UInt32] in
      let length = n % 7 * 30 + 1
      return (0..<length).map { i in UInt32((i * 13 + n) % 95 + 32) }
    }
  }

  private func bytes<T: FixedWidthInteger>(_ values: [T]) -> Data {
    values.map(\.littleEndian).withUnsafeBytes { Data($0) }
  }

  private func write(_ name: String, _ data: Data) throws {
    try data.write(to: URL(fileURLWithPath: folder.path + "/" + name))
  }

  /// Writes the documents as `format` has them; llm.c puts the end in front, the others behind.
  private func writeFiles(_ format: TokenFormat, wide: Bool) throws -> String {
    func ids(_ tokens: [UInt32]) -> Data { wide ? bytes(tokens) : bytes(tokens.map { UInt16($0) }) }
    let closed = documents.map { $0 + [Self.end] }
    switch format {
    case .megatron:
      try write("x.bin", ids(Array(closed.joined())))
      var index = Data("MMIDIDX\0\0".utf8) + bytes([UInt64(1)]) + Data([wide ? 4 : 8])
      index += bytes([UInt64(closed.count), UInt64(closed.count + 1)]) + bytes(closed.map { Int32($0.count) })
      var place = 0
      for document in closed {
        index += bytes([Int64(place)])
        place += document.count * (wide ? 4 : 2)
      }
      try write("x.idx", index + bytes((0...closed.count).map { Int64($0) }))
      return "x.bin"
    case .llmc:
      let all = documents.flatMap { [Self.end] + $0 }
      var header = [Int32](repeating: 0, count: 256)
      (header[0], header[1], header[2]) = (wide ? 20_240_801 : 20_240_520, wide ? 7 : 1, Int32(all.count))
      try write("x.bin", bytes(header) + ids(all))
      return "x.bin"
    case .nanogpt:
      try write("x.bin", ids(Array(closed.joined())))
      return "x.bin"
    case .datatrove:
      try write("x.ds", ids(Array(closed.joined())))
      var total = 0
      let ends = closed.map { document -> UInt64 in
        total += document.count
        return UInt64(total)
      }
      try write("x.ds.index", bytes(ends))
      return "x.ds"
    }
  }

  private func build(_ input: String, _ format: TokenFormat, tokenizer: any Tokenizer = ByteTokenizer()) throws
    -> String
  {
    let out = folder.path + "/set-\(UUID())"
    let recipe = DatasetRecipe(
      name: "set", standsInFor: nil, inputs: [folder.path + "/" + input], format: .tokens(format), codec: .rank,
      shardTokens: 1_000_000, level: 3)
    _ = try DatasetBuilder(recipe, tokenizer: tokenizer, folder: out, pool: ThreadPool(threads: 1)).run { _, _ in }
    return out
  }

  @Test(arguments: TokenFormat.allCases, [false, true]) func documentsComeThrough(_ format: TokenFormat, wide: Bool)
    throws
  {
    if format == .nanogpt && wide { return }
    let dataset = try Dataset(build(writeFiles(format, wide: wide), format))
    let shard = try dataset.shard(0)
    var tokens: [UInt32] = []
    try shard.read(0..<shard.tokenCount, into: &tokens)
    #expect(tokens == documents.flatMap { $0 + [Self.end] })
    #expect(dataset.manifest.documents == documents.count)
  }

  /// Ids that decode to text which encodes otherwise are of another tokenizer.
  @Test func anotherTokenizerIsRefused() throws {
    var wrong = documents
    wrong[5][0] = 300
    try write("x.bin", bytes(wrong.flatMap { ($0 + [Self.end]).map { UInt16($0) } }))
    let error = #expect(throws: FileError.self) { try build("x.bin", .nanogpt) }
    #expect(error?.description.contains("has id 300") ?? false)
  }

  @Test(.enabled(if: sharedFolder != nil, "needs ../shared/tokenizer"))
  func anotherVocabularyIsRefused() throws {
    let tokenizer = try makeTokenizer((sharedFolder ?? "") + "/tokenizer/qwen2.5")
    let text = Array(try Data(contentsOf: URL(fileURLWithPath: (sharedFolder ?? "") + "/corpora/tinyshakespeare.txt")))
    let parts = stride(from: 0, to: 90_000, by: 3000).map { tokenizer.encode(text[$0..<$0 + 3000]) }
    func save(_ shift: UInt32) throws {
      try write("x.ds", bytes(parts.flatMap { $0.map { ($0 + shift) % 151_643 } }))
      var total: UInt64 = 0
      try write(
        "x.ds.index",
        bytes(
          parts.map { part -> UInt64 in
            total += UInt64(part.count)
            return total
          }))
    }
    try save(0)
    let folder = try build("x.ds", .datatrove, tokenizer: tokenizer)
    #expect(try Dataset(folder).manifest.documents == 30)
    // The same ids, one further: what another vocabulary would look like.
    try save(1)
    let error = #expect(throws: FileError.self) { try build("x.ds", .datatrove, tokenizer: tokenizer) }
    #expect(error?.description.contains("not proven") ?? false)
  }

  @Test func damagedFilesAreRefused() throws {
    for format in TokenFormat.allCases {
      let name = try writeFiles(format, wide: false)
      let path = folder.path + "/" + name
      let whole = try Data(contentsOf: URL(fileURLWithPath: path))
      try whole.dropLast(3).write(to: URL(fileURLWithPath: path))
      #expect(throws: FileError.self, "\(format)") { try build(name, format) }
    }
    try write("x.parquet", Data("PAR1".utf8))
    let error = #expect(throws: FileError.self) { try build("x.parquet", .nanogpt) }
    #expect(error?.description.contains("JSON Lines") ?? false)
  }
}

import Files
import Foundation
import Hashing

/// What a manifest says of one shard.
package struct ShardRecord: Codable, Sendable, Equatable {
  package let file: String
  package let bytes: Int
  package let tokens: Int
  package let documents: Int
  package let sha256: String
  /// What its header says of its place, where the dataset was built in parts; elsewhere that is its place in the manifest.
  package internal(set) var ordinal: Int?

  package init(file: String, bytes: Int, tokens: Int, documents: Int, sha256: String, ordinal: Int? = nil) {
    (self.file, self.bytes, self.tokens) = (file, bytes, tokens)
    (self.documents, self.sha256, self.ordinal) = (documents, sha256, ordinal)
  }
}

/// A dataset: its shards and what they are made of. Written last, never changed.
package struct Manifest: Codable, Sendable {
  package static let fileName = "manifest.json"

  /// 2 where shards name their ordinals.
  package private(set) var version = 1
  package let name: String
  /// The dataset that this small one stands in for, where it does.
  package let standsInFor: String?
  package let tokenizer: String
  package let tokenizerHash: String
  package let vocabulary: Int
  package let endOfText: UInt32
  /// The id that every document begins with, where the tokenizer's family wants one.
  package let beginOfText: UInt32?
  package let codec: TokenCodec
  /// SHA-256 of `codebook.zst`.
  package let codebookHash: String
  package let shards: [ShardRecord]
  /// SHA-256 of everything above: the dataset's identity.
  package var fingerprint: String

  package var tokens: Int { shards.reduce(0) { $0 + $1.tokens } }
  package var documents: Int { shards.reduce(0) { $0 + $1.documents } }

  package init(
    name: String, standsInFor: String?, tokenizer: String, tokenizerHash: String, vocabulary: Int,
    endOfText: UInt32, beginOfText: UInt32? = nil, codec: TokenCodec, codebookHash: String, shards: [ShardRecord]
  ) {
    self.name = name
    self.standsInFor = standsInFor
    self.tokenizer = tokenizer
    self.tokenizerHash = tokenizerHash
    self.vocabulary = vocabulary
    self.endOfText = endOfText
    self.beginOfText = beginOfText
    self.codec = codec
    self.codebookHash = codebookHash
    self.shards = shards
    version = shards.contains { $0.ordinal != nil } ? 2 : 1
    fingerprint = ""
    fingerprint = Self.fingerprint(self)
  }

  private static func fingerprint(_ manifest: Manifest) -> String {
    var content = manifest
    content.fingerprint = ""
    return sha256(content.encoded())
  }

  private func encoded() -> Data {
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes, .prettyPrinted]
    // Encoding plain values cannot fail.
    return (try? encoder.encode(self)) ?? Data()
  }

  /// Reads and checks the manifest of the dataset in `folder`.
  package init(folder: String) throws {
    let path = folder + "/" + Self.fileName
    guard FileManager.default.fileExists(atPath: path) else {
      throw FileError(
        path,
        "there is no manifest: build the dataset with `jettrain tokens build` (an unfinished build goes on), or run `./bootstrap demo` for small ones"
      )
    }
    let data = try readFile(path)
    guard let manifest = try? JSONDecoder().decode(Manifest.self, from: data) else {
      throw FileError(path, "is not a manifest of this program")
    }
    try manifest.check(path)
    self = manifest
  }

  /// Refuses what no build writes; `path` names it.
  func check(_ path: String) throws {
    guard (1...2).contains(version) else {
      throw FileError(path, "is of version \(version), this program reads 1 and 2")
    }
    guard fingerprint == Self.fingerprint(self) else {
      throw FileError(path, "does not match its fingerprint: it was edited or damaged")
    }
    // What is computed with these numbers must not overflow: no dataset comes near the bounds.
    let isSound = shards.allSatisfy { shard in
      [shard.bytes, shard.tokens, shard.documents, shard.ordinal ?? 0].allSatisfy { (0..<1 << 40).contains($0) }
    }
    guard isSound, (1...1 << 24).contains(vocabulary), Int(endOfText) < vocabulary else {
      throw FileError(path, "holds sizes that no dataset has, or an end of text outside its vocabulary")
    }
    for shard in shards where shard.file.contains("/") || shard.file.hasPrefix(".") {
      throw FileError(path, "names a shard outside its folder: \(shard.file)")
    }
  }

  /// Whether all but the shards is the same.
  func isAlike(_ other: Manifest) -> Bool { having([]).fingerprint == other.having([]).fingerprint }

  /// The same dataset of these shards.
  func having(_ shards: [ShardRecord]) -> Manifest {
    Manifest(
      name: name, standsInFor: standsInFor, tokenizer: tokenizer, tokenizerHash: tokenizerHash, vocabulary: vocabulary,
      endOfText: endOfText, beginOfText: beginOfText, codec: codec, codebookHash: codebookHash, shards: shards)
  }

  package func write(to folder: String) throws { try writeDurably(encoded(), to: folder + "/" + Self.fileName) }
}

/// A dataset opened for reading: its manifest, and shards on demand.
package final class Dataset {
  package let folder: String
  package let manifest: Manifest
  package let codebook: Codebook
  private let cache: ShardCache

  static let codebookName = "codebook.zst"

  /// Reads manifest and codebook of the dataset in `folder` and checks them; shards are opened when they are read.
  ///
  /// - Parameter cache: holds the open shards, of all datasets of a run together
  package convenience init(_ folder: String, cache: ShardCache = ShardCache()) throws {
    try self.init(folder, manifest: Manifest(folder: folder), cache: cache)
  }

  /// The same of a manifest that is not written yet.
  init(_ folder: String, manifest: Manifest, cache: ShardCache = ShardCache()) throws {
    self.folder = folder
    self.cache = cache
    self.manifest = manifest
    let path = folder + "/" + Self.codebookName
    let data = try readFile(path)
    guard sha256(data) == manifest.codebookHash else {
      throw FileError(path, "does not match the manifest: damaged or of another dataset")
    }
    let bytes = try Zstd.decompress(data, limit: 4 * max(1, manifest.vocabulary), path: path)
    let ids = bytes.withUnsafeBytes { raw in
      (0..<raw.count / 4).map { UInt32(littleEndian: raw.loadUnaligned(fromByteOffset: $0 * 4, as: UInt32.self)) }
    }
    guard ids.count == manifest.vocabulary, let codebook = Codebook(ids: ids) else {
      throw FileError(path, "is not a permutation of the vocabulary")
    }
    self.codebook = codebook
  }

  /// The reader of one shard.
  package func shard(_ ordinal: Int) throws -> ShardReader {
    try cache.reader(.init(folder: folder, fingerprint: manifest.fingerprint, ordinal: ordinal)) {
      let record = manifest.shards[ordinal]
      let path = folder + "/" + record.file
      let reader = try readingAgain(path) { _ in try ShardReader(path, codebook: codebook, record: record) }
      guard reader.header.tokenizer == manifest.tokenizerHash, reader.header.ordinal == record.ordinal ?? ordinal,
        reader.header.dataset == manifest.name
      else { throw FileError(reader.path, "belongs to another dataset or place than the manifest says") }
      return reader
    }
  }

  /// Checks that every shard is there and has its size: what a run can afford to know before it begins.
  package func checkFiles() throws {
    for record in manifest.shards {
      let path = folder + "/" + record.file
      var status = stat()
      FileOperations.looked()
      guard stat(path, &status) == 0 else {
        throw FileError(path, "shard is missing; restore it or build the dataset anew")
      }
      guard Int(status.st_size) == record.bytes else {
        try refusePointer(at: path)
        throw FileError(
          path, "has \(status.st_size) bytes, the manifest says \(record.bytes): truncated, or another file")
      }
    }
  }

  /// Checks every shard: presence, size, hash, and that all frames decode. Calls `report` with each finding.
  package func verify(_ report: (FileError) -> Void) -> Int {
    var bad = 0
    for (ordinal, record) in manifest.shards.enumerated() {
      let path = folder + "/" + record.file
      do {
        let reader = try shard(ordinal)
        let hash = try sha256(file: path)
        for frame in 0..<reader.frameCount { _ = try reader.frame(frame) }
        guard hash == record.sha256 else {
          throw FileError(path, "its SHA-256 differs from the manifest: bytes were changed")
        }
      } catch let error as FileError {
        bad += 1
        report(error)
      } catch {
        bad += 1
        report(FileError(path, "\(error)"))
      }
    }
    return bad
  }
}

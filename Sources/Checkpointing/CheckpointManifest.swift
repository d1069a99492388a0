import Files
import Foundation
import Hashing

/// A checkpoint that cannot be used, and what helps.
package struct CheckpointError: Error, CustomStringConvertible {
  package let path: String
  package let reason: String
  /// Whether its bytes are others than were written: an older checkpoint may do. Anything else is for a person to decide.
  package let isDamage: Bool
  package var description: String { "\(path): \(reason)" }

  package init(_ path: String, _ reason: String, isDamage: Bool = false) {
    self.path = path
    self.reason = reason
    self.isDamage = isDamage
  }
}

/// `manifest.json` of a checkpoint: what it belongs to and which files hold it (Checkpoints/FORMAT.md).
package struct CheckpointManifest: Codable, Sendable {
  /// One rank's file.
  package struct Shard: Codable, Sendable {
    package let file: String
    package let bytes: Int
    package let sha256: String
    /// Digest of the values as they were when the save began; a new one after every update.
    package let state: String?
    /// Where its slices lie; before version 3 only the file itself says.
    package let index: ShardIndex?
  }

  /// What must be the same for a run to go on from here.
  package struct Identity: Codable, Sendable, Equatable {
    /// `pretrain`, `distill` or `finetune`.
    package var kind: String
    /// SHA-256 of the student's `config.json`.
    package var model: String
    /// SHA-256 of the parameters that never train in this run, names included.
    package var frozen: String
    /// SHA-256 of the teacher's weights; empty without one.
    package var teacher: String
    /// Hashes of the phases' data plans.
    package var plans: [String]

    package init(kind: String, model: String, frozen: String, teacher: String, plans: [String]) {
      self.kind = kind
      self.model = model
      self.frozen = frozen
      self.teacher = teacher
      self.plans = plans
    }
  }

  /// What the decision about the next update depends on.
  package struct SpikeState: Codable, Sendable, Equatable {
    /// The usual gradient norm: a running mean of those that led to updates; 0 before the first.
    package var usualNorm = 0.0
    /// Steps in a row whose updates were left out, the first of them, and where its data begins.
    package var skips = 0
    package var firstStep = 0
    package var firstSequence = 0
    /// Windows of the phase's sequences that are skipped, `[first, end]` each.
    package var skippedWindows: [[Int]] = []
    /// Times that the run rolled back without an update since.
    package var returns = 0

    package init() {}

    // The names in files are older than the words.
    private enum CodingKeys: String, CodingKey {
      case usualNorm, skips, firstStep, firstSequence
      case skippedWindows = "passedOver"
      case returns
    }
  }

  package static let fileName = "manifest.json"
  package static let currentVersion = 3

  package var version = currentVersion
  /// Optimizer steps done.
  package let step: Int
  /// Tokens that training has consumed.
  package let tokens: Int
  /// Phase that the moments belong to and its steps done.
  package let phase: Int
  package let phaseStep: Int
  /// The next global sequence index of that phase's plan.
  package let sequences: Int
  package let worldSize: Int
  /// Updates that were left out, and data that is skipped.
  package let spikes: SpikeState?
  /// How many updates each group of parameters has seen in the phase; before version 3, as many as there were steps.
  package let updates: [Int]?
  package let identity: Identity
  /// The job as it ran, and the student's `config.json`, for people and for export.
  package let job: [String: String]
  package let shards: [Shard]
  /// SHA-256 of this manifest as it is written, with nothing in this place.
  private var checksum: String?

  package init(
    step: Int, tokens: Int, phase: Int, phaseStep: Int, sequences: Int, worldSize: Int, spikes: SpikeState,
    updates: [Int]? = nil, identity: Identity, job: [String: String], shards: [Shard]
  ) {
    self.step = step
    self.tokens = tokens
    self.phase = phase
    self.phaseStep = phaseStep
    self.sequences = sequences
    self.worldSize = worldSize
    self.spikes = spikes
    self.updates = updates
    self.identity = identity
    self.job = job
    self.shards = shards
  }

  /// Reads and checks the manifest of the checkpoint at `path`.
  package init(path: String) throws { try self.init(Self.content(of: path), path: path) }

  /// The manifest's file, as it lies on disk.
  static func content(of path: String) throws -> Data {
    let file = path + "/" + fileName
    FileOperations.looked()
    guard FileManager.default.fileExists(atPath: file) else {
      throw CheckpointError(
        path, "has no manifest: it is not a checkpoint, or its save never finished", isDamage: true)
    }
    return try readFile(file)
  }

  /// Checks the content of a manifest of the checkpoint at `path`.
  init(_ data: Data, path: String) throws {
    let file = path + "/" + Self.fileName
    struct Version: Decodable { let version: Int }
    if let other = try? JSONDecoder().decode(Version.self, from: data),
      !(1...Self.currentVersion).contains(other.version)
    {
      throw CheckpointError(
        file, "is of format version \(other.version); this program reads 1 to \(Self.currentVersion)")
    }
    guard let manifest = try? JSONDecoder().decode(Self.self, from: data) else {
      throw CheckpointError(file, "is damaged or not a checkpoint manifest", isDamage: true)
    }
    // Version 1 knew neither checksum nor spikes.
    guard manifest.version == 1 || Self.checksum(of: data, without: manifest.checksum) == manifest.checksum else {
      throw CheckpointError(file, "its checksum does not fit its content: bytes were changed", isDamage: true)
    }
    for shard in manifest.shards where shard.file.contains("/") || shard.file.hasPrefix(".") {
      throw CheckpointError(file, "names a file outside its folder: \(shard.file)")
    }
    var counts = [manifest.step, manifest.tokens, manifest.phase, manifest.phaseStep, manifest.sequences]
    counts += manifest.shards.map(\.bytes) + (manifest.updates ?? [])
    let spikes = manifest.spikes ?? .init()
    counts += [spikes.skips, spikes.firstStep, spikes.firstSequence, spikes.returns]
    counts += spikes.skippedWindows.flatMap { $0 }
    // More than any run has, and so little that sums do not overflow.
    guard counts.allSatisfy({ (0..<1 << 56).contains($0) }), manifest.worldSize > 0,
      spikes.skippedWindows.allSatisfy({ $0.count == 2 && $0[0] <= $0[1] }),
      manifest.shards.allSatisfy({ shard in shard.index.map { $0.bytes == shard.bytes } ?? (manifest.version < 3) })
    else {
      throw CheckpointError(file, "holds counts that no run has")
    }
    self = manifest
  }

  private static let checksumKey = Data("\"checksum\" : \"".utf8)

  /// SHA-256 of a manifest with nothing in the place of its checksum; nil where it has none.
  private static func checksum(of data: Data, without checksum: String?) -> String? {
    guard let checksum, let key = data.range(of: checksumKey),
      data[key.upperBound...].starts(with: Data(checksum.utf8))
    else { return nil }
    return sha256(data[..<key.upperBound] + data[(key.upperBound + checksum.utf8.count)...])
  }

  /// The file's content.
  func encoded() throws -> Data {
    var copy = self
    copy.checksum = ""
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes, .prettyPrinted]
    var data = try encoder.encode(copy)
    guard let key = data.range(of: Self.checksumKey) else { preconditionFailure("a manifest without a checksum") }
    data.insert(contentsOf: Data(sha256(data).utf8), at: key.upperBound)
    return data
  }
}

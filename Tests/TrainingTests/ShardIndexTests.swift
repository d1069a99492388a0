import CPUBackend
import Checkpointing
import Foundation
import MPI
import TestSupport
import Testing

/// Checkpoints of which a rank reads what it needs.
@Suite struct ShardIndexTests {
  private func checkpoint(_ slices: [(key: ShardKey, shape: [Int], values: [Float])]) throws -> (Checkpoint, String) {
    let folder = FileManager.default.temporaryDirectory.appendingPathComponent("jettrain-index-\(UUID())").path
    let (backend, run) = (CPUBackend(threads: 1), RunFolder(folder))
    let save = try CheckpointSave(
      slices.map { slice in
        StateSlice(
          slice.key, shape: slice.shape, values: backend.tensor(slice.values, [slice.values.count]), isTrained: true)
      }, step: 1, in: run, world: .alone, level: -1, buffer: SnapshotBuffer()
    ) { shards in
      CheckpointManifest(
        step: 1, tokens: 0, phase: 0, phaseStep: 1, sequences: 0, worldSize: 1, spikes: .init(), updates: [1],
        identity: .init(kind: "test", model: "", frozen: "", teacher: "", plans: []), job: [:], shards: shards)
    }
    #expect(try save.complete() == nil)
    return (try Checkpoint(run.checkpoint(step: 1)), folder)
  }

  /// Any part of any array, over the bounds of frames and of slices, is what was saved; nothing else is handed out.
  @Test func partsAreReadFromTheirFrames() throws {
    let count = 2_500_000
    let values = randomFloats(count, seed: 3)
    let (checkpoint, folder) = try checkpoint([
      (ShardKey(.parameter, "a", 0..<1_500_000), [count], Array(values[..<1_500_000])),
      (ShardKey(.parameter, "b"), [7], randomFloats(7, seed: 4)),
      (ShardKey(.parameter, "a", 1_500_000..<count), [count], Array(values[1_500_000...])),
    ])
    defer { try? FileManager.default.removeItem(atPath: folder) }
    for range in [0..<count, 5..<6, 1_048_570..<1_048_580, 1_499_999..<1_500_001, 2_000_000..<2_400_000] {
      var found = [Float](repeating: .nan, count: range.count)
      try checkpoint.read([ShardKey(.parameter, "a", range)]) { key, elements, part in
        #expect(key.name == "a" && elements.lowerBound >= range.lowerBound && elements.upperBound <= range.upperBound)
        for (offset, value) in part.enumerated() { found[elements.lowerBound - range.lowerBound + offset] = value }
      }
      #expect(found == Array(values[range]))
    }
  }

  /// A moment of which a part is missing, or there twice, is refused before it is used; damage in a frame is named.
  @Test func whatIsMissingIsRefused() throws {
    let values = randomFloats(100, seed: 5)
    let (checkpoint, folder) = try checkpoint([
      (ShardKey(.parameter, "a"), [100], values), (ShardKey(.firstMoment, "a", 0..<60), [100], Array(values[..<60])),
      (ShardKey(.secondMoment, "a", 0..<60), [100], Array(values[..<60])),
      (ShardKey(.secondMoment, "a", 50..<100), [100], Array(values[50...])),
    ])
    defer { try? FileManager.default.removeItem(atPath: folder) }
    for role in [ShardKey.Role.firstMoment, .secondMoment] {
      let error = #expect(throws: CheckpointError.self) {
        try checkpoint.read([ShardKey(role, "a", 0..<100)]) { _, _, _ in }
      }
      #expect(
        error?.description.contains("does not hold all of \(role.rawValue)/a") == true && error?.isDamage == false)
    }
    let path = checkpoint.path + "/" + checkpoint.manifest.shards[0].file
    var bytes = try Data(contentsOf: URL(fileURLWithPath: path))
    bytes[bytes.count - 20] ^= 1
    try bytes.write(to: URL(fileURLWithPath: path))
    let error = #expect(throws: CheckpointError.self) {
      try checkpoint.read([ShardKey(.secondMoment, "a", 50..<100)]) { _, _, _ in }
    }
    #expect(error?.isDamage == true && error?.description.contains("a frame differs") == true)
    // What is elsewhere in the file is none of the reader's business.
    try checkpoint.read([ShardKey(.parameter, "a", 0..<100)]) { _, _, part in #expect(Array(part) == values) }
  }
}

import Checkpointing
import Foundation
import MPI
import TestSupport
import Testing

/// Saves of tensors, wherever these lie.
@Suite struct SnapshotTests {
  /// What is read back is what the tensors held, of more than a piece and of a few bytes; nobody but the save keeps the
  /// memory that it writes from.
  @Test(arguments: [TestBackend.cpu(threads: 1), .reference], [1, 9, 3_000_001])
  func aSaveHoldsWhatTheTensorsHeld(kind: TestBackend, count: Int) throws {
    let folder = FileManager.default.temporaryDirectory.appendingPathComponent("jettrain-save-\(UUID())").path
    defer { try? FileManager.default.removeItem(atPath: folder) }
    let (backend, run) = (kind.make(), RunFolder(folder))
    let values = randomFloats(count, seed: 7)
    let save = try CheckpointSave(
      [StateSlice(ShardKey(.parameter, "w"), shape: [count], values: backend.tensor(values, [count]), isTrained: true)],
      step: 1, in: run, world: .alone, level: -1, buffer: SnapshotBuffer()
    ) { shards in
      CheckpointManifest(
        step: 1, tokens: 0, phase: 0, phaseStep: 1, sequences: 0, worldSize: 1, spikes: .init(), updates: [1],
        identity: .init(kind: "test", model: "", frozen: "", teacher: "", plans: []), job: [:], shards: shards)
    }
    #expect(try save.complete() == nil)
    let arrays = try Checkpoint(run.checkpoint(step: 1)).assemble()
    #expect(arrays.count == 1 && arrays[ShardKey(.parameter, "w").description] == values)
  }
}

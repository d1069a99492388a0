import CPUBackend
import Checkpointing
import Fabric
import Foundation
import MPI
import Models
import NN
import Optimizers
import Tensors
import TestSupport
import Testing
import TokenStreams
import Training

@Suite struct TrainingTests {
  /// The shapes of the paper's models give its parameter counts, exactly (RECIPE section 2).
  @Test(arguments: [
    ("jet-nemotron-2b", 1_964_806_208), ("jet-nemotron-4b", 3_960_424_768), ("qwen2.5-1.5b", 1_543_714_304),
    ("qwen2.5-3b", 3_085_938_688),
  ])
  func parameterCountsAreThePapers(name: String, count: Int) throws {
    let model = HybridLM(try ModelConfiguration(path: repository + "/Jobs/models/\(name).json"))
    #expect(model.store.count == count)
    let mixer = model.store.parameters.filter { $0.name.hasPrefix("model.layers.0.self_attn.") }.reduce(0) {
      $0 + $1.count
    }
    if name == "jet-nemotron-2b" { #expect(mixer == 23_052_568) }
    if name == "jet-nemotron-4b" { #expect(mixer == 43_073_824) }
  }

  /// The checkpoint in Checkpoints/golden, written by the first version: every later one must still read it.
  @Test func goldenCheckpointIsRead() throws {
    let checkpoint = try Checkpoint(RunFolder.resolve(repository + "/Checkpoints/golden"))
    try checkpoint.verify()
    #expect(checkpoint.manifest.step == 3 && checkpoint.manifest.worldSize == 2)
    let arrays = try checkpoint.assemble()
    let text = try String(contentsOfFile: repository + "/Checkpoints/golden/sums.txt", encoding: .utf8)
    let lines = text.split(separator: "\n").map { $0.split(separator: " ") }
    #expect(lines.count == arrays.count)
    for line in lines {
      let array = try #require(arrays[String(line[0])], "\(line[0]) is missing")
      // Bit patterns added up: every element counts, exactly.
      let sum = array.reduce(UInt64(0)) { $0 &+ UInt64($1.bitPattern) }
      #expect(String(sum) == line[2] && String(array.count) == line[1], "\(line[0])")
    }
  }

  func job(_ text: String, kind: JobKind = .distill, ranks: Int = 1, set: [String] = []) throws -> Job {
    let path = FileManager.default.temporaryDirectory.appendingPathComponent("job-\(UUID()).yaml").path
    try Data(text.utf8).write(to: URL(fileURLWithPath: path))
    defer { try? FileManager.default.removeItem(atPath: path) }
    return try Job(kind, path: path, overrides: set, ranks: ranks)
  }

  static let good = """
    model: {teacher: t, student: s}
    data: {root: d, mix: m}
    train: {tokens: 64K, context: 128, global_batch: 8, micro_batch: 2, lr: 1e-3}
    """

  /// A checkpoint that claims what no run has.
  @Test func absurdManifestsAreRefused() throws {
    let folder = FileManager.default.temporaryDirectory.appendingPathComponent("checkpoint-\(UUID())").path
    try FileManager.default.copyItem(atPath: repository + "/Checkpoints/golden/step-00000003", toPath: folder)
    defer { try? FileManager.default.removeItem(atPath: folder) }
    let path = folder + "/manifest.json"
    let text = try String(contentsOfFile: path, encoding: .utf8)
    for (old, new) in [
      (#""bytes" : 77"#, #""bytes" : 9223372036854775807"#),
      (#""phaseStep" : 3"#, #""phaseStep" : 9223372036854775807"#),
      (#""worldSize" : 2"#, #""worldSize" : 0"#),
    ] {
      #expect(text.contains(old))
      try text.replacingOccurrences(of: old, with: new).write(toFile: path, atomically: true, encoding: .utf8)
      let error = #expect(throws: CheckpointError.self) { try Checkpoint(folder) }
      #expect(error?.description.contains("counts that no run has") == true, "\(error?.description ?? "")")
    }
  }

  /// A checkpoint between rolling back and the window that is skipped stands before it, one behind it after it.
  @Test func windowsAreSkippedWhereTheyAreReached() throws {
    var phase = try Job(.distill, path: "\(repository)/Jobs/distill.yaml", overrides: [], ranks: 1).phases[0]
    phase.globalBatch = 8
    phase.changes = [PhaseChange(step: 10, globalBatch: 16, mixName: nil)]
    var earlier = CheckpointManifest.SpikeState()
    earlier.skippedWindows = [[40, 64]]
    let spikes = SpikeGuard(SpikeGuard.Settings(), state: earlier)
    #expect(spikes.cursor(after: 4, of: phase) == 32)
    #expect(spikes.cursor(after: 5, of: phase) == 40)
    #expect(spikes.cursor(after: 6, of: phase) == 72)
    #expect(spikes.cursor(after: 12, of: phase) == 80 + 24 + 32)
    #expect(SpikeGuard(SpikeGuard.Settings()).cursor(after: 12, of: phase) == phase.sequences(before: 12))
    #expect(phase.sequences(before: 12) == 80 + 32 && phase.batch(at: 9) == 8 && phase.batch(at: 10) == 16)
  }

  /// Micro-batches of a lane add up one by one, lanes in one binary tree, however many ranks share them: here one rank
  /// against the tree itself.
  @Test(arguments: [(1, 8), (2, 8), (3, 8), (4, 8), (8, 8), (5, 4), (13, 8), (32, 8), (32, 1), (7, 2)])
  func gradientsAddUpInLanes(count: Int, lanes: Int) throws {
    let backend = CPUBackend(threads: 1)
    let store = ParameterStore()
    let parameter = ParameterScope(store).parameter("w", [100], .zeros)
    parameter.value = backend.zeros([100])
    let arena = Arena(store, backend: backend) { _ in true }
    let exchange = GradientExchange(arena, world: .alone, fabric: MPIFabric(.alone, backend.companion()))
    let gradients = (0..<count).map { randomFloats(100, seed: UInt64($0 + 1)).map { $0 * 1e3 + 1e-3 } }
    let before = backend.liveBytes
    var most = 0
    for lane in 0..<lanes {
      let places = count * lane / lanes..<count * (lane + 1) / lanes
      if !places.isEmpty { exchange.beginLane() }
      for index in places {
        parameter.value.slot!.accumulate { destination, adds in
          let gradient = backend.tensor(gradients[index], [100])
          if adds {
            backend.add(gradient, scale: 1, into: destination)
          } else {
            backend.copy(gradient, into: destination)
          }
        }
      }
      if lane < lanes - 1 { exchange.endLane(isEmpty: places.isEmpty) }
      most = max(most, (backend.liveBytes - before) / (4 * Arena.blockSize))
    }
    try exchange.reduce()
    func tree(_ lanes: Range<Int>, of all: Int) -> [Float]? {
      guard lanes.count > 1 else {
        let places = count * lanes.lowerBound / all..<count * lanes.upperBound / all
        return places.dropFirst().reduce(places.first.map { gradients[$0] }) { sum, index in
          zip(sum!, gradients[index]).map(+)
        }
      }
      let middle = lanes.lowerBound + lanes.count / 2
      guard let left = tree(lanes.lowerBound..<middle, of: all) else { return tree(middle..<lanes.upperBound, of: all) }
      guard let right = tree(middle..<lanes.upperBound, of: all) else { return left }
      return zip(left, right).map(+)
    }
    #expect(Array(arena.gradients.toArray()[..<100]) == tree(0..<lanes, of: lanes))
    // However many micro-batches there are, no more sums wait than the tree of the lanes has levels.
    #expect(most <= lanes.trailingZeroBitCount, "\(most) sums wait")
  }
}

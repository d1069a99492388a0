import Checkpointing
import Foundation
import TestSupport
import TokenStreams

/// Every byte, or every so many, of a small checkpoint and token shard.
func flips(every stride: Int) throws -> Tally {
  var tally = Tally()
  let run = try SmallRun()
  let (status, output) = try run.run(
    ranks: 2, ["distill", "--job", "distill.yaml", "--run-dir", "run", "--stop-at-step", "10"])
  guard status == 75 else { throw SmallRun.Failure(description: output) }
  let checkpoint = run.folder + "/run/step-00000010"
  let arrays = try Checkpoint(checkpoint).assemble()
  var (detected, harmless) = (0, 0)

  /// Flips one bit of every byte, `isHarmless` deciding about flips that no check notices.
  func each(_ path: String, _ load: () throws -> Bool) throws {
    var bytes = try Data(contentsOf: URL(fileURLWithPath: path))
    for index in Swift.stride(from: 0, to: bytes.count, by: stride) {
      let old = bytes[index]
      bytes[index] ^= 1 << UInt8(index % 8)
      try bytes.write(to: URL(fileURLWithPath: path))
      bytes[index] = old
      do {
        let isSame = try load()
        tally.check(isSame, "\(path): a flip in byte \(index) went unnoticed")
        if isSame { harmless += 1 }
      } catch {
        tally.check(true, "")
        detected += 1
      }
    }
    try bytes.write(to: URL(fileURLWithPath: path))
  }
  for file in try FileManager.default.contentsOfDirectory(atPath: checkpoint).sorted() {
    try each(checkpoint + "/" + file) {
      let changed = try Checkpoint(checkpoint)
      try changed.verify()
      return try changed.assemble() == arrays
    }
    print("checkpoint \(file): \(detected) flips detected, \(harmless) harmless so far")
  }
  // A dataset small enough to be read again for every byte.
  try run.write("few.jsonl", (0..<40).map { "{\"text\": \"line \($0) of a small text\"}" }.joined(separator: "\n"))
  _ = try run.run(["tokens", "build", "--field", "text", "--output", "data/few", "few.jsonl"])
  let data = run.folder + "/data/few"
  func read() throws -> [UInt32] {
    let dataset = try Dataset(data)
    try dataset.checkFiles()
    var tokens: [UInt32] = []
    let shard = try dataset.shard(0)
    try shard.read(0..<shard.tokenCount, into: &tokens)
    return tokens + (0..<tokens.count).map { shard.index.counts($0) ? 1 : 0 } + shard.index.starts.map { UInt32($0) }
  }
  let tokens = try read()
  for file in try FileManager.default.contentsOfDirectory(atPath: data).sorted() {
    try each(data + "/" + file) { try read() == tokens }
    print("dataset \(file): \(detected) flips detected, \(harmless) harmless so far")
  }
  print("flips: \(detected + harmless), of which \(detected) are detected and \(harmless) are harmless")
  return tally
}

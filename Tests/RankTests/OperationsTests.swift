import Foundation
import TestSupport
import Testing

/// What ranks ask of file systems and of each other, at 2, 8 and 32 of them, held to the formulas of docs/reliability.md
/// (A thousand ranks).
extension RankTests {
  private typealias Counts = [String: Int]

  /// Counts by step, as the log has them: of all ranks, since they began.
  private func operations(_ run: String) throws -> [Int: Counts] {
    let text = try String(contentsOfFile: folder + "/\(run)/metrics.jsonl", encoding: .utf8)
    return try text.split(separator: "\n").reduce(into: [:]) { all, line in
      let fields = try #require(try JSONSerialization.jsonObject(with: Data(line.utf8)) as? [String: Any])
      if let step = fields["step"] as? Int { all[step] = fields["operations"] as? Counts }
    }
  }

  /// Bytes of the shards of a checkpoint, and of its manifest.
  private func bytes(_ checkpoint: String) throws -> (shards: Int, manifest: Int) {
    let path = folder + "/" + checkpoint
    return try FileManager.default.contentsOfDirectory(atPath: path).reduce(into: (0, 0)) { sum, name in
      let size = try FileManager.default.attributesOfItem(atPath: path + "/" + name)[.size] as? Int ?? 0
      if name.hasPrefix("shard-") { sum.0 += size } else { sum.1 += size }
    }
  }

  @Test func operationsAreLinearInTheRanks() throws {
    // Large enough that each of 32 ranks owns something: 75 blocks.
    let shape = """
      "vocab_size": 257, "hidden_size": 128, "intermediate_size": 1024, "num_hidden_layers": 3, "num_attention_heads": 2,
      "num_key_value_heads": 1, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": true
      """
    try write("wide.json", "{\"model_type\": \"qwen2\", \(shape)}")
    // One shard of one frame to train on, which every rank opens and reads once.
    try jettrain("tokens", "make-questions", "--count", "400", "--seed", "3", "--output", "few.jsonl")
    try jettrain(
      "tokens", "build", "--template", "Q: {question}\\nA: {answer}\\n", "--shard-tokens", "30000", "--output",
      "data/one", "few.jsonl")
    try write("one.yaml", "sources: [{name: one, weight: 1}]\n")
    let job = [
      "pretrain", "--job", "teacher.yaml", "--set", "data.mix=./one.yaml", "--set", "model.student=wide.json", "--set",
      "train.lanes=32", "--set",
      "train.global_batch=32", "--set", "train.micro_batch=1", "--set", "train.tokens=\(64 * 32 * 20)", "--set",
      "checkpoints.minutes=0", "--set", "checkpoints.keep_last=20", "--run-dir",
    ]
    var found: [Int: (start: Counts, step: Counts, resume: Counts, saves: Counts, read: Int, shards: Int)] = [:]
    for ranks in [2, 8, 32] {
      let run = "of-\(ranks)"
      try jettrain(ranks: ranks, job + [run, "--stop-at-step", "4"], expecting: 75)
      let first = try operations(run)
      let saved = try bytes("\(run)/step-00000004")
      try jettrain(ranks: ranks, job + [run, "--stop-at-step", "6"], expecting: 75)
      let second = try operations(run)
      try jettrain(
        ranks: ranks, job + ["every-\(ranks)", "--set", "checkpoints.every=1", "--stop-at-step", "9"], expecting: 75)
      let every = try operations("every-\(ranks)")
      func difference(_ a: Counts?, _ b: Counts?) throws -> Counts {
        let (a, b) = (try #require(a), try #require(b))
        return a.merging(b) { $0 - $1 }
      }
      let start = try #require(first[1])
      let resume = try difference(second[5], start)
      let step = try difference(first[4], first[3])
      let saves = try difference(every[8], every[4])
      found[ranks] = (start, step, resume, saves, resume["bytes_read"] ?? 0, saved.shards)
      print(
        "n = \(ranks): start \(start)\n  a step \(step)\n  a resume beside a start \(resume)\n  four saves \(saves)")
      print("  a checkpoint: \(saved.shards) bytes, manifest \(saved.manifest)")

      // A step opens nothing, and one rank of the host looks for STOP: on a busy machine, where steps take more than a
      // second, between micro-batches too.
      let looks = try #require(step["looks"])
      #expect(step["opens"] == 0 && step["syncs"] == 0 && step["bytes_read"] == 0)
      #expect(looks == 1 || looks == 32 / ranks, "\(step)")
      // A resume: the manifest by one rank, its own shard by each, every byte of state once.
      #expect(resume["opens"] == ranks + 1, "\(resume)")
      #expect(resume["bytes_read"]! <= saved.shards + saved.manifest && resume["bytes_read"]! > saved.shards * 9 / 10)
      // A save: a shard each, manifest and `latest`; a save may lie a step earlier or later.
      #expect(abs(saves["opens"]! - 4 * (ranks + 2)) <= ranks + 2, "\(saves)")
      #expect(abs(saves["syncs"]! - 4 * (2 * ranks + 10)) <= 2 * ranks + 10, "\(saves)")
    }
    let (two, eight, many) = (try #require(found[2]), try #require(found[8]), try #require(found[32]))
    // A start is linear: what each rank opens, and what the coordinator does for all.
    let slope = (eight.start["opens"]! - two.start["opens"]!) / 6
    #expect(many.start["opens"] == two.start["opens"]! + 30 * slope && slope <= 12, "\(slope) a rank")
    // The state is as large whoever saves it, but for headers.
    #expect(many.shards < two.shards * 11 / 10)
    // Three collectives a step and rank, and two of each bucket, of which there are more than 16 and no more than blocks.
    for (ranks, counts) in [(2, two.step), (8, eight.step), (32, many.step)] {
      // And a vote for each look.
      let each = Double(counts["messages"]!) / Double(ranks) - Double(counts["looks"]! - 1)
      #expect(each == each.rounded() && Int(each) % 2 == 1 && each <= 3 + 2 * 75, "\(ranks): \(each)")
    }
  }
}

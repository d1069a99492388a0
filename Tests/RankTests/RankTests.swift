import Foundation
import TestSupport
import Testing

/// The built program under the real mpirun: the same bits at any number of ranks, after a kill, and at a resume with
/// another number; and what bad input does.
@Suite(.serialized) final class RankTests {
  let small: SmallRun
  let folder: String

  init() throws {
    small = try SmallRun()
    folder = small.folder
  }

  func start(ranks: Int, _ arguments: [String]) throws -> (process: Process, errors: Pipe) {
    try small.start(ranks: ranks, arguments)
  }

  /// Runs to the end; 0 ranks is without mpirun.
  @discardableResult
  func jettrain(ranks: Int = 0, _ arguments: String..., expecting status: Int32 = 0) throws -> String {
    try jettrain(ranks: ranks, arguments, expecting: status)
  }

  @discardableResult
  func jettrain(ranks: Int, _ arguments: [String], expecting status: Int32 = 0) throws -> String {
    let (ended, output) = try small.run(ranks: ranks, arguments)
    #expect(ended == status, "\(arguments.joined(separator: " "))\n\(output)")
    return output
  }

  func write(_ name: String, _ text: String) throws { try small.write(name, text) }

  func losses(_ run: String) throws -> [String] { try small.losses(run) }

  @Test func sameBitsAtAnyNumberOfRanksAndAfterAKill() throws {
    try jettrain("distill", "--job", "distill.yaml", "--run-dir", "one")
    let reference = try losses("one")
    #expect(reference.count == 20 + 3)
    for ranks in [1, 2, 4] {
      try jettrain(ranks: ranks, "distill", "--job", "distill.yaml", "--run-dir", "ranks-\(ranks)")
      let output = try jettrain("checkpoint", "diff", "one", "ranks-\(ranks)")
      #expect(output.contains("identical"), "\(output)")
      #expect(try losses("ranks-\(ranks)") == reference)
    }

    // Killed at once in the middle, by force, then resumed on another number of ranks.
    let (process, _) = try start(ranks: 2, ["distill", "--job", "distill.yaml", "--run-dir", "killed"])
    let deadline = Date().addingTimeInterval(60)
    while !FileManager.default.fileExists(atPath: folder + "/killed/step-00000005"), Date() < deadline { usleep(2000) }
    let pgrep = Process()
    pgrep.executableURL = URL(fileURLWithPath: "/usr/bin/env")
    pgrep.arguments = ["pkill", "-9", "-f", "run-dir killed"]
    try pgrep.run()
    pgrep.waitUntilExit()
    process.waitUntilExit()
    #expect(!FileManager.default.fileExists(atPath: folder + "/killed/model"))
    try jettrain(ranks: 4, "distill", "--job", "distill.yaml", "--run-dir", "killed", "--resume", "must")
    #expect(try jettrain("checkpoint", "diff", "one", "killed").contains("identical"))
    #expect(try losses("killed") == reference)

    // What the log says was read is what the plan says, every sequence once, whatever happened on the way.
    var planned: [Int: [Int]] = [:]
    for line in try jettrain("tokens", "plan", "--job", "distill.yaml", "--range", "0:20").split(separator: "\n") {
      let words = line.split { $0 == " " || $0 == ":" }
      planned[try #require(Int(words[1])) + 1, default: []].append(try #require(Int(words[4])))
    }
    var read = 0
    for line in try losses("killed") {
      let fields = try #require(try JSONSerialization.jsonObject(with: Data(line.utf8)) as? [String: Any])
      guard let range = fields["sequences"] as? [Int], let step = fields["step"] as? Int else { continue }
      #expect(planned.removeValue(forKey: step) == Array(range[0]..<range[1]))
      read += range[1] - range[0]
    }
    #expect(planned.isEmpty && read == 160)

    // Stopped on request, exactly between two phases and within one, saved by two ranks and resumed by one.
    for step in [8, 11] {
      let run = "stopped-\(step)"
      try jettrain(
        ranks: 2, "distill", "--job", "distill.yaml", "--run-dir", run, "--stop-at-step", "\(step)", expecting: 75)
      try jettrain(ranks: 1, "distill", "--job", "distill.yaml", "--run-dir", run)
      #expect(try jettrain("checkpoint", "diff", "one", run).contains("identical"))
      #expect(try losses(run) == reference)
    }
  }

  /// The batch and the mix change on the way: appended to the plan, they change nothing of what was done; edited, they are
  /// refused.
  @Test func batchAndMixChangeOnTheWay() throws {
    try jettrain("tokens", "make-questions", "--count", "800", "--seed", "4", "--output", "more.jsonl")
    try jettrain(
      "tokens", "build", "--template", "Q: {question}\\nA: {answer}\\n", "--shard-tokens", "30000", "--output",
      "data/more", "more.jsonl")
    try write("mix2.yaml", "sources: [{name: qa, weight: 1}, {name: more, weight: 3}]\n")
    let job = [
      "distill", "--job", "distill.yaml", "--set", "phases.1.tokens=\(64 * 2400)", "--set", "validation.every=100",
    ]
    let changes = ["--set", "phases.1.changes=[{from_step: 100, global_batch: 16, mix: ./mix2.yaml}]"]
    try jettrain(ranks: 0, job + changes + ["--run-dir", "whole"])
    try jettrain(ranks: 2, job + ["--run-dir", "changed", "--stop-at-step", "108"], expecting: 75)
    for (edit, reason) in [
      ("phases.1.global_batch=16", "append what is to change"), ("data.mix=./mix2.yaml", "data plan differs"),
      ("phases.1.changes=[{from_step: 90, global_batch: 16}]", "append what is to change"),
    ] {
      let refused = try jettrain(ranks: 2, job + ["--run-dir", "changed", "--set", edit], expecting: 65)
      #expect(refused.contains(reason), "\(refused)")
    }
    let resumed = try jettrain(ranks: 4, job + changes + ["--run-dir", "changed"])
    #expect(resumed.contains("from step 108"), "\(resumed)")
    let diff = try jettrain("checkpoint", "diff", "whole", "changed")
    #expect(diff.contains("identical"), "\(diff)")
    #expect(try losses("whole") == losses("changed"))

    // 100 steps of 8 sequences, then 100 of 16, each once; the new mix begins at the end of a block.
    let plan = try jettrain(
      ranks: 0, ["tokens", "plan", "--job", "distill.yaml", "--range", "8:208"] + job[3...] + changes)
    let lines = plan.split(separator: "\n").map { $0.split(separator: " ").map(String.init) }
    #expect(lines.map { Int($0[4].dropLast()) ?? Int($0[4])! } == Array(0..<2400))
    #expect(Set(lines.map { $0[5...].joined(separator: " ") }).count == 2400, "a sequence is read twice")
    #expect(lines[..<1024].allSatisfy { $0[5] == "qa" } && lines[1024..<2048].count { $0[5] == "more" } == 768)
    let logged = try losses("changed").compactMap { $0.contains("sequences") ? $0 : nil }
    #expect(logged.count == 208 && logged[207].contains("\"sequences\":[2384,2400]"), "\(logged.last ?? "")")
  }

  func writeSupernet() throws {
    let text = try String(contentsOfFile: folder + "/hybrid.json", encoding: .utf8)
    var object = try #require(try JSONSerialization.jsonObject(with: Data(text.utf8)) as? [String: Any])
    object["layer_types"] = ["attn", "attn", "attn"]
    object["supernet_mixer"] = "gla"
    object["efficient_attention_config"] = [
      "gla": ["num_heads": 2, "head_dim": 8, "expand_v": 1.0], "swa": ["window_size": 8],
    ]
    try write("supernet.json", String(decoding: JSONSerialization.data(withJSONObject: object), as: UTF8.self))
    try write(
      "supernet.yaml",
      """
      model: {teacher: teacher/model, student: supernet.json, full_layers: 1, sliding_layers: 1}
      data: {root: data, mix: ./mix.yaml}
      train: {seed: 1, context: 64, global_batch: 8, micro_batch: 2, lr: 2e-3, tokens: 6144, losses: {hidden: 1, logits: 1},
        freeze: [mlp, embeddings, norms, attention]}
      """)
  }
}

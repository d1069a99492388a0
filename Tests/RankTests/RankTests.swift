import Foundation
import TestSupport
import Testing

/// Runs a program and gives its exit status and output.
private func run(_ arguments: [String], _ folder: String) throws -> (status: Int32, output: String) {
  let process = Process()
  process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
  process.arguments = arguments
  process.currentDirectoryURL = URL(fileURLWithPath: folder)
  let pipe = Pipe()
  process.standardOutput = pipe
  process.standardError = pipe
  try process.run()
  let output = String(decoding: pipe.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
  process.waitUntilExit()
  return (process.terminationStatus, output)
}

private func python(_ arguments: [String], _ folder: String) throws -> (status: Int32, output: String) {
  try run(["python3"] + arguments, folder)
}

private let pythonHasSafetensors =
  (try? python(["-c", "import safetensors.numpy"], FileManager.default.temporaryDirectory.path).status == 0) ?? false

/// The built program under the real mpirun: the same bits at any number of ranks, after a kill, and at a resume with
/// another number; and what bad input does.
@Suite(.serialized) final class RankTests {
  let small: SmallRun
  let folder: String

  init() throws {
    small = try SmallRun()
    folder = small.folder
  }

  // MARK: - Helpers

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

  // MARK: - Determinism and resuming

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

  @Test func damagedCheckpointsArePassedOverButNeverForgotten() throws {
    try jettrain(
      ranks: 2, "distill", "--job", "distill.yaml", "--run-dir", "run", "--stop-at-step", "10", expecting: 75)
    let newest = folder + "/run/step-00000010/shard-00001.safetensors.zst"
    var bytes = try Data(contentsOf: URL(fileURLWithPath: newest))
    bytes[bytes.count / 2] ^= 1
    try bytes.write(to: URL(fileURLWithPath: newest))
    #expect(try jettrain("checkpoint", "verify", "run", expecting: 65).contains("shard-00001"))
    try FileManager.default.copyItem(atPath: folder + "/run", toPath: folder + "/hopeless")
    try Data().write(to: URL(fileURLWithPath: folder + "/hopeless/step-00000005/shard-00000.safetensors.zst"))
    // Not one whole checkpoint: stop, rather than begin anew without a word.
    let refused = try jettrain("distill", "--job", "distill.yaml", "--run-dir", "hopeless", expecting: 65)
    #expect(refused.contains("none of them whole"))

    // The damaged one is set aside, so that its step can be saved again.
    let output = try jettrain(ranks: 2, "distill", "--job", "distill.yaml", "--run-dir", "run")
    #expect(output.contains("damaged and passed over") && output.contains("from step 5"))
    #expect(FileManager.default.fileExists(atPath: folder + "/run/step-00000010.damaged"))
    try jettrain("distill", "--job", "distill.yaml", "--run-dir", "whole")
    #expect(try jettrain("checkpoint", "diff", "whole", "run").contains("identical"))
  }

  @Test func checkpointsAreOrdinaryFiles() throws {
    try jettrain(ranks: 2, "distill", "--job", "distill.yaml", "--run-dir", "run")
    let shards = try FileManager.default.contentsOfDirectory(atPath: folder + "/run/step-00000020")
      .filter { $0.hasSuffix(".zst") }
    #expect(shards.count == 2)
    for shard in shards {
      let process = Process()
      process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
      process.arguments = ["zstd", "-t", "-q", folder + "/run/step-00000020/" + shard]
      try process.run()
      process.waitUntilExit()
      #expect(process.terminationStatus == 0)
    }
    // The exported model is the one that the run wrote.
    try jettrain("checkpoint", "export", "run", "--output", "exported", "--dtype", "float32")
    #expect(
      FileManager.default.contentsEqual(
        atPath: folder + "/run/model/model.safetensors", andPath: folder + "/exported/model.safetensors"))
    try jettrain(
      "eval", "run", "--teacher", "teacher/model", "--data", "data/qa", "--context", "64", "--sequences", "4")
    try jettrain("generate", "exported", "--prompt", "Q: ", "--max-tokens", "5")
  }

  /// The safetensors package of Python opens a decompressed shard.
  @Test(.enabled(if: pythonHasSafetensors, "needs python3 with the safetensors and numpy packages"))
  func pythonOpensCheckpoints() throws {
    try jettrain(
      ranks: 2, "distill", "--job", "distill.yaml", "--run-dir", "run", "--stop-at-step", "10", expecting: 75)
    try write(
      "open.py",
      """
      import subprocess, sys
      from safetensors.numpy import load
      total = 0
      for rank in range(2):
          data = subprocess.run(["zstd", "-dc", f"run/step-00000010/shard-{rank:05}.safetensors.zst"],
                                check=True, capture_output=True).stdout
          arrays = load(data)
          assert all(str(a.dtype) == "float32" for a in arrays.values())
          total += sum(a.size for k, a in arrays.items() if k.startswith("parameter/"))
      print(total)
      """)
    let (status, output) = try python(["open.py"], folder)
    #expect(status == 0 && (Int(output.trimmingCharacters(in: .whitespacesAndNewlines)) ?? 0) > 1000, "\(output)")
  }

  // MARK: - Search

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

  private func writeSearch() throws {
    try write(
      "search.yaml",
      """
      kind: search
      teacher: teacher/model
      decode_context: 64
      objectives: {scores: [kl, recall], data: data/qa, context: 64, sequences: 4, items: 4, queries: 4}
      placement: {job: supernet.yaml, full: 1, sliding: 1, strategies: [beam, uniform, random], width: 2, evaluations: 4}
      block: {job: distill.yaml, set: [phases.0.tokens=512, phases.1.tokens=1024], candidates: [gla, gdn]}
      dimensions: {job: distill.yaml, set: [phases.0.tokens=512, phases.1.tokens=512], key_sizes: [4, 8], heads: [2],
        tolerance: 0.5}
      """)
  }

  /// A supernet is trained, resumed and searched with the same bits at any number of ranks, and a search that was killed
  /// goes on to the same result.
  @Test func supernetsAndSearchesAreTheSameAtAnyNumberOfRanks() throws {
    try writeSupernet()
    try jettrain("distill", "--job", "supernet.yaml", "--run-dir", "super1")
    try jettrain(
      ranks: 2, "distill", "--job", "supernet.yaml", "--run-dir", "super2", "--stop-at-step", "5", expecting: 75)
    try jettrain(ranks: 4, "distill", "--job", "supernet.yaml", "--run-dir", "super2")
    #expect(try jettrain("checkpoint", "diff", "super1", "super2").contains("identical"))
    func search(_ ranks: Int, _ output: String) throws -> Data {
      try jettrain(
        ranks: ranks,
        ["search", "placement", "super1/model", "--full", "1", "--sliding", "1"]
          + ["beam", "uniform", "random", "evolution", "predictor", "reinforce", "differentiable", "kl-restore"].flatMap
        {
          ["--strategy", $0]
        } + ["--evaluations", "6", "--gate-steps", "3", "--teacher", "teacher/model", "--objective", "kl"]
          + ["--objective", "accuracy=recall:0.5", "--items", "4", "--data", "data/qa", "--context", "64"]
          + ["--sequences", "4", "--run-dir", output])
      return try Data(contentsOf: URL(fileURLWithPath: folder + "/\(output)/result.json"))
    }
    let one = try search(0, "search1")
    #expect(try search(2, "search2") == one)
    #expect(try search(4, "search4") == one)
    // As a kill in the middle of a line would leave it.
    let cache = URL(fileURLWithPath: folder + "/search2/evaluations.jsonl")
    let known = try Data(contentsOf: cache)
    try known.prefix(known.count * 2 / 3).write(to: cache)
    try FileManager.default.removeItem(atPath: folder + "/search2/result.json")
    #expect(try search(2, "search2") == one)
    // What it found is a student's configuration.
    try jettrain(
      ranks: 2, "distill", "--job", "distill.yaml", "--set", "model.student=search1/config.json", "--set",
      "phases.0.tokens=512", "--set", "phases.1.tokens=512", "--run-dir", "found")
    let found = try String(contentsOfFile: folder + "/found/model/config.json", encoding: .utf8)
    #expect(!found.contains("supernet") && found.contains("gla"))
  }

  /// All steps in a row; killed at two moments, and gone on with, they end in the same result.
  @Test func allStepsOfASearchSurviveKills() throws {
    try writeSupernet()
    try writeSearch()
    // Speeds are those of a number of threads.
    let threads = ["JETTRAIN_THREADS": "1"]
    let (first, shown) = try small.run(
      ranks: 2, ["search", "all", "--job", "search.yaml", "--run-dir", "whole"], environment: threads)
    #expect(first == 0, "\(shown)")
    #expect(shown.contains("whole/config.json") && shown.contains("chosen"))
    // The last start has more ranks for each candidate, and so another speed of training, which is measured anew.
    func result(_ folder: String) throws -> String {
      let text = try String(contentsOfFile: self.folder + "/\(folder)/result.json", encoding: .utf8)
      return text.split(separator: "\n").filter { !$0.contains("trainTokensPerSecond") }.joined(separator: "\n")
    }
    try FileManager.default.createDirectory(atPath: folder + "/killed", withIntermediateDirectories: true)
    try FileManager.default.copyItem(atPath: folder + "/whole/rates.json", toPath: folder + "/killed/rates.json")
    for isThere in [
      { self.exists("killed/evaluations.jsonl") }, { self.candidates("killed").contains { $0.hasPrefix("gdn-") } },
    ] {
      let (process, errors) = try small.start(
        ranks: 2, ["search", "all", "--job", "search.yaml", "--run-dir", "killed"], environment: threads)
      while process.isRunning, !isThere() { usleep(2000) }
      _ = try run(["pkill", "-9", "-f", "search all --job search.yaml --run-dir killed"], folder)
      _ = errors.fileHandleForReading.readDataToEndOfFile()
      process.waitUntilExit()
      #expect(process.terminationStatus != 0)
    }
    let (status, output) = try small.run(
      ranks: 4, ["search", "all", "--job", "search.yaml", "--run-dir", "killed"], environment: threads)
    #expect(status == 0, "\(output)")
    #expect(try result("killed") == result("whole"))
    let report = try String(contentsOfFile: folder + "/whole/report.html", encoding: .utf8)
    #expect(report.contains("<svg") && report.contains("Dimensions") && !report.contains("http://www.w3.org/1999"))
    // What it found goes through convert, distill and eval as it is.
    try jettrain(
      "convert", "teacher/model", "--config", "whole/config.json", "--output", "student")
    try jettrain(
      ranks: 2, "distill", "--job", "distill.yaml", "--set", "model.student=student", "--set", "phases.0.tokens=512",
      "--set", "phases.1.tokens=512", "--run-dir", "found")
    let scores = try jettrain(
      "eval", "found", "--teacher", "teacher/model", "--data", "data/qa", "--context", "64", "--sequences", "4",
      "--objective", "accuracy=recall", "--items", "4")
    #expect(scores.contains("accuracy=recall"))
  }

  /// Candidates are trained once, and a repeated search gives the same file.
  @Test func blocksAreComparedAndNotTrainedAgain() throws {
    func search() throws -> (output: String, blocks: Data) {
      let output = try jettrain(
        ranks: 2, "search", "block", "--job", "distill.yaml", "--set", "phases.0.tokens=512", "--set",
        "phases.1.tokens=1024", "--candidates", "gdn,mamba2,retnet", "--data", "data/qa", "--context", "64",
        "--sequences",
        "4", "--objective", "kl", "--objective", "recall", "--decode-context", "64", "--run-dir", "blocks")
      return (output, try Data(contentsOf: URL(fileURLWithPath: folder + "/blocks/result.json")))
    }
    let (first, blocks) = try search()
    #expect(first.contains("step 3/3") && first.contains("mamba2"))
    let (second, again) = try search()
    #expect(again == blocks && !second.contains("step 3/3"), "\(second)")
  }

  private func exists(_ path: String) -> Bool { FileManager.default.fileExists(atPath: folder + "/" + path) }

  /// Run folders of a search's candidates.
  private func candidates(_ run: String) -> [String] {
    let names = (try? FileManager.default.contentsOfDirectory(atPath: folder + "/\(run)/candidates")) ?? []
    return names.filter { exists("\(run)/candidates/\($0)/metrics.jsonl") }.sorted()
  }

  /// A changed job trains anew; the scores of the old one are not those of the new.
  @Test func changedSettingsHaveTheirOwnScores() throws {
    func search(_ set: String...) throws -> [[Double]] {
      try jettrain(
        ranks: 2,
        ["search", "block", "--job", "distill.yaml", "--set", "phases.0.tokens=512", "--set", "phases.1.tokens=1024"]
          + set.flatMap { ["--set", $0] } + ["--candidates", "gla,gdn", "--data", "data/qa", "--context", "64"]
          + ["--sequences", "4", "--objective", "loss", "--decode-context", "64", "--run-dir", "blocks"])
      let data = try Data(contentsOf: URL(fileURLWithPath: folder + "/blocks/result.json"))
      let result = try #require(try JSONSerialization.jsonObject(with: data) as? [String: Any])
      let blocks = try #require((result["blocks"] as? [String: Any])?["candidates"] as? [[String: Any]])
      return blocks.sorted { "\($0["name"]!)" < "\($1["name"]!)" }.compactMap { $0["scores"] as? [Double] }
    }
    let first = try search()
    let names = candidates("blocks")
    #expect(names.count == 2)
    for change in ["phases.1.lr=5e-3", "phases.1.losses.hidden=2", "phases.1.tokens=1536"] {
      let before = candidates("blocks").count
      #expect(try search(change) != first, "\(change)")
      #expect(candidates("blocks").count == before + 2)
    }
    // How often it is saved changes nothing, and what was found once is found again.
    #expect(try search("checkpoints.every=2") == first)
    #expect(candidates("blocks").count == 8)
  }

  /// Whichever block wins, the search comes to its end; RWKV7's has no other shape in the grid.
  @Test func searchesFinishWhicheverBlockWins() throws {
    try writeSupernet()
    try writeSearch()
    let output = try jettrain(
      ranks: 2, "search", "all", "--job", "search.yaml", "--run-dir", "all", "--set", "block.candidates=[rwkv7]",
      "--set", "dimensions.key_sizes=[4]")
    #expect(
      output.contains("4. Dimensions: rwkv7 won") && output.contains("all/config.json is the student"), "\(output)")
    let config = try String(contentsOfFile: folder + "/all/config.json", encoding: .utf8)
    #expect(config.contains("rwkv7"))
  }

  /// What a search lacks is said before its supernet trains.
  @Test func inputsOfASearchAreCheckedFirst() throws {
    try writeSupernet()
    try writeSearch()
    for (ranks, set, code, reason) in [
      (2, "placement.full=99", 64, "search.yaml: placement.full: a placement of 99"),
      (0, "objectives.scores=[foo]", 64, "objective foo: unknown"),
      (0, "objectives.scores=[]", 64, "a search needs an objective"),
      (2, "placement.strategies=[]", 64, "placement.strategies: the list is empty"),
      (0, "dimensions.key_sizes=[5]", 64, "no d_K × heads of the grid"),
      (2, "teacher=nowhere", 65, "nowhere: there is no such model folder"),
      (0, "block.set=[model.teacher=nowhere]", 65, "model.teacher nowhere: there is no model folder"),
      (0, "dimensions.set=[data.root=nowhere]", 65, "there is no manifest"),
      (0, "objectives.scores=[answer-loss=none.jsonl]", 74, "none.jsonl"),
      (0, "objectives.data=data/none", 65, "there is no manifest"),
      (0, "block.set=[model.init=transfer, model.teacher=small]", 65, "vocab"),
    ] as [(Int, String, Int32, String)] {
      if set.contains("small"), !exists("small") {
        try write(
          "small.json",
          try String(contentsOfFile: folder + "/teacher.json", encoding: .utf8).replacingOccurrences(
            of: "257", with: "300"))
        try jettrain("convert", "--config", "small.json", "--output", "small")
      }
      let output = try jettrain(
        ranks: ranks, ["search", "all", "--job", "search.yaml", "--run-dir", "checked", "--set", set], expecting: code)
      #expect(output.contains(reason), "\(set): \(output)")
      let lines = output.split(separator: "\n").filter { $0.contains("jettrain: ") }
      #expect(lines.count == 1 && !exists("checked/supernet"), "\(set): \(output)")
    }
  }

  /// A STOP file ends a search of several groups of ranks at their checkpoints, is gone, and the same command goes on.
  @Test func searchesStopOnRequestOnce() throws {
    try writeSupernet()
    try writeSearch()
    let search = [
      "search", "all", "--job", "search.yaml", "--run-dir", "stopped", "--set", "block.set=[phases.1.tokens=65536]",
    ]
    func stop(once isThere: () -> Bool) throws {
      let (process, errors) = try start(ranks: 2, search)
      while process.isRunning, !isThere() { usleep(2000) }
      try write("stopped/STOP", "")
      let output = String(decoding: errors.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
      process.waitUntilExit()
      #expect(process.terminationStatus == 75 && output.contains("the same command goes on"), "\(output)")
      #expect(!exists("stopped/STOP"))
    }
    try FileManager.default.createDirectory(atPath: folder + "/stopped", withIntermediateDirectories: true)
    try stop { true }
    try stop { self.exists("stopped/evaluations.jsonl") }
    // Both groups are in the middle of their candidates.
    try stop { self.candidates("stopped").count == 2 }
    #expect(candidates("stopped").allSatisfy { !exists("stopped/candidates/\($0)/model") })
    let shown = try jettrain(ranks: 2, search)
    #expect(shown.contains("chosen") && exists("stopped/result.json"), "\(shown)")
  }

  /// `launch` starts a search again from what it has, and `plan` says what it takes.
  @Test func searchesAreLaunchedAndPlanned() throws {
    try writeSupernet()
    try writeSearch()
    let plan = try jettrain("plan", "--job", "search.yaml", "--ranks", "2")
    for word in ["supernet", "gla", "gdn", "4-16-2", "8-8-2", "time"] { #expect(plan.contains(word), "\(plan)") }
    let launch = [
      "launch", "--ranks", "2", "--backoff", "0.1", "--crashes-at-a-step", "2", "--mpirun=--oversubscribe",
      "--mpirun=--bind-to",
      "--mpirun=none", "--", "search", "all", "--job", "search.yaml", "--run-dir", "launched",
    ]
    let (process, errors) = try start(ranks: 0, launch)
    for isThere in [
      { self.exists("launched/supernet/metrics.jsonl") }, { self.exists("launched/evaluations.jsonl") },
      { !self.candidates("launched").isEmpty },
    ] {
      while process.isRunning, !isThere() { usleep(2000) }
      _ = try run(["pkill", "-9", "-f", "jettrain search all --job search.yaml --run-dir launched"], folder)
    }
    let output = String(decoding: errors.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
    process.waitUntilExit()
    #expect(process.terminationStatus == 0 && output.contains("finished; 4 attempts"), "\(output)")
    #expect(exists("launched/result.json") && exists("launched/logs/report.txt"))
    #expect(
      try jettrain("launch", "--ranks", "1", "--", "search", "show", "launched", expecting: 64).contains(
        "behind search"))
  }

  /// Aligning a supernet trains it, to the same bits at any number of ranks.
  @Test func supernetsAreAligned() throws {
    try writeSupernet()
    let job = [
      "distill", "--job", "supernet.yaml", "--set", "train.losses={mixer_output: 1}", "--set", "train.tokens=12288",
      "--set", "model.sliding_layers=0", "--set", "model.budget_share=1",
    ]
    try jettrain(ranks: 0, job + ["--run-dir", "one"])
    try jettrain(ranks: 2, job + ["--run-dir", "two", "--stop-at-step", "5"], expecting: 75)
    try jettrain(ranks: 4, job + ["--run-dir", "two"])
    #expect(try jettrain("checkpoint", "diff", "one", "two").contains("identical"))
    let losses = try losses("one").map { line -> Double in
      let object = try #require(try JSONSerialization.jsonObject(with: Data(line.utf8)) as? [String: Any])
      return object["loss"] as? Double ?? 0
    }
    let (first, last) = (losses.prefix(6).reduce(0, +), losses.suffix(6).reduce(0, +))
    #expect(losses.count == 24 && losses.allSatisfy { $0 > 0 } && last < 0.9 * first, "\(losses)")
  }

  // MARK: - Bad input: one clear line, the right code, no hang

  @Test func badInputEndsCleanly() throws {
    func distill(_ ranks: Int, _ set: String..., expecting: Int32, saying text: String) throws {
      let (process, errors) = try start(
        ranks: ranks, ["distill", "--job", "distill.yaml", "--run-dir", "bad"] + set.flatMap { ["--set", $0] })
      let output = String(decoding: errors.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
      process.waitUntilExit()
      #expect(process.terminationStatus == expecting, "\(set): \(output)")
      #expect(output.contains(text), "\(set): \(output)")
      let lines = output.split(separator: "\n").filter { $0.hasPrefix("jettrain: ") && $0.contains(text) }
      #expect(lines.count == 1, "\(set): said \(lines.count) times\n\(output)")
    }
    try distill(2, "train.leraning_rate=1", expecting: 64, saying: "is not a key of this file")
    try distill(0, "train.seed=many", expecting: 64, saying: "many is not a whole number")
    try distill(3, expecting: 64, saying: "do not divide over 3 ranks")
    try distill(0, "phases.0.tokens=1000", expecting: 64, saying: "is not a whole number of steps")
    try distill(2, "model.teacher=nowhere", expecting: 65, saying: "there is no model folder")
    try distill(2, "data.root=nowhere", expecting: 65, saying: "there is no manifest")
    try write(
      "alone.yaml",
      "model: {student: hybrid.json}\ndata: {root: data, mix: ./mix.yaml}\n"
        + "train: {context: 64, global_batch: 8, tokens: 512, losses: {cross_entropy: 1}}\n")
    let alone = try jettrain("distill", "--job", "alone.yaml", "--run-dir", "bad", expecting: 64)
    #expect(alone.contains("model.teacher is missing"), "\(alone)")
    try distill(0, "model.full_layers=1", expecting: 64, saying: "is not a supernet")
    try distill(0, "data.tokenizer=gpt", expecting: 65, saying: "there is no such tokenizer")
    try distill(2, "phases.0.lr=1e38", "train.clip=0", expecting: 70, saying: "nothing was updated")

    // Damaged data is found where it is read, on whatever rank.
    let shards = try FileManager.default.contentsOfDirectory(atPath: folder + "/data/qa").filter {
      $0.hasSuffix(".jtk.zst")
    }
    for shard in shards.sorted().dropLast() {
      let path = folder + "/data/qa/" + shard
      var bytes = try Data(contentsOf: URL(fileURLWithPath: path))
      bytes[bytes.count / 3] ^= 4
      try bytes.write(to: URL(fileURLWithPath: path))
    }
    let flipped = try jettrain(ranks: 2, "distill", "--job", "distill.yaml", "--run-dir", "flipped", expecting: 65)
    #expect(flipped.contains("frame 0"))
    let first = folder + "/data/qa/" + shards.sorted()[0]
    try Data(contentsOf: URL(fileURLWithPath: first)).dropLast(100).write(to: URL(fileURLWithPath: first))
    let cut = try jettrain(ranks: 2, "distill", "--job", "distill.yaml", "--run-dir", "cut", expecting: 65)
    #expect(cut.contains("truncated"))
    try FileManager.default.removeItem(atPath: first)
    let missing = try jettrain(ranks: 2, "distill", "--job", "distill.yaml", "--run-dir", "missing", expecting: 65)
    #expect(missing.contains("shard is missing"))
  }

  /// Data and tokenizers with ids that a model has no rows for are refused by every command, in one line.
  @Test func vocabulariesAreCompared() throws {
    try writeSupernet()
    for name in ["teacher", "supernet", "hybrid"] {
      let text = try String(contentsOfFile: folder + "/\(name).json", encoding: .utf8)
      try write("\(name)-100.json", text.replacingOccurrences(of: "257", with: "100"))
    }
    try jettrain("convert", "--config", "teacher-100.json", "--output", "small")
    try jettrain("convert", "--config", "supernet-100.json", "--output", "small-supernet")
    try write("gold.jsonl", #"{"question": "2 + 2?", "answer": "4"}"#)
    let data = ["--data", "data/qa", "--context", "64", "--sequences", "4"]
    for (ranks, command) in [
      (0, ["eval", "small"] + data), (0, ["eval", "teacher/model", "--teacher", "small"] + data),
      (0, ["eval", "small", "--objective", "accuracy=gold.jsonl"]), (0, ["eval", "small", "--objective", "recall"]),
      (0, ["compare", "small=small"] + data), (0, ["compare", "teacher=teacher/model", "small=small"] + data),
      (0, ["generate", "small", "--prompt", "Who?"]),
      (2, ["search", "placement", "small-supernet", "--full", "1", "--objective", "loss", "--run-dir", "bad"] + data),
      (
        2,
        [
          "search", "placement", "small-supernet", "--full", "1", "--objective", "answer-loss=gold.jsonl", "--run-dir",
          "bad",
        ]
      ),
      (
        2,
        [
          "search", "block", "--job", "distill.yaml", "--config", "hybrid-100.json", "--objective", "loss", "--run-dir",
          "bad",
        ]
          + data
      ),
    ] {
      let output = try jettrain(ranks: ranks, command, expecting: 65)
      let lines = output.split(separator: "\n").filter { $0.contains("jettrain: ") }
      #expect(lines.count == 1 && output.contains("a vocabulary of 100"), "\(command): \(output)")
    }
  }

  /// A rank whose memory goes wrong ends the run by name, one that is slow is reported.
  @Test func sickRanksAreNamed() throws {
    let job = ["distill", "--job", "distill.yaml", "--set", "watchdog.replicas_every=4"]
    let flipped = try small.run(
      ranks: 4, job + ["--run-dir", "flipped"], environment: ["JETTRAIN_FAILPOINT": "replicas:2:8:flip"])
    #expect(
      flipped.status == 70 && flipped.output.contains("step 8: the parameters of rank 2 differ"), "\(flipped.output)")
    let slow = try small.run(
      ranks: 2, job + ["--run-dir", "slow", "--set", "phases.1.tokens=\(512 * 60)"],
      environment: ["JETTRAIN_FAILPOINT": "step:1:2:lag"])
    #expect(
      slow.status == 0 && slow.output.contains(/rank 1 held the others up in \d+ of 50 steps: compute/),
      "\(slow.output)")
  }

  /// A run folder from elsewhere leads nothing out of it; what is written is as private as the umask says; names in
  /// manifests are of files of their own folder.
  @Test func runsWriteNothingOutsideTheirFolder() throws {
    let job = ["distill", "--job", "distill.yaml", "--run-dir", "run", "--stop-at-step", "5"]
    let outside = folder + "/outside"
    try write("outside", "untouched")
    try FileManager.default.createDirectory(atPath: folder + "/run", withIntermediateDirectories: true)
    for name in ["metrics.jsonl", "model", "latest", "logs"] {
      try FileManager.default.createSymbolicLink(atPath: folder + "/run/" + name, withDestinationPath: outside)
      let output = try jettrain(ranks: 2, job, expecting: 65)
      #expect(output.contains("run/\(name): is a link"), "\(output)")
      try FileManager.default.removeItem(atPath: folder + "/run/" + name)
    }
    for name in ["latest.partial", "step-00000005.partial"] {
      try FileManager.default.createSymbolicLink(atPath: folder + "/run/" + name, withDestinationPath: outside)
    }
    let shell = ["bash", "-c", "umask 027; exec \"$0\" \"$@\"", jettrainProgram]
    let (status, output) = try run(shell + job, folder)
    #expect(status == 75, "\(output)")
    #expect(try String(contentsOfFile: outside, encoding: .utf8) == "untouched")
    let files = try #require(FileManager.default.enumerator(atPath: folder + "/run")).compactMap { $0 as? String }
    #expect(files.contains("step-00000005/manifest.json"))
    for file in files {
      let attributes = try FileManager.default.attributesOfItem(atPath: folder + "/run/" + file)
      let mode = try #require(attributes[.posixPermissions] as? Int)
      #expect(mode & 0o027 == 0, "\(file): \(String(mode, radix: 8))")
    }
    let manifest = folder + "/run/step-00000005/manifest.json"
    let text = try String(contentsOfFile: manifest, encoding: .utf8)
    for name in ["../outside", "/etc/passwd", ".hidden"] {
      // Version 1 has no checksum, which would speak first.
      let changed = text.replacingOccurrences(of: "shard-00000.safetensors.zst", with: name)
        .replacingOccurrences(of: "\"version\" : 2", with: "\"version\" : 1")
      try write("run/step-00000005/manifest.json", changed)
      let refused = try jettrain("checkpoint", "verify", "run/step-00000005", expecting: 65)
      #expect(refused.contains("names a file outside its folder"), "\(refused)")
    }
  }

  @Test func checkpointsOfAnotherRunAreRefused() throws {
    try jettrain("distill", "--job", "distill.yaml", "--run-dir", "run", "--stop-at-step", "5", expecting: 75)
    let seed = try jettrain(
      "distill", "--job", "distill.yaml", "--run-dir", "run", "--set", "train.seed=2", expecting: 65)
    #expect(seed.contains("belongs to another run"))
    let anew = try jettrain("distill", "--job", "distill.yaml", "--run-dir", "run", "--resume", "never", expecting: 64)
    #expect(anew.contains("never overwritten"))
    let none = try jettrain("distill", "--job", "distill.yaml", "--run-dir", "other", "--resume", "must", expecting: 65)
    #expect(none.contains("no checkpoint to go on from"))
    // A checkpoint of the first phase is a whole model, unless the weights below it have changed.
    try jettrain("eval", "run", "--data", "data/qa", "--context", "64", "--sequences", "4")
    try jettrain("pretrain", "--job", "teacher.yaml", "--run-dir", "another", "--set", "train.seed=9")
    try FileManager.default.removeItem(atPath: folder + "/teacher/model")
    try FileManager.default.moveItem(atPath: folder + "/another/model", toPath: folder + "/teacher/model")
    let changed = try jettrain("eval", "run", "--data", "data/qa", "--context", "64", expecting: 65)
    #expect(changed.contains("have changed since"))
  }
}

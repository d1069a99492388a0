import Foundation
import TestSupport
import Testing

/// Supernets and searches over several ranks.
extension RankTests {
  func writeSearch() throws {
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

  func exists(_ path: String) -> Bool { FileManager.default.fileExists(atPath: folder + "/" + path) }

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
        "behind -- stands"))
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
}

import Foundation
import TestSupport
import Testing

/// Bad input: one clear line, the right code, no hang.
extension RankTests {
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
    try distill(
      2, "phases.0.lr=1e9", "train.weight_decay=1e9", "train.clip=0", "train.warmup_steps=0", expecting: 70,
      saying: "nothing was updated")

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

  /// Exchanges between cards that cannot be had are refused, and not taken over by others in silence.
  @Test func fabricsThatCannotServeAreRefused() throws {
    let job = ["distill", "--job", "distill.yaml", "--device", "cpu", "--run-dir", "fabric"]
    let cards = try small.run(ranks: 2, job, environment: ["JETTRAIN_FABRIC": "nccl"])
    #expect(cards.status == 69 && cards.output.contains("JETTRAIN_FABRIC is nccl, and rank 0 "), "\(cards.output)")
    let unknown = try small.run(ranks: 2, job, environment: ["JETTRAIN_FABRIC": "rdma"])
    #expect(unknown.status == 69 && unknown.output.contains("it can be mpi or nccl"), "\(unknown.output)")
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

  /// A student whose settings would make something else of what it inherits is refused, by `convert` and by a run.
  @Test func studentsOfAnotherArithmeticAreRefused() throws {
    let text = try String(contentsOfFile: folder + "/hybrid.json", encoding: .utf8)
    for (old, new, reason) in [
      ("10000.0", "20000.0", "its rope_theta is 20000.0, the teacher's 10000.0"),
      ("1e-6", "1e-5", "its rms_norm_eps is 1e-05, the teacher's 1e-06"),
      ("\"tie_word_embeddings\": true", "\"tie_word_embeddings\": false", "its tie_word_embeddings is false"),
    ] {
      try write("other.json", text.replacingOccurrences(of: old, with: new))
      let converted = try jettrain(
        "convert", "teacher/model", "--config", "other.json", "--output", "other", expecting: 65)
      let trained = try jettrain(
        ranks: 2, "distill", "--job", "distill.yaml", "--set", "model.student=other.json", "--run-dir", "other",
        expecting: 65)
      #expect(converted.contains(reason) && trained.contains(reason), "\(converted)\n\(trained)")
    }
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

  /// The former name of a key is read, and said once.
  @Test func formerNamesAreTold() throws {
    try write("former.yaml", "sources: [{name: qa, weight: 1}]\nholdout_shards: 1\n")
    let job = ["distill", "--job", "distill.yaml", "--stop-at-step", "2", "--run-dir"]
    let output = try jettrain(ranks: 2, job + ["former", "--set", "data.mix=./former.yaml"], expecting: 75)
    let told = output.split(separator: "\n").filter { $0.contains("holdout_shards is called validation_shards now") }
    #expect(told.count == 1, "\(output)")
  }
}

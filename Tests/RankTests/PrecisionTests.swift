import Foundation
import TestSupport
import Testing

/// Runs whose matrices are bfloat16 (`train.compute`).
extension RankTests {
  private static let bfloat16 = ["--set", "train.compute=bfloat16"]

  private func identical(_ a: String, _ b: String) throws {
    let diff = try jettrain("checkpoint", "diff", a, b)
    #expect(diff.contains("identical"), "\(a) \(b): \(diff)")
    #expect(try losses(a) == losses(b))
  }

  /// The float32 arrays of a model folder.
  private func arrays(_ model: String) throws -> [String: [Float]] {
    let data = try Data(contentsOf: URL(fileURLWithPath: folder + "/\(model)/model.safetensors"))
    let length = data.withUnsafeBytes { Int($0.loadUnaligned(as: UInt64.self)) }
    let header = try #require(try JSONSerialization.jsonObject(with: data[8..<8 + length]) as? [String: Any])
    var arrays: [String: [Float]] = [:]
    for (name, entry) in header {
      guard let entry = entry as? [String: Any], let offsets = entry["data_offsets"] as? [Int] else { continue }
      #expect(entry["dtype"] as? String == "F32")
      arrays[name] = data.withUnsafeBytes { bytes in
        stride(from: 8 + length + offsets[0], to: 8 + length + offsets[1], by: 4).map {
          bytes.loadUnaligned(fromByteOffset: $0, as: Float.self)
        }
      }
    }
    return arrays
  }

  /// The same bits at any number of ranks, and when a run is stopped in its first phase, between the phases and in its
  /// second one, and goes on at another number. Parameters that trained in the first phase rest in the second one and the
  /// other way round, embeddings among them.
  @Test(arguments: ["teacher/model", "teacher-bfloat16"]) func bfloat16RunsAreTheSameAtAnyNumberOfRanks(
    teacher: String
  ) throws {
    let job =
      ["distill", "--job", "distill.yaml", "--set", "model.teacher=\(teacher)", "--set"] + [
        "phases.1.freeze=[mixers, norms]"
      ] + Self.bfloat16
    try jettrain(ranks: 0, job + ["--run-dir", "whole"])
    for ranks in [1, 2, 4] {
      try jettrain(ranks: ranks, job + ["--run-dir", "ranks-\(ranks)"])
      try identical("whole", "ranks-\(ranks)")
      #expect(
        FileManager.default.contentsEqual(
          atPath: folder + "/whole/model/model.safetensors", andPath: folder + "/ranks-\(ranks)/model/model.safetensors"
        ))
    }
    for (first, second, step) in [(2, 4, 3), (4, 1, 8), (1, 2, 13)] {
      let run = "stopped-\(step)"
      try jettrain(ranks: first, job + ["--run-dir", run, "--stop-at-step", "\(step)"], expecting: 75)
      try jettrain(ranks: second, job + ["--run-dir", run, "--resume", "must"])
      try identical("whole", run)
    }
  }

  /// Phases may differ in it, and what has not begun may still be changed.
  @Test(arguments: ["float32", "bfloat16"]) func phasesMayDifferInPrecision(first: String) throws {
    let second = first == "float32" ? "bfloat16" : "float32"
    let job = ["distill", "--job", "distill.yaml", "--set", "phases.0.compute=\(first)", "--set"]
    try jettrain(ranks: 0, job + ["phases.1.compute=\(second)", "--run-dir", "whole"])
    try jettrain(ranks: 4, job + ["phases.1.compute=\(second)", "--run-dir", "ranks-4"])
    try identical("whole", "ranks-4")
    try jettrain(
      ranks: 2, job + ["phases.1.compute=\(first)", "--run-dir", "stopped", "--stop-at-step", "5"], expecting: 75)
    let output = try jettrain(ranks: 1, job + ["phases.1.compute=\(second)", "--run-dir", "stopped"])
    #expect(output.contains("the job was changed: phases.1.compute was \(first), is \(second)"), "\(output)")
    try identical("whole", "stopped")
  }

  /// What is saved and exported are the masters, of which most values are no bfloat16.
  @Test func mastersAreSavedAndExported() throws {
    let job = ["distill", "--job", "distill.yaml", "--set", "phases.1.freeze=[]"]
    try jettrain(ranks: 2, job + ["--run-dir", "narrow"] + Self.bfloat16)
    try jettrain("checkpoint", "export", "narrow", "--output", "exported", "--dtype", "float32")
    let (exported, written, start) = (try arrays("exported"), try arrays("narrow/model"), try arrays("teacher/model"))
    #expect(exported == written && exported.count > 30)
    for (name, values) in exported where name.hasSuffix("weight") && values.count > 64 {
      let low = values.count { $0.bitPattern & 0xFFFF != 0 }
      #expect(low > values.count / 2, "\(name): \(low) of \(values.count) are no bfloat16")
      #expect(values != start[name])
    }
  }

  /// The loss of every step is that of the same run in float32 within a hundredth, and not the same.
  @Test func bfloat16LossesAreThoseOfFloat32() throws {
    let job = ["pretrain", "--job", "teacher.yaml", "--set", "train.tokens=51200"]
    try jettrain(ranks: 2, job + ["--run-dir", "narrow"] + Self.bfloat16)
    try jettrain(ranks: 2, job + ["--run-dir", "wide"])
    func loss(_ run: String) throws -> [Double] {
      try losses(run).compactMap { line in
        (try JSONSerialization.jsonObject(with: Data(line.utf8)) as? [String: Any])?["loss"] as? Double
      }
    }
    let (narrow, wide) = (try loss("narrow"), try loss("wide"))
    let errors = zip(narrow, wide).map { abs($0 / $1 - 1) }
    print("loss in bfloat16 against float32: largest error \(errors.max()!), last \(narrow.last!) and \(wide.last!)")
    #expect(narrow.count == 100 && wide.count == 100 && errors.max()! < 0.01 && narrow != wide)
  }

  /// The precision is part of what a run is, also where its checkpoints are older than the choice.
  @Test func anotherPrecisionIsAnotherRun() throws {
    let job = ["distill", "--job", "distill.yaml"]
    try jettrain(ranks: 2, job + ["--run-dir", "wide", "--stop-at-step", "3"], expecting: 75)
    try jettrain(ranks: 2, job + ["--run-dir", "narrow", "--stop-at-step", "3"] + Self.bfloat16, expecting: 75)
    let narrow = try jettrain(ranks: 0, job + ["--run-dir", "narrow"], expecting: 65)
    #expect(narrow.contains("phases.0.compute was bfloat16, is float32"), "\(narrow)")
    let file = folder + "/wide/step-00000003/manifest.json"
    for isOld in [false, true] {
      if isOld {
        let text = try String(contentsOfFile: file, encoding: .utf8)
        let older = text.replacingOccurrences(
          of: #"\\"phases\.[01]\.compute\\":\\"float32\\","#, with: "", options: .regularExpression
        )
        #expect(older.count < text.count)
        // The first version had no checksum of its manifest.
        let first = older.replacingOccurrences(of: "\"version\" : 3", with: "\"version\" : 1")
        #expect(first != older)
        try write("wide/step-00000003/manifest.json", first)
      }
      let wide = try jettrain(ranks: 2, job + ["--run-dir", "wide"] + Self.bfloat16, expecting: 65)
      #expect(wide.contains("phases.0.compute was float32, is bfloat16"), "\(wide)")
    }
    try jettrain(ranks: 2, job + ["--run-dir", "wide"])
    let unknown = try jettrain(ranks: 0, job + ["--run-dir", "x", "--set", "train.compute=float16"], expecting: 64)
    #expect(unknown.contains("compute") && unknown.contains("bfloat16"), "\(unknown)")
  }

  /// A supernet's paths, a return to a checkpoint, and a rank whose memory goes wrong.
  @Test func bfloat16RunsReturnAndAreCompared() throws {
    try writeSupernet()
    let supernet = ["distill", "--job", "supernet.yaml"] + Self.bfloat16
    try jettrain(ranks: 1, supernet + ["--run-dir", "super1"])
    try jettrain(ranks: 2, supernet + ["--run-dir", "super2", "--stop-at-step", "5"], expecting: 75)
    try jettrain(ranks: 4, supernet + ["--run-dir", "super2"])
    try identical("super1", "super2")

    let job =
      ["distill", "--job", "distill.yaml", "--set", "spikes.policy=skip", "--set", "spikes.limit=2", "--set"] + [
        "watchdog.replicas_every=4"
      ] + Self.bfloat16
    for ranks in [1, 4] {
      let (status, output) = try small.run(
        ranks: ranks, job + ["--run-dir", "returned-\(ranks)"], environment: ["JETTRAIN_FAILPOINT": "poison:48:64:nan"])
      #expect(status == 0 && output.contains("skipping sequences"), "\(output)")
    }
    try identical("returned-1", "returned-4")

    let (status, output) = try small.run(
      ranks: 4, job + ["--run-dir", "flipped"], environment: ["JETTRAIN_FAILPOINT": "replicas:2:8:flip"])
    #expect(status != 0 && output.contains("the parameters of rank 2 differ"), "\(output)")
  }
}

import Foundation
import TestSupport
import Testing

/// What checkpoints are to others, and what damaged or foreign ones lead to.
extension RankTests {
  @Test func damagedCheckpointsAreSkippedButNeverForgotten() throws {
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
    #expect(output.contains("damaged and skipped") && output.contains("from step 5"))
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
    // Nor do links further down, where mpirun and the watchdog write.
    for name in ["logs/attempt-1", ".heartbeats/one"] {
      let path = folder + "/run/" + name
      try FileManager.default.createDirectory(
        atPath: (path as NSString).deletingLastPathComponent, withIntermediateDirectories: true)
      try FileManager.default.createSymbolicLink(atPath: path, withDestinationPath: folder)
      let output = try jettrain(ranks: 2, job, expecting: 65)
      #expect(output.contains("run/\(name): is a link"), "\(output)")
      try FileManager.default.removeItem(atPath: (path as NSString).deletingLastPathComponent)
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
        .replacingOccurrences(of: "\"version\" : 3", with: "\"version\" : 1")
      try write("run/step-00000005/manifest.json", changed)
      let refused = try jettrain("checkpoint", "verify", "run/step-00000005", expecting: 65)
      #expect(refused.contains("names a file outside its folder"), "\(refused)")
    }
  }
}

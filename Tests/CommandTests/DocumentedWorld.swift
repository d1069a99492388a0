import Foundation
import TestSupport

/// A folder in which what README and docs name is there, so that their commands run as they stand: small models under the
/// names of large ones, jobs of a few steps, and `jettrain` on the path.
final class DocumentedWorld: Sendable {
  let folder: String

  /// Makes the world.
  init() throws {
    folder = FileManager.default.temporaryDirectory.appendingPathComponent("jettrain-documented-\(UUID())").path
    try makeModels()
    try makeData()
    try makeJobs()
    try run("jettrain pretrain --job Jobs/teacher.yaml")
  }

  deinit { try? FileManager.default.removeItem(atPath: folder) }

  /// A copy that is removed by whoever made it, since what the commands of one document write is not there for another's.
  func copy() throws -> String {
    let copy = folder + "-" + UUID().uuidString
    try FileManager.default.copyItem(atPath: folder, toPath: copy)
    return copy
  }

  /// Runs a script of the shell in the world, or in a copy of it.
  func bash(_ script: String, in place: String? = nil) throws -> (status: Int32, output: String) {
    let process = Process()
    process.executableURL = URL(fileURLWithPath: "/bin/bash")
    process.arguments = ["-euo", "pipefail", "-c", script]
    process.currentDirectoryURL = URL(fileURLWithPath: place ?? folder)
    let path = ProcessInfo.processInfo.environment["PATH"] ?? "/usr/bin:/bin"
    process.environment = ProcessInfo.processInfo.environment.merging([
      "PATH": (place ?? folder) + "/bin:" + path, "JETTRAIN_THREADS": "1", "OMPI_ALLOW_RUN_AS_ROOT": "1",
      "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMPI_MCA_rmaps_base_oversubscribe": "1",
      "OMPI_MCA_hwloc_base_binding_policy": "none",
    ]) { $1 }
    let output = Pipe()
    (process.standardOutput, process.standardError) = (output, output)
    process.standardInput = FileHandle.nullDevice
    try process.run()
    let text = String(decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
    process.waitUntilExit()
    return (process.terminationStatus, text)
  }

  private func run(_ script: String) throws {
    let (status, output) = try bash(script)
    guard status == 0 else { throw SmallRun.Failure(description: "\(script)\n\(output)") }
  }

  private func write(_ name: String, _ text: String) throws {
    let url = URL(fileURLWithPath: folder + "/" + name)
    try FileManager.default.createDirectory(at: url.deletingLastPathComponent(), withIntermediateDirectories: true)
    try Data(text.utf8).write(to: url)
  }

  private func write(_ name: String, _ object: [String: Any]) throws {
    try write(name, String(decoding: try JSONSerialization.data(withJSONObject: object), as: UTF8.self))
  }

  private func makeModels() throws {
    let manager = FileManager.default
    try manager.createDirectory(atPath: folder + "/bin", withIntermediateDirectories: true)
    try manager.createSymbolicLink(atPath: folder + "/bin/jettrain", withDestinationPath: jettrainProgram)
    // A model with a reference's outputs, under a name that documents have, and a hybrid of its shape.
    try manager.createDirectory(atPath: folder + "/Models", withIntermediateDirectories: true)
    try manager.copyItem(atPath: goldenFolder + "/qwen2", toPath: folder + "/Models/Qwen2.5-1.5B")
    try manager.moveItem(
      atPath: folder + "/Models/Qwen2.5-1.5B/golden.safetensors", toPath: folder + "/golden.safetensors")
    let qwen: [String: Any] = [
      "model_type": "jet_nemotron", "vocab_size": 320, "hidden_size": 64, "intermediate_size": 160,
      "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-6,
      "rope_theta": 1_000_000.0, "tie_word_embeddings": true,
    ]
    try write("Jobs/models/jet-nemotron-2b.json", hybrid(qwen, ["jet", "attn", "jet", "jet"]))
    let teacher: [String: Any] = [
      "model_type": "qwen2", "vocab_size": 257, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 5,
      "num_attention_heads": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
      "tie_word_embeddings": true,
    ]
    try write("Jobs/models/teacher.json", teacher)
    try write("Jobs/models/hybrid.json", hybrid(teacher, ["jet", "attn", "jet", "jet", "jet"]))
    var supernet = hybrid(teacher, ["attn", "attn", "attn", "attn", "attn"])
    supernet["supernet_mixer"] = "gla"
    try write("Jobs/models/supernet.json", supernet)
  }

  /// `shape` with these layers. The state's 24,576 elements are those of many shapes.
  private func hybrid(_ shape: [String: Any], _ layers: [String]) -> [String: Any] {
    shape.merging([
      "model_type": "jet_nemotron", "layer_types": layers,
      "efficient_attention_config": [
        "jet": [
          "num_heads": 4, "head_dim": 64, "expand_v": 1.5, "norm_eps": "1e-5", "conv_size": 4,
          "dconv_generator_reduction": 8,
        ],
        "gla": ["num_heads": 2, "head_dim": 8, "expand_v": 1.0], "swa": ["window_size": 8],
      ] as [String: Any],
    ]) { $1 }
  }

  private func makeData() throws {
    try run(
      """
      jettrain tokens make-questions --count 1200 --seed 3 --output qa.jsonl
      jettrain tokens build --template 'Q: {question}\\nA: {answer}\\n' --shard-tokens 60000 --output Data/demo/qa qa.jsonl
      head -n 40 qa.jsonl > arc_easy.jsonl
      """)
    let lines = (0..<4000).map { "{\"text\": \"Text \($0) of somebody's own, \($0 * $0 % 977).\"}\n" }
    for part in 0..<4 {
      try write("texts/part-\(part).jsonl", lines[part * 1000..<(part + 1) * 1000].joined())
    }
    try write("Jobs/mixes/demo.yaml", "sources: [{name: qa, weight: 1}]\n")
  }

  private func makeJobs() throws {
    let common = """
      data: {root: Data/demo, mix: demo}
      train: {context: 64, global_batch: 8, micro_batch: 2, lr: 2e-3, tokens: 2048
      """
    try write(
      "Jobs/teacher.yaml", "kind: pretrain\nmodel: {student: Jobs/models/teacher.json}\n\(common)}\n")
    let teacher = "teacher: Checkpoints/teacher/model"
    try write(
      "Jobs/distill.yaml", "kind: distill\nmodel: {\(teacher), student: Jobs/models/hybrid.json}\n\(common)}\n")
    try write("Jobs/finetune.yaml", "kind: finetune\nmodel: {student: Checkpoints/distill/model}\n\(common)}\n")
    try write(
      "Jobs/supernet.yaml",
      """
      kind: distill
      model: {\(teacher), student: Jobs/models/supernet.json, full_layers: 2, sliding_layers: 1}
      \(common), losses: {hidden: 1, logits: 1}, freeze: [mlp, embeddings, norms, attention]}
      """)
    try write(
      "Jobs/search.yaml",
      """
      kind: search
      \(teacher)
      decode_context: 64
      objectives: {scores: [kl], data: Data/demo, mix: demo, context: 64, sequences: 4}
      placement: {job: Jobs/supernet.yaml, full: 1, sliding: 1, strategies: [beam, uniform], width: 1, evaluations: 4}
      block: {job: Jobs/distill.yaml, candidates: [gla, gdn]}
      dimensions: {job: Jobs/distill.yaml, key_sizes: [4, 8], heads: [2], tolerance: 0.1}
      """)
  }
}

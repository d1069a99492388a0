import Foundation

/// A folder with a small teacher, data and jobs, and the built program to run on them under the real mpirun.
package final class SmallRun: Sendable {
  package let folder: String

  package init() throws {
    folder = FileManager.default.temporaryDirectory.appendingPathComponent("jettrain-run-\(UUID())").path
    try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
    try makeInputs()
  }

  deinit { try? FileManager.default.removeItem(atPath: folder) }

  /// A program that ended otherwise than it should.
  package struct Failure: Error, CustomStringConvertible {
    package let description: String
    package init(description: String) { self.description = description }
  }

  /// Starts the program under so many ranks; 0 is without mpirun.
  package func start(
    ranks: Int, _ arguments: [String], environment extra: [String: String] = [:]
  ) throws -> (process: Process, errors: Pipe) {
    let mpi = ["mpirun", "--oversubscribe", "--bind-to", "none", "-n", "\(ranks)"]
    return try start((ranks > 0 ? mpi : []) + [jettrainProgram] + arguments, environment: extra)
  }

  /// Starts any command in the folder.
  package func start(
    _ command: [String], environment extra: [String: String] = [:]
  ) throws -> (process: Process, errors: Pipe) {
    let process = Process()
    process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
    process.arguments = command
    var environment = ProcessInfo.processInfo.environment
    environment["OMPI_ALLOW_RUN_AS_ROOT"] = "1"
    environment["OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"] = "1"
    process.environment = environment.merging(extra) { $1 }
    process.currentDirectoryURL = URL(fileURLWithPath: folder)
    let errors = Pipe()
    process.standardError = errors
    process.standardOutput = errors
    try process.run()
    return (process, errors)
  }

  /// Runs to the end.
  package func run(
    ranks: Int = 0, _ arguments: [String], environment: [String: String] = [:]
  ) throws -> (status: Int32, output: String) {
    let (process, errors) = try start(ranks: ranks, arguments, environment: environment)
    let output = String(decoding: errors.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
    process.waitUntilExit()
    return (process.terminationStatus, output)
  }

  private func expect(_ arguments: String...) throws {
    let (status, output) = try run(arguments)
    guard status == 0 else { throw Failure(description: "\(arguments.joined(separator: " "))\n\(output)") }
  }

  package func write(_ name: String, _ text: String) throws {
    try Data(text.utf8).write(to: URL(fileURLWithPath: folder + "/" + name))
  }

  private func makeInputs() throws {
    try expect("tokens", "make-questions", "--count", "800", "--seed", "3", "--output", "qa.jsonl")
    try expect(
      "tokens", "build", "--template", "Q: {question}\\nA: {answer}\\n", "--shard-tokens", "30000", "--output",
      "data/qa",
      "qa.jsonl")
    try write("mix.yaml", "sources: [{name: qa, weight: 1}]\n")
    let common = """
      "vocab_size": 257, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2,
      "num_key_value_heads": 1, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": true
      """
    try write("teacher.json", "{\"model_type\": \"qwen2\", \(common)}")
    try write(
      "hybrid.json",
      """
      {"model_type": "jet_nemotron", \(common), "layer_types": ["jet", "attn", "jet"], "efficient_attention_config":
      {"jet": {"num_heads": 2, "head_dim": 8, "expand_v": 2.0, "norm_eps": "1e-5", "conv_size": 4, "dconv_generator_reduction": 8}}}
      """)
    let train = "seed: 1, context: 64, global_batch: 8, micro_batch: 2, lr: 2e-3"
    let rest = "validation: {every: 10, sequences: 6}\ncheckpoints: {every: 5, keep_last: 20}\n"
    try write(
      "teacher.yaml",
      "model: {student: teacher.json}\ndata: {root: data, mix: ./mix.yaml}\ntrain: {\(train), tokens: 2560}\nrun_dir: teacher\n"
    )
    try write(
      "distill.yaml",
      """
      model: {teacher: teacher/model, student: hybrid.json}
      data: {root: data, mix: ./mix.yaml}
      train: {\(train)}
      phases:
      - {name: align, tokens: 4096, losses: {mixer_output: 1}, freeze: [mlp, embeddings, norms, attention]}
      - {name: end, tokens: 6144, losses: {logits: 1, hidden: 0.5}, recompute: cheap}
      \(rest)
      """)
    try expect("pretrain", "--job", "teacher.yaml")
    // What a downloaded model is.
    try expect("checkpoint", "export", "teacher", "--output", "teacher-bfloat16")
  }

  /// How far a run has come: lines of its metrics, 0 before there are any.
  package func loggedLines(_ run: String) -> Int {
    FileManager.default.contents(atPath: folder + "/\(run)/metrics.jsonl")?.count { $0 == UInt8(ascii: "\n") } ?? 0
  }

  /// Every training line of a run's metrics: step, losses and gradient norm, to the last bit.
  package func losses(_ run: String) throws -> [String] {
    let text = try String(contentsOfFile: folder + "/\(run)/metrics.jsonl", encoding: .utf8)
    return try text.split(separator: "\n").map { line in
      let object = try JSONSerialization.jsonObject(with: Data(line.utf8)) as? [String: Any] ?? [:]
      let kept = object.filter { ["step", "loss", "losses", "grad_norm", "validation", "sequences"].contains($0.key) }
      return String(decoding: try JSONSerialization.data(withJSONObject: kept, options: .sortedKeys), as: UTF8.self)
    }
  }
}

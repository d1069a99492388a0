import Foundation
import TestSupport
import Testing

/// What Git LFS leaves in the place of a file is called by its name, whichever command meets it.
@Suite struct PointerTests {
  private static let pointer = """
    version https://git-lfs.github.com/spec/v1
    oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393
    size 12345

    """

  @Test func pointersAreNamed() throws {
    let small = try SmallRun()
    let manager = FileManager.default
    func replace(_ path: String) throws {
      try Data(Self.pointer.utf8).write(to: URL(fileURLWithPath: small.folder + "/" + path))
    }
    func copy(_ path: String, to new: String) throws {
      try manager.copyItem(atPath: small.folder + "/" + path, toPath: small.folder + "/" + new)
    }
    for (name, file) in [("weights", "model.safetensors"), ("settings", "config.json")] {
      try copy("teacher/model", to: name)
      try replace(name + "/" + file)
    }
    try copy("teacher/model", to: "indexed")
    try manager.removeItem(atPath: small.folder + "/indexed/model.safetensors")
    try replace("indexed/model.safetensors.index.json")
    for folder in ["tokenizer", "merges"] {
      try manager.createDirectory(atPath: small.folder + "/" + folder, withIntermediateDirectories: true)
    }
    try replace("tokenizer/tokenizer.json")
    try small.write("merges/vocab.json", #"{"a": 0, "<|endoftext|>": 1}"#)
    try replace("merges/merges.txt")
    for name in [
      "model.gguf", "text.txt", "lines.jsonl", "text.txt.zst", "text.txt.gz", "ids.bin", "golden.safetensors",
      "job.yaml",
    ] { try replace(name) }
    for name in ["shard", "codebook", "manifest"] { try copy("data/qa", to: "data/\(name)") }
    try replace("data/shard/qa-00000.jtk.zst")
    try replace("data/codebook/codebook.zst")
    try replace("data/manifest/manifest.json")
    try copy("teacher", to: "run")
    try replace("run/step-00000005/shard-00000.safetensors.zst")
    let build = ["tokens", "build", "--output", "OUT"]
    for (arguments, file) in [
      (["generate", "weights", "--prompt", "Q"], "weights/model.safetensors"),
      (["generate", "settings", "--prompt", "Q"], "settings/config.json"),
      (["generate", "indexed", "--prompt", "Q"], "indexed/model.safetensors.index.json"),
      (["generate", "model.gguf", "--prompt", "Q"], "model.gguf"),
      (["convert", "model.gguf", "--output", "OUT"], "model.gguf"),
      (["verify", "teacher/model", "golden.safetensors"], "golden.safetensors"),
      (build + ["--tokenizer", "tokenizer", "qa.jsonl"], "tokenizer/tokenizer.json"),
      (build + ["--tokenizer", "merges", "qa.jsonl"], "merges/merges.txt"),
      (build + ["--tokenizer", "model.gguf", "qa.jsonl"], "model.gguf"),
      (build + ["text.txt"], "text.txt"), (build + ["--field", "text", "lines.jsonl"], "lines.jsonl"),
      (build + ["text.txt.zst"], "text.txt.zst"), (build + ["text.txt.gz"], "text.txt.gz"),
      (build + ["--tokens", "nanogpt", "ids.bin"], "ids.bin"),
      (["tokens", "inspect", "data/shard", "--text", "5"], "data/shard/qa-00000.jtk.zst"),
      (["tokens", "inspect", "data/codebook"], "data/codebook/codebook.zst"),
      (["tokens", "inspect", "data/manifest"], "data/manifest/manifest.json"),
      (["eval", "teacher/model", "--data", "data/shard", "--context", "32"], "data/shard/qa-00000.jtk.zst"),
      (
        ["distill", "--job", "distill.yaml", "--data", "data/shard", "--run-dir", "OUT"], "data/shard/qa-00000.jtk.zst"
      ),
      (
        ["distill", "--job", "distill.yaml", "--set", "model.teacher=weights", "--run-dir", "OUT"],
        "weights/model.safetensors"
      ),
      (["checkpoint", "verify", "run"], "run/step-00000005/shard-00000.safetensors.zst"),
      (["checkpoint", "export", "run", "--output", "OUT"], "run/step-00000005/shard-00000.safetensors.zst"),
      (["plan", "--job", "job.yaml"], "job.yaml"),
    ] {
      let (status, output) = try small.run(arguments)
      #expect(status == 65, "\(arguments): \(status) \(output)")
      #expect(
        output.contains("\(file): is a Git LFS pointer, not the file of 12345 bytes itself: run `git lfs pull`"),
        "\(arguments): \(output)")
      try? manager.removeItem(atPath: small.folder + "/OUT")
    }
  }
}

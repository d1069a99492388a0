import Chat
import Checkpointing
import Evaluation
import Files
import Foundation
import GGUF
import Hashing
import Models
import Parallel
import Safetensors
import Search
import TestSupport
import TokenStreams
import Tokenizers
import Training

// Mutated safetensors headers, tokenizer files, configurations, token shards, manifests, jobs, mixes, search jobs, checkpoints
// and files of questions: each must be read or refused with one of the program's own errors. The address space is limited,
// so that a
// size from a file that is believed ends the process; so does a case that hangs.
//
// usage: jettrain-fuzz [COUNT] [SEED] [KIND CASE]
// With KIND and CASE, as a report of a crash names them, that one alone, for Swift to print where it fails.

let arguments = CommandLine.arguments
let total = arguments.count > 1 ? Int(arguments[1]) ?? 0 : 20_000
let seed = arguments.count > 2 ? UInt64(arguments[2]) ?? 1 : 1
let only = arguments.count > 4 ? (kind: Int(arguments[3]) ?? 0, number: Int(arguments[4]) ?? 0) : nil

/// The case at hand, for the report of a crash.
nonisolated(unsafe) var current: (kind: Int32, number: Int32) = (0, 0)
for signal in [SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGABRT, SIGFPE, SIGALRM, SIGPROF] where only == nil {
  Foundation.signal(signal) { signal in
    let text = "jettrain-fuzz: signal \(signal) in kind \(current.kind), case \(current.number)\n"
    _ = text.withCString { write(2, $0, strlen($0)) }
    _exit(1)
  }
}

// In memory where there is such a place: every case of most kinds writes a file.
let memory = "/dev/shm"
let isWritable = FileManager.default.isWritableFile(atPath: memory)
let folder = (isWritable ? memory : FileManager.default.temporaryDirectory.path) + "/jettrain-fuzz-\(getpid())"
try createFolder(folder)
defer { try? FileManager.default.removeItem(atPath: folder) }

/// A small real dataset, whose shard is mutated.
func makeShard() throws -> (bytes: [UInt8], codebook: Codebook) {
  let text = (0..<300).map { "The \($0) quick brown foxes, and \($0 * 7919 % 1000) dogs.\n%\n" }.joined()
  try writeDurably(Data(text.utf8), to: folder + "/text.txt")
  _ = try DatasetBuilder(
    DatasetRecipe(
      name: "data", standsInFor: nil, inputs: [folder + "/text.txt"], format: .text(separator: "%"), codec: .rank,
      shardTokens: 1_000_000, level: 3), tokenizer: ByteTokenizer(), folder: folder + "/data",
    pool: ThreadPool(threads: 1)
  ).run { _, _ in }
  let dataset = try Dataset(folder + "/data")
  return (Array(try readFile(folder + "/data/" + dataset.manifest.shards[0].file)), dataset.codebook)
}
let shard = try makeShard()
let (mutatedShard, tokenizerPath) = (folder + "/mutated.jtk.zst", "tokenizer.json")
let (jobPath, mixPath) = (folder + "/job.yaml", folder + "/mix.yaml")
let checkpointPath = folder + "/checkpoint"
try createFolder(checkpointPath)
try FileManager.default.createSymbolicLink(atPath: folder + "/other", withDestinationPath: folder + "/data")

/// The checkpoint that the repository carries: its manifest, and a shard's content.
let checkpoint = try {
  let path = repository + "/Checkpoints/golden/step-00000003"
  var content = [UInt8](repeating: 0, count: 1 << 20)
  let reader = try ZstdReader(path + "/shard-00001.safetensors.zst")
  var filled = 0
  while true {
    let count = try content.withUnsafeMutableBytes {
      try reader.read(into: UnsafeMutableRawBufferPointer(rebasing: $0[filled...]))
    }
    if count == 0 { break }
    filled += count
  }
  return (
    manifest: Array(try readFile(path + "/" + CheckpointManifest.fileName)), shard: Array(content[..<filled])
  )
}()

/// A phase of a job as it should be.
let phase = try {
  _ = FileManager.default.createFile(atPath: jobPath, contents: Data(trainingJob))
  return try Job(.distill, path: jobPath, overrides: [], ranks: 2).phases[1]
}()

// MARK: - Manifests, questions and jobs

let manifestJSON = Array(try readFile(folder + "/data/" + Manifest.fileName))

/// A mutated manifest, mostly with a fingerprint that fits, so that what is behind that check is reached.
func manifest(_ random: inout Generator) -> [UInt8] {
  let text = mutate(manifestJSON, &random)
  guard Int.random(in: 0..<4, using: &random) > 0,
    var manifest = try? JSONDecoder().decode(Manifest.self, from: Data(text))
  else { return text }
  let encoder = JSONEncoder()
  encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes, .prettyPrinted]
  manifest.fingerprint = ""
  manifest.fingerprint = sha256((try? encoder.encode(manifest)) ?? Data())
  return Array((try? encoder.encode(manifest)) ?? Data())
}

let questions = Array(
  #"""
  {"query": "Which is red?", "choices": ["sky", "blood", "1,000"], "gold": 1}
  {"context": "He paid $1,000.50 for it, and she", "continuation": "laughed"}
  {"context": "Question: Who?\nAnswer:", "answer": "Ann", "aliases": ["Anna", "A. 7/8", "−5"]}
  {"question": "2 + 2?", "answer": "2 + 2 = <<2+2=4>>4\n#### 4"}
  """#.utf8)

try writeDurably(Data(configurationJSON), to: folder + "/hybrid.json")
let supernetJSON = json([
  "model_type": "jet_nemotron", "vocab_size": 320, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3,
  "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": true,
  "layer_types": ["attn", "attn", "attn"], "supernet_mixer": "gla",
  "efficient_attention_config": ["gla": ["num_heads": 2, "head_dim": 8], "swa": ["window_size": 17]],
])
try writeDurably(Data(supernetJSON), to: folder + "/supernet.json")
let jobText = """
  kind: distill
  model: {teacher: t, student: \(folder)/supernet.json, full_layers: 1, sliding_layers: 1, budget_share: 0.75}
  data: {root: d, mix: m, tokenizer: bytes}
  train: {seed: 1, context: 256, global_batch: 16, micro_batch: 4, schedule: cosine, warmup_steps: 20, clip: 1}
  phases:
  - {name: align, tokens: 200K, losses: {mixer_output: 1}, freeze: [mlp, embeddings], lr: 3e-3, min_lr: 1e-4}
  - {name: end, tokens: 409600, losses: {logits: 1, hidden: 0.1}, changes: [{from_step: 10, global_batch: 32, mix: n}]}
  validation: {every: 100, sequences: 64}
  checkpoints: {every: 100, keep_last: 2, compression_level: 3}
  spikes: {policy: skip, factor: 8, limit: 5}

  """
let searchText = """
  kind: search
  teacher: t
  decode_context: 64
  objectives: {scores: [kl:2, recall, accuracy=needle], data: d, context: 64, sequences: 4, items: 4, queries: 4, words: 50}
  placement: {job: \(folder)/job.yaml, full: 1, sliding: 1, strategies: [beam, exhaustive], width: 2, evaluations: 4}
  block: {job: \(folder)/job.yaml, set: [phases.0.tokens=64K], candidates: [gla, jet, mamba2, rwkv7, retnet]}
  dimensions: {job: \(folder)/job.yaml, key_sizes: [4, 8, 16], heads: [2, 4], tolerance: 0.5}

  """
try writeDurably(Data(jobText.utf8), to: folder + "/job.yaml")
let mutated = folder + "/mutated"

// MARK: - What reads it

let kinds: [(name: String, run: (inout Generator) throws -> Void)] =
  [
    (
      "safetensors headers",
      { random in
        let file = try SafetensorsFile(content: safetensors(&random), path: "fuzz")
        for (name, entry) in file.entries where [.float32, .bfloat16, .float16].contains(entry.type) {
          _ = try file.floats(name)
        }
      }
    ),
    (
      "tokenizer files",
      { random in
        let tokenizer = try BPETokenizer(json: Data(mutate(tokenizerJSON, &random)), path: tokenizerPath)
        let ids = tokenizer.encode("the theme \u{301} of <|endoftext|>\n".utf8, special: .recognized)
        _ = tokenizer.decode(ids + [0, 258, 4_000_000])
      }
    ),
    (
      "configurations",
      { random in
        let configuration = try ModelConfiguration(json: Data(mutate(configurationJSON, &random)), path: "config.json")
        _ = HybridLM(configuration).cacheBytes(context: 65_536)
      }
    ),
    (
      "token shards",
      { random in
        _ = FileManager.default.createFile(atPath: mutatedShard, contents: Data(mutate(shard.bytes, &random)))
        let reader = try ShardReader(mutatedShard, codebook: shard.codebook)
        for frame in 0..<reader.frameCount { _ = try reader.frame(frame) }
      }
    ),
    (
      "training jobs",
      { random in
        let text = Bool.random(using: &random) ? trainingJob : Array(jobText.utf8)
        _ = FileManager.default.createFile(atPath: mutated, contents: Data(mutate(text, &random)))
        let job = try Job(.distill, path: mutated, overrides: [], ranks: 2)
        // What is computed from a job before anything runs.
        _ = (job.totalTokens, job.locate(job.totalSteps))
        for phase in job.phases {
          for step in [0, phase.steps / 2, max(0, phase.steps - 1)] {
            _ = (phase.learningRate(at: step), phase.batch(at: step), phase.sequences(before: step))
          }
        }
      }
    ),
    (
      "search jobs",
      { random in
        _ = FileManager.default.createFile(atPath: mutated, contents: Data(mutate(Array(searchText.utf8), &random)))
        _ = try SearchJob(path: mutated, ranks: 2).steps()
      }
    ),
    (
      "mixes",
      { random in
        _ = FileManager.default.createFile(atPath: mixPath, contents: Data(mutate(mixFile, &random)))
        let plan = try DataPlan(
          mix: Mix(mixPath, folder: folder), root: folder, context: 64, seed: 1, label: "fuzz", trains: false)
        _ = plan.validation(count: 10)
        guard plan.sources.allSatisfy({ $0.stream.sequenceCount > 0 }) else { return }
        try plan.checkSupply(sequences: 5000)
        _ = try plan.read(3000..<3004)
      }
    ),
    (
      "checkpoint manifests",
      { random in
        let bytes = Bool.random(using: &random) ? checkpoint.manifest : checkpointManifest
        _ = FileManager.default.createFile(
          atPath: folder + "/" + CheckpointManifest.fileName, contents: Data(mutate(bytes, &random)))
        let read = try Checkpoint(folder)
        // What `checkpoint list` and a resume compute from it.
        _ = read.manifest.shards.reduce(0) { $0 + $1.bytes }
        let spikes = SpikeGuard(.init(), state: read.manifest.spikes ?? .init())
        _ = spikes.cursor(after: 3, of: phase)
        try? read.verify()
      }
    ),
    (
      "checkpoint shards",
      { random in
        // With a manifest that fits, as whoever means harm would make it.
        let shard = mutate(checkpoint.shard, &random).withUnsafeBytes { Zstd.compress($0, level: 1) }
        let path = checkpointPath
        _ = FileManager.default.createFile(atPath: path + "/shard.zst", contents: Data(shard))
        var manifest = try JSONSerialization.jsonObject(with: Data(checkpointManifest)) as! [String: Any]
        manifest["shards"] = [["file": "shard.zst", "bytes": shard.count, "sha256": sha256(shard)]]
        _ = FileManager.default.createFile(
          atPath: path + "/" + CheckpointManifest.fileName, contents: Data(json(manifest)))
        _ = try Checkpoint(path).assemble()
      }
    ),
    (
      "manifests",
      { random in
        let copy = folder + "/data-copy"
        try createFolder(copy)
        _ = FileManager.default.createFile(atPath: copy + "/" + Manifest.fileName, contents: Data(manifest(&random)))
        let manifest = try Manifest(folder: copy)
        _ = manifest.tokens + manifest.documents
        _ = manifest.shards.reduce(0) { $0 + $1.bytes }
      }
    ),
    (
      "files of questions",
      { random in
        _ = FileManager.default.createFile(atPath: mutated, contents: Data(mutate(questions, &random)))
        for question in try Question.draw(9, from: mutated, seed: random.next()) {
          let text = String(decoding: mutate(Array(question.prompt.utf8), &random), as: UTF8.self)
          for match in AnswerMatch.allCases { _ = match.accepts(text, answers: question.answers) }
        }
      }
    ),
  ] + modelFileKinds(folder: folder)

// 1 GiB beyond what the process has now is far more than any case may ask for.
let pages = (try? String(contentsOfFile: "/proc/self/statm", encoding: .utf8))?.split(separator: " ").first
var limit = rlimit(rlim_cur: 0, rlim_max: 0)
limit.rlim_cur = UInt(Int(pages ?? "") ?? 0) * 4096 + 1 << 30
limit.rlim_max = limit.rlim_cur
guard setrlimit(__rlimit_resource_t(RLIMIT_AS.rawValue), &limit) == 0 else {
  fatalError("the address space cannot be limited: \(String(cString: strerror(errno)))")
}

/// Ends the process unless it is called again before `seconds` of its own time have passed, or a good while by the clock:
/// on a busy machine waiting is not hanging. 0 for no limit.
func allow(seconds: Int) {
  var timer = itimerval(it_interval: timeval(), it_value: timeval(tv_sec: seconds, tv_usec: 0))
  setitimer(__itimer_which_t(ITIMER_PROF.rawValue), &timer, nil)
  alarm(UInt32(60 * seconds))
}

for (kind, entry) in kinds.enumerated() {
  var (accepted, refused) = (0, 0)
  for number in 0..<total / kinds.count where only.map({ $0 == (kind, number) }) ?? true {
    current = (Int32(kind), Int32(number))
    // Each case has a seed of its own, so that one can be run again.
    var random = Generator(state: seed &+ UInt64(kind) << 40 &+ UInt64(number) << 8)
    allow(seconds: 10)
    do {
      try entry.run(&random)
      accepted += 1
    } catch is FileError, is TokenizerError, is TemplateError, is ModelError, is JobError, is CheckpointError {
      refused += 1
    } catch {
      print("jettrain-fuzz: \(entry.name), case \(number): an error of another kind: \(type(of: error)) \(error)")
      exit(1)
    }
  }
  allow(seconds: 0)
  print("fuzz \(entry.name): \(accepted + refused) cases, \(refused) refused, \(accepted) read, 0 crashes")
}
let status = (try? String(contentsOfFile: "/proc/self/status", encoding: .utf8)) ?? ""
print(status.split(separator: "\n").first { $0.hasPrefix("VmHWM") } ?? "")

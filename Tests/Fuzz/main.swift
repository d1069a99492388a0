import Evaluation
import Files
import Foundation
import Hashing
import Models
import Parallel
import Safetensors
import Search
import TokenStreams
import Tokenizers
import Training

// Mutated safetensors headers, tokenizer files, configurations, token shards, manifests, files of questions, jobs, mixes and
// search jobs: each must be read or refused with one of the program's own errors. The address space is limited, so that a
// size from a file that is believed ends the process; so does a case that hangs.
//
// usage: jettrain-fuzz [COUNT] [SEED]

let arguments = CommandLine.arguments
let total = arguments.count > 1 ? Int(arguments[1]) ?? 0 : 20_000
let seed = arguments.count > 2 ? UInt64(arguments[2]) ?? 1 : 1

/// The case at hand, for the report of a crash.
nonisolated(unsafe) var current: (kind: Int32, number: Int32) = (0, 0)
for signal in [SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGABRT, SIGFPE, SIGALRM] {
  Foundation.signal(signal) { signal in
    let text = "jettrain-fuzz: signal \(signal) in kind \(current.kind), case \(current.number)\n"
    _ = text.withCString { write(2, $0, strlen($0)) }
    _exit(1)
  }
}

/// SplitMix64.
struct Generator: RandomNumberGenerator {
  var state: UInt64
  mutating func next() -> UInt64 {
    state &+= 0x9E37_79B9_7F4A_7C15
    var z = state
    z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
    z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
    return z ^ (z >> 31)
  }
}

/// Changes a few places: bits, bytes, runs, numbers and ends. Half of the cases change numbers alone, so that what is
/// behind the syntax is reached.
func mutate(_ original: [UInt8], _ random: inout Generator) -> [UInt8] {
  var bytes = original
  let changesNumbers = Bool.random(using: &random)
  let tokens = [
    "0", "-1", "1e999", "18446744073709551615", "9223372036854775807", "4294967296", "1e-5", "null", "true", "[]", "{}",
    "\"\"", "\"\\ud800\"", "[[[[", ",", ":", "\u{0}", "NaN", "0.5", "65536", "99999999",
  ]
  for _ in 0..<Int.random(in: 1...4, using: &random) {
    guard !bytes.isEmpty else { break }
    let at = Int.random(in: 0..<bytes.count, using: &random)
    switch changesNumbers ? 4 : Int.random(in: 0..<8, using: &random) {
    case 0: bytes[at] ^= 1 << UInt8.random(in: 0..<8, using: &random)
    case 1: bytes[at] = UInt8.random(in: 0...255, using: &random)
    case 2: bytes.removeSubrange(at..<min(bytes.count, at + Int.random(in: 1...64, using: &random)))
    case 3:
      let end = min(bytes.count, at + Int.random(in: 1...64, using: &random))
      bytes.insert(contentsOf: Array(bytes[at..<end]), at: Int.random(in: 0...bytes.count, using: &random))
    case 4:
      // A number in its place becomes another.
      guard let first = bytes[at...].firstIndex(where: { (48...57).contains($0) }) else { continue }
      let end = bytes[first...].firstIndex { !(48...57).contains($0) } ?? bytes.count
      bytes.replaceSubrange(first..<end, with: tokens.randomElement(using: &random)!.utf8)
    case 5: bytes.insert(contentsOf: tokens.randomElement(using: &random)!.utf8, at: at)
    case 6: bytes.removeLast(bytes.count - at)
    default: for i in at..<min(bytes.count, at + 8) { bytes[i] = [0, 0xFF, 0x7F, 0x80].randomElement(using: &random)! }
    }
  }
  return bytes
}

// MARK: - What is mutated

func json(_ object: Any) -> [UInt8] { Array(try! JSONSerialization.data(withJSONObject: object, options: .sortedKeys)) }

func safetensors(_ random: inout Generator) -> [UInt8] {
  let header = try! SafetensorsHeader(
    [
      .init(name: "model.embed_tokens.weight", type: .bfloat16, shape: [7, 4]),
      .init(name: "model.norm.weight", shape: [4]), .init(name: "input_ids", type: .int64, shape: [1, 3]),
    ], metadata: ["format": "pt"])
  let whole = Array(header.bytes) + [UInt8](repeating: 0x3C, count: header.fileSize - header.bytes.count)
  // Mostly the JSON, with a length that fits, so that what is behind the first check is reached.
  guard Int.random(in: 0..<4, using: &random) > 0 else { return mutate(whole, &random) }
  let text = mutate(Array(header.bytes.dropFirst(8)), &random)
  return withUnsafeBytes(of: UInt64(text.count).littleEndian) { Array($0) } + text
    + Array(whole[header.bytes.count...])
}

let tokenizerJSON: [UInt8] = {
  var vocabulary: [String: Int] = [:]
  var next: UInt32 = 256
  for byte in 0..<256 {
    switch byte {
    case 0x21...0x7E, 0xA1...0xAC, 0xAE...0xFF: vocabulary[String(Character(Unicode.Scalar(UInt8(byte))))] = byte
    default:
      vocabulary[String(Character(Unicode.Scalar(next)!))] = byte
      next += 1
    }
  }
  vocabulary["th"] = 256
  vocabulary["the"] = 257
  return json([
    "added_tokens": [["id": 258, "content": "<|endoftext|>", "special": true, "lstrip": false]],
    "normalizer": ["type": "NFC"],
    "pre_tokenizer": [
      "type": "Sequence",
      "pretokenizers": [
        [
          "type": "Split", "behavior": "Isolated", "invert": false,
          "pattern": [
            "Regex":
              #"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"#
          ],
        ], ["type": "ByteLevel", "add_prefix_space": false, "use_regex": false],
      ],
    ],
    "model": ["type": "BPE", "vocab": vocabulary, "merges": [["t", "h"], ["th", "e"]]],
  ])
}()

let configurationJSON = json([
  "model_type": "jet_nemotron", "vocab_size": 320, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3,
  "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
  "tie_word_embeddings": true, "layer_types": ["jet", "swa", "attn"], "eos_token_id": 3,
  "efficient_attention_config": [
    "jet": ["num_heads": 4, "head_dim": 24, "expand_v": 2.6666666667, "norm_eps": "1e-5", "conv_size": 4],
    "swa": ["window_size": 17],
  ],
])

let folder = FileManager.default.temporaryDirectory.appendingPathComponent("jettrain-fuzz-\(getpid())").path
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
let mixText = """
  name: blend
  exhaustion: repeat
  max_epochs: 64
  holdout_shards: 1
  sources: [{name: a, weight: 40}, {name: b, weight: 9, note: x}]

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

let kinds: [(name: String, run: (inout Generator) throws -> Void)] = [
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
      let tokenizer = try ByteLevelBPE(json: Data(mutate(tokenizerJSON, &random)), path: tokenizerPath)
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
  (
    "job files",
    { random in
      _ = FileManager.default.createFile(atPath: mutated, contents: Data(mutate(Array(jobText.utf8), &random)))
      let job = try Job(.distill, path: mutated, overrides: [], ranks: 2)
      _ = (job.totalSteps, job.totalTokens, job.locate(7))
      for phase in job.phases { _ = (phase.learningRate(at: phase.steps - 1), phase.batch(at: 11), phase.microBatches) }
    }
  ),
  (
    "mixes",
    { random in
      let path = mutated + ".yaml"
      _ = FileManager.default.createFile(atPath: path, contents: Data(mutate(Array(mixText.utf8), &random)))
      let mix = try Mix(path, folder: folder)
      _ = mix.sources.reduce(0) { $0 + $1.weight } - mix.holdoutShards
    }
  ),
  (
    "search jobs",
    { random in
      _ = FileManager.default.createFile(atPath: mutated, contents: Data(mutate(Array(searchText.utf8), &random)))
      _ = try SearchJob(path: mutated, ranks: 2).steps()
    }
  ),
]

// 1 GiB beyond what the process has now is far more than any case may ask for.
let pages = (try? String(contentsOfFile: "/proc/self/statm", encoding: .utf8))?.split(separator: " ").first
var limit = rlimit(rlim_cur: 0, rlim_max: 0)
limit.rlim_cur = UInt(Int(pages ?? "") ?? 0) * 4096 + 1 << 30
limit.rlim_max = limit.rlim_cur
guard setrlimit(__rlimit_resource_t(RLIMIT_AS.rawValue), &limit) == 0 else {
  fatalError("the address space cannot be limited: \(String(cString: strerror(errno)))")
}

for (kind, entry) in kinds.enumerated() {
  var (accepted, refused) = (0, 0)
  for number in 0..<total / kinds.count {
    current = (Int32(kind), Int32(number))
    // Each case has a seed of its own, so that one can be run again.
    var random = Generator(state: seed &+ UInt64(kind) << 40 &+ UInt64(number) << 8)
    alarm(10)
    do {
      try entry.run(&random)
      accepted += 1
    } catch is FileError, is SafetensorsError, is TokenizerError, is ModelError, is JobError {
      refused += 1
    } catch {
      print("jettrain-fuzz: \(entry.name), case \(number): an error of another kind: \(type(of: error)) \(error)")
      exit(1)
    }
  }
  alarm(0)
  print("fuzz \(entry.name): \(accepted + refused) cases, \(refused) refused, \(accepted) read, 0 crashes")
}
let status = (try? String(contentsOfFile: "/proc/self/status", encoding: .utf8)) ?? ""
print(status.split(separator: "\n").first { $0.hasPrefix("VmHWM") } ?? "")

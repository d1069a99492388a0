import Files
import Foundation
import Models
import Parallel
import Safetensors
import TokenStreams
import Tokenizers

// Mutated safetensors headers, tokenizer files, configurations and token shards: each must be read or refused with one
// of the program's own errors. The address space is limited, so that a size from a file that is believed ends the
// process; so does a case that hangs.
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
    } catch is FileError, is SafetensorsError, is TokenizerError, is ModelError {
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

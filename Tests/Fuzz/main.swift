import Checkpointing
import Files
import Foundation
import Hashing
import Models
import Parallel
import Safetensors
import Search
import TestSupport
import TokenStreams
import Tokenizers
import Training

// Mutated safetensors headers, tokenizer files, configurations, token shards, jobs, mixes, checkpoints and files of
// questions: each must be read or refused with one of the program's own errors. The address space is limited, so that a
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
for signal in [SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGABRT, SIGFPE, SIGALRM] where only == nil {
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
    "training jobs",
    { random in
      _ = FileManager.default.createFile(atPath: jobPath, contents: Data(mutate(trainingJob, &random)))
      let job = try Job(.distill, path: jobPath, overrides: [], ranks: 2)
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
      _ = FileManager.default.createFile(atPath: jobPath, contents: Data(mutate(searchJob, &random)))
      _ = try SearchJob(path: jobPath, output: nil)
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
    "files of questions",
    { random in
      let path = folder + "/questions.jsonl"
      _ = FileManager.default.createFile(atPath: path, contents: Data(mutate(evaluationFile, &random)))
      _ = try Objective(
        answers: path, limit: 100, tokenizer: ByteTokenizer(),
        match: [nil, .contains, .equals].randomElement(using: &random)!)
      if let match = AnswerMatch.allCases.randomElement(using: &random) {
        _ = match.accepts(String(decoding: mutate(evaluationFile, &random), as: UTF8.self), answer: "5")
      }
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
  for number in 0..<total / kinds.count where only.map({ $0 == (kind, number) }) ?? true {
    current = (Int32(kind), Int32(number))
    // Each case has a seed of its own, so that one can be run again.
    var random = Generator(state: seed &+ UInt64(kind) << 40 &+ UInt64(number) << 8)
    alarm(10)
    do {
      try entry.run(&random)
      accepted += 1
    } catch is FileError, is SafetensorsError, is TokenizerError, is ModelError, is JobError, is CheckpointError {
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

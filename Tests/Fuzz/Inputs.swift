import Foundation
import Safetensors

// What is mutated, but for what has to be built first.

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

/// A training job with every key.
let trainingJob = Array(
  """
  name: fuzz
  model: {teacher: teacher/model, student: hybrid.json, init: transfer, teacher_config: t.json, student_config: s.json}
  data: {root: data, mix: mix, mixes: mixes, tokenizer: bytes}
  train: {seed: 7, context: 64, global_batch: 8, micro_batch: 2, lr: 2e-3, min_lr: 1e-4, schedule: wsd, warmup_steps: 3,
    beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weight_decay: 0.1, clip: 1.5}
  phases:
  - {name: align, tokens: 4096, losses: {mixer_output: 1}, freeze: [mlp, embeddings, norms, attention]}
  - name: end
    tokens: 2M
    losses: {logits: 1, hidden: 0.5, cross_entropy: 2}
    recompute: cheap
    changes: [{from_step: 5, global_batch: 16}, {from_step: 9, mix: other, global_batch: 4}]
  validation: {every: 10, sequences: 6}
  checkpoints: {every: 5, keep_last: 20, keep_every: 100, compression_level: 3, on_failure: continue, gather: true}
  spikes: {policy: skip, factor: 10, limit: 4}
  watchdog: {floor: 12.5, replicas_every: 7}
  log_every: 3
  run_dir: run
  """.utf8)

let mixFile = Array(
  """
  name: fuzz
  description: one of two
  exhaustion: repeat
  max_epochs: 40
  holdout_shards: 1
  sources: [{name: data, weight: 3, note: first}, {name: other, weight: 1}]
  """.utf8)

/// A manifest of version 1, which carries no checksum, so that what is behind the checksum is reached.
let checkpointManifest = json([
  "version": 1, "step": 3, "tokens": 384, "phase": 0, "phaseStep": 3, "sequences": 12, "worldSize": 2,
  "identity": ["kind": "distill", "model": "5ba0", "frozen": "2680", "teacher": "0d7f", "plans": ["ccc6"]],
  "job": ["path": "d.yaml", "seed": "1"],
  "spikes": [
    "usualNorm": 1.5, "skips": 1, "firstStep": 2, "firstSequence": 8, "passedOver": [[4, 8], [16, 20]], "returns": 1,
  ],
  "shards": [
    ["file": "shard-00000.safetensors.zst", "bytes": 77, "sha256": "8679"],
    ["file": "shard-00001.safetensors.zst", "bytes": 11485, "sha256": "d7ff", "state": "12ab"],
  ],
])

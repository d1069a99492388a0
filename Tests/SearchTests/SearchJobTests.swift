import CPUBackend
import Evaluation
import Foundation
import Models
import Search
import Testing
import TokenStreams
import Tokenizers
import Training

private let repository = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
  .deletingLastPathComponent().path

/// A model of one attention and one linear layer of this shape.
func linearModel(_ mixer: LayerType, heads: Int, keySize: Int, valueSize: Int) throws -> ModelConfiguration {
  let shape: [String: Any] =
    mixer == .mamba2
    ? ["num_heads": heads, "head_dim": valueSize, "state_size": keySize]
    : ["num_heads": heads, "head_dim": keySize, "expand_v": Double(valueSize) / Double(keySize)]
  let object: [String: Any] = [
    "model_type": "jet_nemotron", "vocab_size": 320, "hidden_size": 32, "intermediate_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": true,
    "layer_types": ["attn", mixer.rawValue], "efficient_attention_config": [mixer.rawValue: shape],
  ]
  return try ModelConfiguration(json: JSONSerialization.data(withJSONObject: object), path: "config.json")
}

/// Job files as they are shipped, and what is wrong with others.
@Suite struct SearchJobTests {
  init() { #expect(FileManager.default.changeCurrentDirectoryPath(repository)) }

  /// Every file under Jobs is read by what reads its kind: one that is added is tested too.
  @Test func shippedJobsAreValid() throws {
    var counts: [String: Int] = [:]
    let files = try #require(FileManager.default.enumerator(atPath: "Jobs")).compactMap { $0 as? String }
    for file in files.sorted() {
      let path = "Jobs/" + file
      switch (file as NSString).pathExtension {
      case "json":
        _ = HybridLM(try ModelConfiguration(path: path))
        counts["model", default: 0] += 1
      case "yaml" where file.hasPrefix("mixes/"):
        let mix = try Mix(
          ((file as NSString).lastPathComponent as NSString).deletingPathExtension, folder: "Jobs/mixes")
        #expect(!mix.sources.isEmpty)
        counts["mix", default: 0] += 1
      case "yaml":
        let declared = try Job.declaredKind(of: path)
        counts[declared, default: 0] += 1
        let ranks = file.hasPrefix("bench") ? 1 : 2
        if declared == "search" {
          let search = try SearchJob(path: path, ranks: ranks)
          #expect(try search.steps().allSatisfy { !$0.candidates.isEmpty }, "\(path)")
        } else {
          let kind = try #require(JobKind(rawValue: declared), "\(path): kind \(declared)")
          let job = try Job(kind, path: path, overrides: [], ranks: ranks)
          if !job.readsOneDataset { _ = try Mix(job.mixName, folder: "Jobs/mixes") }
        }
      case "txt":
        // The layers of a model in the order in which they are replaced: each once.
        let text = try String(contentsOfFile: path, encoding: .utf8)
        let layers = text.split(separator: "\n").filter { !$0.hasPrefix("#") }.joined(separator: " ").split(
          separator: " ")
        #expect(layers.compactMap { Int($0) }.sorted() == Array(0..<layers.count) && layers.count > 1, "\(path)")
      case "": break  // A folder.
      case "sh": break  // Its commands run in `./bootstrap demo`.
      case let other: Issue.record("\(path): nothing reads files of kind .\(other)")
      }
    }
    #expect(["search", "distill", "finetune", "pretrain", "mix", "model"].allSatisfy { counts[$0, default: 0] > 0 })
  }

  /// What can be seen to be wrong is said when the job is read, not when a day of training is over; all of it at once.
  @Test(arguments: [
    (
      ["placement.full=99"],
      "placement.full: a placement of 99 full and 1 sliding layers: Jobs/models/demo-supernet.json has 4"
    ),
    (["placement.full=3"], "placement.full: no layer is left to become linear"),
    (["placement.full=-1"], "placement.full: must be at least 0"),
    (["objectives.scores=[foo]"], "objectives.scores: objective foo: unknown"),
    (["objectives.scores=[kl:0]"], "objectives.scores: objective kl:0: weights are above zero"),
    (["objectives.scores=[]"], "objectives.scores: a search needs an objective"),
    (["objectives.data=null"], "objectives.scores: objective kl needs held-out text"),
    (["teacher=null"], "objectives.scores: objective kl needs a teacher"),
    (["objectives.scores=[recall]"], "objectives.scores: strategy kl-restore ranks layers by KL"),
    (["objectives.scores=[recall]", "objectives.items=90"], "objectives.scores: recall: items must be 1 to 52"),
    (
      ["objectives.scores=[accuracy=recall]", "placement.strategies=[differentiable]"],
      "objectives.scores: strategy differentiable needs an objective with a gradient"
    ),
    (["placement.strategies=[]"], "placement.strategies: the list is empty"),
    (["placement.strategies=[best]"], "placement.strategies: [\"best\"] is not a list of beam"),
    (["placement.job=none.yaml"], "placement.job: none.yaml: there is no such job file"),
    (["placement.job=Jobs/distill.yaml"], "placement.full: Jobs/models/demo-hybrid.json: is not a supernet"),
    (
      ["placement.set=[train.tokens=100001]"],
      "placement.job: Jobs/supernet.yaml: train.tokens: 100001 is not a whole number"
    ),
    (["block.candidates=[]"], "block.candidates: must be different linear mixers"),
    (["block.candidates=[gla, attn]"], "block.candidates: must be different linear mixers"),
    (["dimensions.key_sizes=[]"], "dimensions.key_sizes: must be a list of numbers above zero"),
    (["dimensions.key_sizes=[0]"], "dimensions.key_sizes: [0] is not a list of numbers above zero"),
    (["dimensions.key_sizes=[7]"], "dimensions.key_sizes: no d_K × heads of the grid divides a state of"),
    (["dimensions.tolerance=2"], "dimensions.key_sizes: a tolerance of 2.0"),
    (["dimensions.key_sizes=[1]", "dimensions.heads=[2]"], "dimensions.key_sizes: retnet cannot have 2 heads of 1/"),
    (["dimensions.job=null"], "dimensions.job: is missing"),
    (["seeds=3"], "seeds: is not a key of this file; did you mean seed?"),
  ])
  func faultsOfAJobAreFoundWhenItIsRead(overrides: [String], reason: String) throws {
    _ = try SearchJob(path: "Jobs/search.yaml", ranks: 2)
    do {
      _ = try SearchJob(path: "Jobs/search.yaml", overrides: overrides, ranks: 2)
      Issue.record("\(overrides) was accepted")
    } catch let error as JobError {
      #expect(error.kind == .usage && error.reasons.contains { $0.contains("Jobs/search.yaml: \(reason)") }, "\(error)")
      #expect(error.reasons.count == 1, "\(error)")
    }
  }

  @Test func faultsAreReportedTogether() throws {
    do {
      _ = try SearchJob(
        path: "Jobs/search.yaml", overrides: ["placement.width=0", "objectives.scores=[foo]", "block.candidates=[]"],
        ranks: 2)
      Issue.record("a job full of errors was accepted")
    } catch let error as JobError { #expect(error.reasons.count == 3, "\(error)") }
  }

  /// A block that takes another's place has a state as large; of RWKV7's, whose keys and values are of one size, too.
  @Test func candidatesHaveStatesOfOneSize() throws {
    for (heads, keys, values) in [(12, 96, 256), (4, 16, 32), (2, 8, 8), (1, 4, 4), (3, 8, 24), (5, 6, 10)] {
      let base = try linearModel(.gatedDeltaNet, heads: heads, keySize: keys, valueSize: values)
      for mixer in LayerType.linear {
        let shape = try #require(try base.replacingLinear(with: mixer).linearShape)
        let elements = shape.heads * shape.keySize * shape.valueSize
        // 5 × 6 × 10 has no square near: the nearest state is taken.
        let tolerance = (heads, keys, values) == (5, 6, 10) && mixer == .rwkv7 ? 0.1 : 0
        #expect(
          abs(Double(elements) / Double(heads * keys * values) - 1) <= tolerance,
          "\(mixer) \(shape) for \(heads) \(keys) \(values)")
        #expect(mixer != .rwkv7 || shape.keySize == shape.valueSize)
      }
    }
    let paper = try linearModel(.jet, heads: 12, keySize: 96, valueSize: 256).replacingLinear(with: .rwkv7)
    #expect(try #require(paper.linearShape).heads == 8 && #require(paper.linearShape).keySize == 192)
    // Of a grid only square shapes are left for it.
    let request = DimensionsRequest(keySizes: [256, 192, 128], heads: [4, 8], tolerance: 1)
    #expect(try request.shapes(of: paper) == [StateShape(192, 192, 8)])
    #expect(try request.candidates(of: paper).candidates[0].configuration.linearShape?.heads == 8)
  }

  // MARK: - What is remembered

  /// A rate is that of its model, job, context, ranks, threads and machine, and no other's; one that says less is refused.
  @Test func ratesAreKnownByAllThatDecidesThem() throws {
    let path = FileManager.default.temporaryDirectory.appendingPathComponent("rates-\(UUID()).json").path
    defer { try? FileManager.default.removeItem(atPath: path) }
    let key = MeasuredRates.Key("decode", "gla", identity: "a", context: 64, ranks: 1, machine: "this one, 2 threads")
    var rates = try MeasuredRates(path: path)
    #expect(rates.rate(key) { 7 } == 7 && rates.rate(key) { 8 } == 7)
    try rates.write(to: path)
    var read = try MeasuredRates(path: path)
    #expect(read.rate(key) { 9 } == 7)
    var others = [MeasuredRates.Key](repeating: key, count: 6)
    (others[0].what, others[1].candidate, others[2].identity, others[3].context) = ("train", "gdn", "b", 65)
    (others[4].ranks, others[5].machine) = (2, "this one, 1 threads")
    for (index, other) in others.enumerated() { #expect(read.rate(other) { Double(index) } == Double(index)) }
    try Data(#"{"rates": {"decode gla": 7}}"#.utf8).write(to: URL(fileURLWithPath: path))
    #expect { _ = try MeasuredRates(path: path) } throws: { "\($0)".contains("remove it to measure again") }
  }

  /// Scores of paths are those of a model with its configuration, a teacher, and objectives with all that they read.
  @Test func scoresAreKnownByAllThatDecidesThem() throws {
    let backend = CPUBackend(threads: 1)
    func supernet(window: Int = 5, theta: Double = 1e4) throws -> HybridLM {
      let json = """
        {"model_type": "jet_nemotron", "vocab_size": 320, "hidden_size": 32, "intermediate_size": 64,
         "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": true,
         "rope_theta": \(theta), "layer_types": ["attn", "attn"], "supernet_mixer": "gla",
         "efficient_attention_config": {"swa": {"window_size": \(window)}, "gla": {"num_heads": 2, "head_dim": 8}}}
        """
      let model = HybridLM(try ModelConfiguration(json: Data(json.utf8), path: "supernet"))
      model.initialize(seed: 1, backend: backend)
      return model
    }
    let path = FileManager.default.temporaryDirectory.appendingPathComponent("questions-\(UUID()).jsonl").path
    defer { try? FileManager.default.removeItem(atPath: path) }
    func questions(_ answer: String, match: AnswerMatch = .contains, end: Set<UInt32> = [256], seed: UInt64 = 1) throws
      -> Objective
    {
      let lines = (0..<9).map { #"{"question": "\#($0)?", "answer": "a", "aliases": ["\#(answer)"]}"# }
      try Data(lines.joined(separator: "\n").utf8).write(to: URL(fileURLWithPath: path))
      return try Objective(
        answers: path, limit: 4, seed: seed, tokenizer: ByteTokenizer(), match: match, endTokens: end)
    }
    let model = try supernet()
    func identity(_ model: HybridLM, _ objective: Objective, teacher: HybridLM? = nil) -> String {
      PlacementResult.identity(supernet: model, teacher: teacher, objectives: [objective])
    }
    let all = try [
      identity(model, questions("b")), identity(supernet(window: 6), questions("b")),
      identity(supernet(theta: 1e5), questions("b")), identity(model, questions("b"), teacher: model),
      identity(model, questions("c")), identity(model, questions("b", match: .equals)),
      identity(model, questions("b", end: [256, 10])), identity(model, questions("b", seed: 2)),
    ]
    #expect(Set(all).count == all.count)
    #expect(try identity(supernet(), questions("b")) == all[0])
  }
}

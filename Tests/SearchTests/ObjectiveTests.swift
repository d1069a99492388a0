import CPUBackend
import Evaluation
import Foundation
import Models
import NN
import Ops
import Search
import Tensors
import TestSupport
import Testing
import TokenStreams
import Tokenizers

/// What placements are judged by, against what it says it is.
@Suite struct ObjectiveTests {
  private let backend = CPUBackend(threads: 2)

  /// A small supernet with a window and weights away from their initial values.
  private func supernet(mixer: String = "gla") throws -> HybridLM {
    let json = """
      {"model_type": "jet_nemotron", "vocab_size": 320, "hidden_size": 32, "intermediate_size": 64,
       "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": true,
       "layer_types": ["attn", "attn", "attn"], "supernet_mixer": "\(mixer)",
       "efficient_attention_config": {"swa": {"window_size": 5}, "\(mixer)": {"num_heads": 2, "head_dim": 8}}}
      """
    let model = HybridLM(try ModelConfiguration(json: Data(json.utf8), path: "supernet"))
    for parameter in model.store.parameters {
      let noise = randomFloats(parameter.count, seed: UInt64(parameter.count) + 1)
      parameter.value = backend.tensor(
        zip(parameter.initialValues(seed: 3), noise).map { $0 + $1 * 0.15 }, parameter.shape)
    }
    return model
  }

  /// Every answer was told before it was asked for, and the same seed gives the same text.
  @Test(arguments: RetrievalTask.allCases) func answersFollowFromTheText(_ task: RetrievalTask) {
    let settings = RetrievalSettings(items: 6, queries: 10, words: 60)
    var random = RandomStream(seed: 4, name: "test")
    var again = RandomStream(seed: 4, name: "test")
    for _ in 0..<20 {
      let example = RetrievalExample(task, settings, random: &random)
      #expect(example == RetrievalExample(task, settings, random: &again))
      let answers = example.pieces.indices.filter { example.pieces[$0].isAnswer }
      #expect(answers.count == 10)
      for index in answers {
        let fact = example.pieces[index - 1].text + example.pieces[index].text
        #expect(example.question.contains(fact), "\(fact) in \(example.question)")
      }
      #expect(example.question + example.answer == example.pieces.map(\.text).joined())
      if task == .needle { #expect(example.question.split(separator: " ").count >= 60) }
    }
  }

  /// The share of right answers is what greedy generation gives, answer by answer.
  @Test func accuracyIsThatOfGeneration() throws {
    let model = try supernet()
    model.path = SupernetPath(full: [1], sliding: [2])
    let tokenizer = try makeTokenizer("bytes")
    var random = RandomStream(seed: 2, name: "texts")
    var (right, batches): (Int, [SequenceBatch]) = (0, [])
    for _ in 0..<40 {
      let prompt = (0..<1 + Int(random.next() % 12)).map { _ in UInt32(random.next() % 256) }
      // Half of the answers are what the model says, the others end in something else.
      let generator = Generator(model, backend: backend)
      let said = generator.continuations([prompt], ContinuationSettings(maxTokens: 3), tokenizer: tokenizer)[0].tokens
      let isRight = random.next() % 2 == 0
      let answer = isRight ? said : said.dropLast() + [(said[2] + 1) % 256]
      right += isRight ? 1 : 0
      var batch = SequenceBatch()
      let all = (prompt + answer).map { Int32($0) }
      batch.tokens = Array(all.dropLast())
      batch.labels = [Int32](repeating: -1, count: prompt.count - 1) + all[prompt.count...]
      batch.segments = [0..<batch.tokens.count]
      batches.append(batch)
    }
    let accuracy = AnswerAccuracy(model, batches, backend: backend)
    #expect(accuracy.answers == 40 && accuracy.right == right && right > 5 && right < 35)
  }

  @Test func answersMatchAsAsked() {
    #expect(AnswerMatch.contains.accepts("It is  Paris.", answer: " paris"))
    #expect(!AnswerMatch.equals.accepts("It is Paris.", answer: "Paris"))
    #expect(AnswerMatch.equals.accepts(" PARIS\n", answer: "Paris"))
  }

  /// The gradient of the gates is that of the mixed model, by central differences; at gates of 0 and 1 the mixed model is
  /// a path.
  @Test(arguments: ["gla", "gdn"]) func gatesHaveTheirGradient(_ mixer: String) throws {
    let model = try supernet(mixer: mixer)
    var batch = SequenceBatch()
    var random = RandomStream(seed: 6, name: "tokens")
    batch.tokens = (0..<24).map { _ in Int32(random.next() % 320) }
    batch.labels = Array(batch.tokens.dropFirst()) + [-1]
    batch.segments = [0..<10, 10..<24]
    batch.sequenceCount = 2
    struct Alone: PathExchange {
      let rank = 0
      let size = 1
      func allGather(_ values: [Double]) throws -> [Double] { values }
    }
    let gradients = GateGradients(
      supernet: model, teacher: nil, parts: [(batches: [batch], kl: false, weight: 1)], world: Alone(),
      backend: backend)
    func loss(_ gates: [Double]) -> Double {
      backend.withoutRecording {
        let data = Batch(tokens: backend.tensor(batch.tokens), segments: Segments(batch.segments))
        func tensors(_ values: [Double]) -> [Tensor] { values.map { backend.tensor([Float($0)], [1]) } }
        let hidden = gradients.mixed(data, tensors(gates), tensors(gates.map { 1 - $0 }))
        return vocabularyLoss(hidden: hidden, weight: model.head, labels: backend.tensor(batch.labels))
          .crossEntropy.hostSum() / 23
      }
    }
    let gates = [0.3, 0.8, 0.5]
    let found = try gradients(gates, step: 1)
    for layer in gates.indices {
      var (up, down) = (gates, gates)
      up[layer] += 0.02
      down[layer] -= 0.02
      let expected = (loss(up) - loss(down)) / 0.04
      let error = abs(found[layer] - expected) / max(abs(expected), 1e-2)
      #expect(error < 1e-2, "layer \(layer): \(found[layer]) and \(expected)")
    }
    model.path = SupernetPath(full: [1])
    let path = Evaluation(model: model, teacher: nil, batches: [batch], backend: backend).loss
    #expect(abs(loss([0, 1, 0]) - path) < 1e-5 * path)
  }

  /// A supernet's path goes on from its caches as it reads at once.
  @Test func pathsHaveCaches() throws {
    let model = try supernet()
    model.path = SupernetPath(full: [0], sliding: [2])
    let tokens = (0..<30).map { UInt32($0 * 31 % 320) }
    let whole = backend.withoutRecording {
      model.logits(
        model(Batch(tokens: backend.tensor(tokens.map { Int32($0) }), segments: Segments(count: 1, length: 30)))
      ).toArray()
    }
    let generator = Generator(model, backend: backend)
    _ = generator.read([Array(tokens[..<20])])
    for index in 20..<30 {
      let logits = generator.read([[tokens[index]]]).toArray()
      #expect(relativeError(logits, Array(whole[index * 320..<(index + 1) * 320])) < 1e-5)
    }
  }
}

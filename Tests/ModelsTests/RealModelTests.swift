import CPUBackend
import Chat
import Evaluation
import Foundation
import Models
import NN
import Ops
import Tensors
import TestSupport
import Testing
import Tokenizers
import Training

/// Real pretrained models, where `jettrain models fetch` has put them, against what transformers computes of the same files
/// (Tests/Interop/make_reference.py writes such a reference; ../shared/models has one).
@Suite(.serialized) struct RealModelTests {
  private static let models = repository + "/Models/"

  private struct Reference: Decodable {
    struct Text: Decodable {
      let text: String
      let ids: [UInt32]
      /// Of every id but the first.
      let logprobs: [Double]
      /// After every id.
      let argmax: [Int]
    }
    struct Chat: Decodable {
      let ids: [UInt32]
      let greedy: [UInt32]
    }
    let texts: [Text]
    let chat: Chat?
  }

  private static let smollm2 = (
    model: models + "smollm2-135m.gguf", reference: (sharedFolder ?? "") + "/models/smollm2-135m-reference.json"
  )
  private static let gemma3 = (model: models + "gemma3-270m.gguf", reference: models + "gemma3-270m-reference.json")

  private static func isThere(_ pair: (model: String, reference: String)) -> Bool {
    [pair.model, pair.reference].allSatisfy { FileManager.default.fileExists(atPath: $0) }
  }

  @Test(.enabled(if: isThere(smollm2), "needs `jettrain models fetch smollm2-135m` and ../shared/models"))
  func smollm2MatchesTransformers() throws {
    let backend = CPUBackend(threads: 2)
    let reference = try Self.reference(Self.smollm2.reference)
    let model = try HybridLM.load(Self.smollm2.model, backend: backend)
    let tokenizer = try makeTokenizer(Self.smollm2.model)
    for text in reference.texts {
      #expect(Array(tokenizer.encode(text.text.utf8).prefix(512)) == text.ids, "\(text.text.prefix(40))")
    }
    compare(model, reference, backend)
    // The instructed model's own template, and its greedy answer. The reference was asked without the system message that the
    // template begins with.
    let template = try #require(try chatTemplate(of: Self.smollm2.model))
    let chat = try #require(reference.chat)
    let text = try template.text(
      [ChatMessage(role: "user", content: "What is the capital of France?")], asksForAnswer: true)
    #expect(text.hasPrefix("<|im_start|>system\nYou are a helpful AI assistant named SmolLM"))
    let question = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    #expect(text.hasSuffix(question) && tokenizer.encode(question.utf8, special: .recognized) == chat.ids)
    let settings = ContinuationSettings(
      sampling: Sampling(), maxTokens: chat.greedy.count, stopTokens: [], stopStrings: [], seed: 1, chunk: 512)
    let answer = try Generator(model, backend: backend).continuations(
      [chat.ids], settings, tokenizer: tokenizer, show: { _, _ in }, afterPrefill: {})
    #expect(answer[0].tokens == chat.greedy, "\(answer[0].text)")
  }

  @Test(
    .enabled(if: isThere(gemma3), "needs Models/gemma3-270m.gguf and its reference by Tests/Interop/make_reference.py"))
  func gemma3MatchesTransformers() throws {
    let backend = CPUBackend(threads: 2)
    let model = try HybridLM.load(Self.gemma3.model, backend: backend)
    compare(model, try Self.reference(Self.gemma3.reference), backend)
  }

  private static func reference(_ path: String) throws -> Reference {
    try JSONDecoder().decode(Reference.self, from: Data(contentsOf: URL(fileURLWithPath: path)))
  }

  /// Log-probabilities as training and evaluation compute them, within 1e-3 of the reference's; the likeliest tokens as
  /// generation chooses them, equal where the reference's is not as near as 1e-3 to ours.
  private func compare(_ model: HybridLM, _ reference: Reference, _ backend: any Backend) {
    var random = RandomStream(seed: 1, name: "greedy")
    var (worst, compared, wrong, choices) = (0.0, 0, 0, 0)
    for text in reference.texts {
      let ids = text.ids.map { Int32($0) }
      let batch = Batch(tokens: backend.tensor(ids), segments: Segments(count: 1, length: ids.count))
      backend.withoutRecording {
        let hidden = model(batch)
        let losses = vocabularyLoss(
          hidden: hidden, weight: model.head, labels: backend.tensor(Array(ids.dropFirst()) + [-1])
        ).crossEntropy.toArray()
        for (loss, expected) in zip(losses, text.logprobs) { worst = max(worst, abs(Double(-loss) - expected)) }
        compared += text.logprobs.count
        let logits = model.logits(hidden)
        for (row, expected) in text.argmax.enumerated() {
          let values = logits.rows(row..<row + 1).toArray()
          let choice = Int(Sampling().choose(values, random: &random))
          if choice != expected, values[choice] - values[expected] > 1e-3 { wrong += 1 }
        }
        choices += text.argmax.count
      }
    }
    print(
      "\(model.configuration.family): \(compared) log-probabilities, the farthest apart \(worst); "
        + "\(wrong) of \(choices) choices differ")
    #expect(compared > 0 && worst < 1e-3 && wrong == 0)
  }
}

import CPUBackend
import Chat
import Evaluation
import Foundation
import Models
import Ops
import Tensors
import TestSupport
import Testing
import Tokenizers
import Training

/// Real pretrained models, where `jettrain models fetch` has put them, against what transformers computes of the same files
/// (Tests/Interop/make_reference.py writes such a reference; ../shared/models has one).
@Suite struct RealModelTests {
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
    let (model, backend) = try compare(Self.smollm2, checksIds: true)
    // The instructed model's own template, and its greedy answer.
    let reference = try JSONDecoder().decode(
      Reference.self, from: Data(contentsOf: URL(fileURLWithPath: Self.smollm2.reference)))
    let tokenizer = try makeTokenizer(Self.smollm2.model)
    let template = try #require(try chatTemplate(of: Self.smollm2.model))
    let chat = try #require(reference.chat)
    // The reference was asked without the template's own system message.
    let text = try template.text(
      [ChatMessage(role: "user", content: "What is the capital of France?")], asksForAnswer: true)
    #expect(text.hasPrefix("<|im_start|>system\nYou are a helpful AI assistant named SmolLM"))
    let question = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    #expect(text.hasSuffix(question) && tokenizer.encode(question.utf8, special: .recognized) == chat.ids)
    let generator = Generator(model, backend: backend)
    let settings = ContinuationSettings(
      sampling: Sampling(), maxTokens: chat.greedy.count, stopTokens: [], stopStrings: [], seed: 1, chunk: 512)
    let answer = try generator.continuations(
      [chat.ids], settings, tokenizer: tokenizer, show: { _, _ in }, afterPrefill: {})
    #expect(answer[0].tokens == chat.greedy)
  }

  @Test(
    .enabled(if: isThere(gemma3), "needs Models/gemma3-270m.gguf and its reference by Tests/Interop/make_reference.py"))
  func gemma3MatchesTransformers() throws { _ = try compare(Self.gemma3, checksIds: false) }

  private func compare(
    _ pair: (model: String, reference: String), checksIds: Bool
  ) throws -> (HybridLM, any Backend) {
    let backend = CPUBackend(threads: 2)
    let reference = try JSONDecoder().decode(
      Reference.self, from: Data(contentsOf: URL(fileURLWithPath: pair.reference)))
    let model = try HybridLM.load(pair.model, backend: backend)
    let tokenizer = try makeTokenizer(pair.model)
    var (worst, compared, wrong) = (0.0, 0, 0)
    for text in reference.texts {
      if checksIds { #expect(Array(tokenizer.encode(text.text.utf8).prefix(512)) == text.ids) }
      let batch = Batch(
        tokens: backend.tensor(text.ids.map { Int32($0) }), segments: Segments(count: 1, length: text.ids.count))
      let logits = backend.withoutRecording { model.logits(model(batch)) }
      let vocabulary = model.configuration.vocabularySize
      for row in 0..<text.ids.count {
        let values = logits.rows(row..<row + 1).toArray()
        let highest = values.max() ?? 0
        if row + 1 < text.ids.count {
          let sum = values.reduce(0.0) { $0 + exp(Double($1) - Double(highest)) }
          let found = Double(values[Int(text.ids[row + 1])]) - Double(highest) - log(sum)
          worst = max(worst, abs(found - text.logprobs[row]))
          compared += 1
        }
        // Where the two likeliest are as near as the computation is exact, either may win.
        let best = values.firstIndex(of: highest) ?? 0
        if best != text.argmax[row], highest - values[text.argmax[row]] > 1e-3 { wrong += 1 }
        #expect(values.count == vocabulary)
      }
    }
    print("\(pair.model): \(compared) log-probabilities, the farthest apart \(worst); \(wrong) other choices")
    #expect(worst < 1e-3 && wrong == 0)
    return (model, backend)
  }
}

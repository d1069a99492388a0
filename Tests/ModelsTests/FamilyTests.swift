import CPUBackend
import Evaluation
import Foundation
import GGUF
import Models
import NN
import Ops
import Tensors
import TestSupport
import Testing

/// Models of every family: their configurations as values, their caches, their documents.
@Suite struct FamilyTests {
  private static let families = ["mistral", "linear", "yarn", "yarn-attention", "gemma-scale"]

  private static func model(_ name: String, _ backend: any Backend) throws -> HybridLM {
    try HybridLM.load(goldenFolder + "/families/" + name, backend: backend)
  }

  /// What is written says what was read, over other keys and over none.
  @Test(arguments: families + ["../jet", "../qwen2", "../gdn-layer"]) func architecturesSurviveWriting(name: String)
    throws
  {
    let read = try ModelConfiguration(path: goldenFolder + "/families/" + name)
    let again = try read.changing("again") { _ in }
    #expect(again.architecture == read.architecture)
    let bare = try ModelConfiguration(read.architecture, path: "bare")
    #expect(bare.architecture == read.architecture)
    // With another mixer in the first layer it is a hybrid, and stays one when written.
    let hybrid = try read.changing("hybrid") { architecture in
      architecture.supernetMixer = nil
      architecture.layerTypes[0] = .gatedLinearAttention
      architecture.setState(of: .gatedLinearAttention, HeadShape(heads: 2, keySize: 8, valueSize: 16))
    }
    #expect(hybrid.loadingCode == .hybrid && hybrid.layerTypes[0] == .gatedLinearAttention)
    #expect(hybrid.linear[.gatedLinearAttention]?.valueSize == 16)
  }

  @Test func whatIsNotComputedIsRefusedByName() throws {
    let data = try Data(contentsOf: URL(fileURLWithPath: goldenFolder + "/families/linear/config.json"))
    func refusal(_ change: (inout [String: Any]) -> Void) throws -> String? {
      var object = try #require(try JSONSerialization.jsonObject(with: data) as? [String: Any])
      change(&object)
      do {
        _ = try ModelConfiguration(json: JSONSerialization.data(withJSONObject: object), path: "config.json")
        return nil
      } catch { return "\(error)" }
    }
    #expect(try refusal { _ in } == nil)
    for (key, value, name) in [
      ("model_type", "phi3" as Any, "phi3"), ("hidden_act", "relu", "relu"), ("mlp_bias", true, "mlp_bias"),
      ("rope_parameters", ["rope_type": "longrope"], "longrope"),
      ("final_logit_softcapping", 30, "final_logit_softcapping"),
      ("partial_rotary_factor", 0.5, "partial_rotary_factor"), ("layer_types", ["attn", "other"], "other"),
    ] {
      #expect(try refusal { $0[key] = value }?.contains(name) == true, "\(key)")
    }
  }

  /// Chunks, then token by token, as one pass over everything; packed documents as each alone.
  @Test(arguments: families, [1, 3, 20]) func cachesContinueAndDocumentsStayApart(name: String, chunk: Int) throws {
    let backend = CPUBackend(threads: 2)
    let model = try Self.model(name, backend)
    let vocabulary = model.configuration.vocabularySize
    let tokens = (0..<50).map { Int32($0 * 37 % vocabulary) }
    func logits(_ tokens: [Int32], _ segments: [Range<Int>]) -> [Float] {
      backend.withoutRecording {
        model.logits(model(Batch(tokens: backend.tensor(tokens), segments: Segments(segments)))).toArray()
      }
    }
    let whole = logits(tokens, [0..<50])
    let ids = tokens.map { UInt32($0) }
    let generator = Generator(model, backend: backend)
    for (end, step) in [(40, generator.read([Array(ids[..<40])], chunk: chunk))]
      + (40..<50).map({ ($0 + 1, generator.read([[ids[$0]]])) })
    {
      let error = relativeError(step.toArray(), Array(whole[(end - 1) * vocabulary..<end * vocabulary]))
      #expect(error < 1e-4, "\(name), chunks of \(chunk), \(end) tokens: \(error)")
    }
    let segments = [0..<1, 1..<12, 12..<50]
    let packed = logits(tokens, segments)
    for segment in segments {
      let alone = logits(Array(tokens[segment]), [0..<segment.count])
      let error = relativeError(Array(packed[segment.lowerBound * vocabulary..<segment.upperBound * vocabulary]), alone)
      #expect(error < 1e-5, "document \(segment): \(error)")
    }
  }
}

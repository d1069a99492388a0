import CPUBackend
import Evaluation
import Foundation
import Models
import NN
import Ops
import Tensors
import TestSupport
import Testing

/// What a model must do whatever its weights are.
@Suite struct ModelTests {
  private static let tokens = (0..<97).map { Int32($0 * 37 % 320) }

  private func hidden(_ model: HybridLM, _ tokens: [Int32], _ segments: [Range<Int>]) -> [Float] {
    let backend = model.head.backend
    return backend.withoutRecording {
      model(Batch(tokens: backend.tensor(tokens), segments: Segments(segments))).toArray()
    }
  }

  /// Reading in chunks of any size and then token by token gives the logits of one pass over everything.
  @Test(arguments: ["jet", "qwen2"], [1, 2, 3, 16, 40, 97])
  func cachesContinueExactly(_ name: String, chunk: Int) throws {
    let backend = CPUBackend(threads: 2)
    let model = try HybridLM.load(goldenFolder + "/" + name, backend: backend)
    let whole = backend.withoutRecording {
      model.logits(
        model(Batch(tokens: backend.tensor(Self.tokens), segments: Segments(count: 1, length: 97)))
      ).toArray()
    }
    let generator = Generator(model, backend: backend)
    let ids = Self.tokens.map { UInt32($0) }
    for (end, logits) in [(80, generator.read([Array(ids[..<80])], chunk: chunk))]
      + (80..<83).map({ ($0 + 1, generator.read([[ids[$0]]])) })
      + [(97, generator.read([Array(ids[83...])], chunk: chunk))]
    {
      let error = relativeError(logits.toArray(), Array(whole[(end - 1) * 320..<end * 320]))
      #expect(error < 1e-4, "\(name), chunks of \(chunk), \(end) tokens: \(error)")
    }
  }

  /// Documents packed into one batch see nothing of each other.
  @Test(arguments: ["jet", "qwen2"])
  func packingEqualsSeparateDocuments(_ name: String) throws {
    let model = try HybridLM.load(goldenFolder + "/" + name, backend: CPUBackend(threads: 2))
    let segments = [0..<1, 1..<4, 4..<70, 70..<97]
    let packed = hidden(model, Self.tokens, segments)
    for segment in segments {
      let alone = hidden(model, Array(Self.tokens[segment]), [0..<segment.count])
      let error = relativeError(Array(packed[segment.lowerBound * 64..<segment.upperBound * 64]), alone)
      #expect(error < 1e-5, "\(name), document \(segment): \(error)")
    }
  }

  @Test func studentInheritsAndSharesWithItsTeacher() throws {
    let backend = CPUBackend(threads: 1)
    let teacher = try HybridLM.load(goldenFolder + "/qwen2", backend: backend)
    let student = HybridLM(try ModelConfiguration(path: goldenFolder + "/jet"))
    try student.inherit(from: teacher)
    student.initialize(seed: 3, backend: backend)
    let mlp = "model.layers.0.mlp.up_proj.weight"
    let kept = "model.layers.2.self_attn.q_proj.weight"
    #expect(student.store[mlp]!.value.storage === teacher.store[mlp]!.value.storage)
    #expect(student.store[kept]!.value.toArray() == teacher.store[kept]!.value.toArray())
    let taps = student.store["model.layers.0.self_attn.dynamic_conv1d.kernel_generator.w2.bias"]!.value.toArray()
    #expect(taps.prefix(8) == [0, 0, 0, 1, 0, 0, 0, 1])
    // What trains gets a copy of its own: the teacher must not change with the student.
    let before = teacher.store[mlp]!.value.toArray()
    let arena = Arena(student.store, backend: backend) { _ in true }
    backend.fill(arena.values, with: 7)
    #expect(teacher.store[mlp]!.value.toArray() == before)
  }

  @Test func savedModelsLoadBitForBit() throws {
    let backend = CPUBackend(threads: 1)
    let model = try HybridLM.load(goldenFolder + "/jet", backend: backend)
    let folder = FileManager.default.temporaryDirectory.appendingPathComponent("jettrain-\(UUID())").path
    defer { try? FileManager.default.removeItem(atPath: folder) }
    try ModelWriter().write(model, to: folder)
    let again = try HybridLM.load(folder, backend: backend)
    for parameter in model.store.parameters {
      #expect(again.store[parameter.name]!.value.toArray() == parameter.value.toArray())
    }
  }

  @Test func configurationsAreChecked() throws {
    func configuration(_ change: (inout [String: Any]) -> Void) throws -> ModelConfiguration {
      let data = try Data(contentsOf: URL(fileURLWithPath: goldenFolder + "/jet/config.json"))
      var object = try #require(try JSONSerialization.jsonObject(with: data) as? [String: Any])
      change(&object)
      return try ModelConfiguration(json: JSONSerialization.data(withJSONObject: object), path: "config.json")
    }
    #expect(try configuration { _ in }.jet?.valueSize == 64)
    #expect(throws: ModelError.self) { try configuration { $0["model_type"] = "llama" } }
    #expect(throws: ModelError.self) { try configuration { $0["hidden_size"] = -1 } }
    #expect(throws: ModelError.self) { try configuration { $0["layer_types"] = ["jet"] } }
    #expect(throws: ModelError.self) { try configuration { $0["num_key_value_heads"] = 3 } }
  }
}

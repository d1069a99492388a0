import CPUBackend
import Evaluation
import Foundation
import Models
import NN
import Ops
import Safetensors
import Tensors
import TestSupport
import Testing
import Tokenizers

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
  @Test(
    arguments: ["jet", "qwen2"],
    [1, 2, 3, 16, 40, 97].map { (TestBackend.cpu(threads: 2), $0) } + [(TestBackend.reference, 3), (.reference, 40)])
  func cachesContinueExactly(_ name: String, run: (backend: TestBackend, chunk: Int)) throws {
    let (backend, chunk) = (run.backend.make(), run.chunk)
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

  /// A small model that has every linear mixer, with weights away from their initial values, of which many are zero.
  static func modelOfAllMixers(_ backend: any Backend) throws -> HybridLM {
    let model = HybridLM(try ModelConfiguration(path: repository + "/Tests/Fixtures/all-mixers.json"))
    for parameter in model.store.parameters {
      let noise = randomFloats(parameter.count, seed: UInt64(parameter.count) + 3)
      let scale: Float = parameter.shape.count == 1 ? 0.2 : 0.1
      parameter.value = backend.tensor(
        zip(parameter.initialValues(seed: 5), noise).map { $0 + $1 * scale }, parameter.shape)
    }
    return model
  }

  /// Of a second batch, of another length, tokens and positions go up, and nothing that mixers make on the host.
  @Test func constantsOfMixersGoUpOnce() throws {
    let backend = ReferenceBackend()
    let model = try Self.modelOfAllMixers(backend)
    func uploads(_ tokens: Int) -> Int {
      let before = backend.uploads
      _ = backend.withoutRecording {
        model(
          Batch(
            tokens: backend.tensor((0..<tokens).map { Int32($0) }), segments: Segments(count: 1, length: tokens)))
      }
      return backend.uploads - before
    }
    let counts = [5, 7, 6].map(uploads)
    #expect(counts[0] > 2 && counts[1...] == [2, 2], "\(counts)")
  }

  /// The same of all linear mixers: chunks of a prompt, then token by token, as one pass; and packed documents.
  @Test(arguments: [1, 3, 40], [TestBackend.cpu(threads: 2), .reference])
  func everyMixerContinuesExactly(chunk: Int, kind: TestBackend) throws {
    let backend = kind.make()
    let model = try Self.modelOfAllMixers(backend)
    #expect(Set(model.configuration.layerTypes) == Set(LayerType.allCases))
    let vocabulary = model.configuration.vocabularySize
    let tokens = (0..<90).map { Int32($0 * 37 % vocabulary) }
    let whole = backend.withoutRecording {
      model.logits(model(Batch(tokens: backend.tensor(tokens), segments: Segments(count: 1, length: 90)))).toArray()
    }
    let ids = tokens.map { UInt32($0) }
    let generator = Generator(model, backend: backend)
    for (end, logits) in [(80, generator.read([Array(ids[..<80])], chunk: chunk))]
      + (80..<90).map({ ($0 + 1, generator.read([[ids[$0]]])) })
    {
      let error = relativeError(logits.toArray(), Array(whole[(end - 1) * vocabulary..<end * vocabulary]))
      #expect(error < 1e-4, "chunks of \(chunk), \(end) tokens: \(error)")
    }
    let segments = [0..<1, 1..<3, 3..<70, 70..<90]
    let packed = hidden(model, tokens, segments)
    let size = model.configuration.hiddenSize
    for segment in segments {
      let alone = hidden(model, Array(tokens[segment]), [0..<segment.count])
      let error = relativeError(Array(packed[segment.lowerBound * size..<segment.upperBound * size]), alone)
      #expect(error < 1e-5, "document \(segment): \(error)")
    }
  }

  /// Outputs and gradients of every mixer, by the CPU's fused kernels and by the compositions of the reference: one document
  /// and several, with its layers computed again or not.
  @Test(arguments: [[0..<90], [0..<1, 1..<3, 3..<70, 70..<90]], LayerRecomputation.byCost)
  func everyMixerMatchesTheReference(segments: [Range<Int>], recompute: LayerRecomputation) throws {
    func run(_ kind: TestBackend) throws -> [(name: String, values: [Float])] {
      let backend = kind.make()
      let model = try Self.modelOfAllMixers(backend)
      let vocabulary = model.configuration.vocabularySize
      let tokens = (0..<90).map { Int32($0 * 37 % vocabulary) }
      let arena = Arena(model.store, backend: backend) { _ in true }
      arena.beginBackward()
      let batch = Batch(tokens: backend.tensor(tokens), segments: Segments(segments))
      let (losses, tape) = backend.recording {
        vocabularyLoss(
          hidden: model(batch, recompute: recompute), weight: model.head, labels: backend.tensor(tokens),
          crossEntropySeed: 1 / 90)
      }
      tape.backward()
      arena.endBackward()
      return [("losses", losses.crossEntropy.toArray())]
        + arena.entries.map { ($0.parameter.name, arena.gradients.rows($0.range).toArray()) }
    }
    let (found, expected) = (try run(.cpu(threads: 2)), try run(.reference))
    var worst = ("", 0.0)
    for (x, y) in zip(found, expected) {
      let error = relativeError(x.values, y.values)
      if error > worst.1 { worst = (x.name, error) }
      #expect(error < (x.name == "losses" ? 2e-5 : 1e-4), "\(x.name): \(error)")
    }
    print("every mixer, \(segments.count) documents: worst \(worst)")
  }

  /// Sequences of different lengths side by side, some of which end earlier, give what each gives alone.
  @Test(arguments: ["jet", "qwen2"], [1, 5, 64])
  func batchesEqualSingleSequences(_ name: String, chunk: Int) throws {
    let backend = CPUBackend(threads: 2)
    let model = try HybridLM.load(goldenFolder + "/" + name, backend: backend)
    let prompts = [3, 41, 1, 20].map { count in (0..<count).map { UInt32(($0 * 31 + count) % 320) } }
    func settings(_ index: Int) -> ContinuationSettings {
      // The second one ends early, by a token that it makes alone.
      ContinuationSettings(maxTokens: index == 3 ? 25 : 40, chunk: chunk)
    }
    let tokenizer = ByteTokenizer()
    let together = try Generator(model, sequences: prompts.count, backend: backend)
      .continuations(prompts, settings(0), tokenizer: tokenizer)
    for (index, prompt) in prompts.enumerated() {
      let alone = try Generator(model, backend: backend).continuations([prompt], settings(0), tokenizer: tokenizer)[0]
      #expect(together[index].tokens == alone.tokens, "\(name), prompt \(index)")
    }
    let generator = Generator(model, sequences: 4, backend: backend)
    _ = generator.read(prompts, chunk: chunk)
    generator.select([3, 1])
    let rest = generator.read([[7, 8], [9]]).toArray()
    for (place, (prompt, more)) in [(prompts[3], [UInt32(7), 8]), (prompts[1], [9])].enumerated() {
      let alone = Generator(model, backend: backend)
      let whole = alone.read([prompt + more]).toArray()
      let error = relativeError(Array(rest[place * whole.count..<(place + 1) * whole.count]), whole)
      #expect(error < 1e-4, "\(name), kept \(place): \(error)")
    }
  }

  @Test func samplingIsSeededAndKeepsToItsSettings() {
    var random = RandomStream(seed: 1, name: "test")
    let logits: [Float] = [0, 3, 2.9, -1, 2.8]
    let counts = (0..<2000).reduce(into: [UInt32: Int]()) { counts, _ in
      counts[Sampling(temperature: 1, topK: 2).choose(logits, random: &random), default: 0] += 1
    }
    #expect(Set(counts.keys) == [1, 2])
    // Of two logits 0.1 apart the first has e^0.1 / (1 + e^0.1) = 0.525.
    #expect(abs(Double(counts[1] ?? 0) / 2000 - 0.525) < 0.04)
    let nucleus = Set((0..<2000).map { _ in Sampling(temperature: 1, topP: 0.3).choose(logits, random: &random) })
    #expect(nucleus == [1])
    #expect(Sampling().choose(logits, random: &random) == 1)
  }

  @Test func textStreamsHoldBackWhatMayBeAStop() {
    func shown(_ text: String, stops: [String]) -> [String] {
      var stream = TextStream(ByteTokenizer(), stops: stops)
      let parts = text.utf8.map { stream.push(UInt32($0)) }
      return parts + [stream.finish()]
    }
    let stopped = shown("one two\n\nthree", stops: ["\n\n", "xyz"])
    #expect(stopped.joined() == "one two")
    #expect(shown("a\nb", stops: ["\n\n"]).joined() == "a\nb")
    #expect(shown("ab", stops: ["abc"]).joined() == "ab")
    // No half characters on the way, and U+FFFD for one that never ends.
    let parts = shown("zö🦙", stops: [])
    #expect(parts == ["z", "", "ö", "", "", "", "🦙", ""])
    var stream = TextStream(ByteTokenizer(), stops: [])
    #expect(stream.push(0xF0) + stream.push(0x9F) + stream.finish() == "\u{FFFD}")
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
    backend.fill(arena.values(0..<arena.count), with: 7)
    #expect(teacher.store[mlp]!.value.toArray() == before)
  }

  /// What is written is read as it was written: float32 to the bit, bfloat16 as rounded, in one file or many.
  @Test(arguments: [SafetensorsType.float32, .bfloat16], [Int.max, 100_000])
  func writtenModelsLoadBitForBit(_ type: SafetensorsType, shardBytes: Int) throws {
    let backend = CPUBackend(threads: 1)
    let model = try HybridLM.load(goldenFolder + "/jet", backend: backend)
    let folder = FileManager.default.temporaryDirectory.appendingPathComponent("jettrain-\(UUID())").path
    defer { try? FileManager.default.removeItem(atPath: folder) }
    try ModelWriter(type: type, shardBytes: shardBytes).write(model, to: folder)
    let files = try FileManager.default.contentsOfDirectory(atPath: folder).filter { $0.hasSuffix(".safetensors") }
    #expect((files.count > 1) == (shardBytes < .max))
    let again = try HybridLM.load(folder, backend: backend)
    for parameter in model.store.parameters {
      let expected = parameter.value.toArray().map { value in
        type == .float32 ? value : Float(bitPattern: UInt32(bfloat16(rounding: value)) << 16)
      }
      let loaded = again.store[parameter.name]!
      #expect(loaded.value.toArray() == expected)
      #expect((loaded.value.dtype == .bfloat16) == (type == .bfloat16 && loaded.shape.count > 1))
    }
    // Written again, the same bytes.
    let copy = folder + "-again"
    defer { try? FileManager.default.removeItem(atPath: copy) }
    try ModelWriter(type: type, shardBytes: shardBytes).write(again, to: copy)
    for file in try FileManager.default.contentsOfDirectory(atPath: folder) {
      #expect(FileManager.default.contentsEqual(atPath: folder + "/" + file, andPath: copy + "/" + file), "\(file)")
    }
  }

  /// `auto_map` and NVlabs' files go only with models that NVlabs' code can load.
  @Test func exportsNameTheCodeThatLoadsThem() throws {
    let backend = CPUBackend(threads: 1)
    let folder = FileManager.default.temporaryDirectory.appendingPathComponent("jettrain-\(UUID())").path
    defer { try? FileManager.default.removeItem(atPath: folder) }
    try FileManager.default.createDirectory(atPath: folder + "/source", withIntermediateDirectories: true)
    for name in ["modeling_jet_nemotron.py", "tokenizer.json"] {
      try Data().write(to: URL(fileURLWithPath: folder + "/source/" + name))
    }
    func exported(_ path: String, _ change: (inout [String: Any]) -> Void = { _ in }) throws -> (
      code: LoadingCode, object: [String: Any], files: Set<String>
    ) {
      let data = try Data(contentsOf: URL(fileURLWithPath: path))
      var object = try #require(try JSONSerialization.jsonObject(with: data) as? [String: Any])
      // As a source's own file may have it.
      object["auto_map"] = ["AutoConfig": "configuration_jet_nemotron.JetNemotronConfig"]
      change(&object)
      let model = HybridLM(
        try ModelConfiguration(json: JSONSerialization.data(withJSONObject: object), path: "config.json"))
      model.initialize(seed: 1, backend: backend)
      let output = folder + "/\(UUID())"
      try ModelWriter(companions: folder + "/source").write(model, to: output)
      let written = try Data(contentsOf: URL(fileURLWithPath: output + "/config.json"))
      return (
        model.configuration.loadingCode, try #require(JSONSerialization.jsonObject(with: written) as? [String: Any]),
        Set(try FileManager.default.contentsOfDirectory(atPath: output))
      )
    }
    let jet = try exported(goldenFolder + "/jet/config.json")
    #expect(jet.code == .jetNemotron && jet.files.isSuperset(of: ["modeling_jet_nemotron.py", "tokenizer.json"]))
    #expect((jet.object["auto_map"] as? [String: String])?["AutoModelForCausalLM"] != nil)
    #expect(jet.object["architectures"] as? [String] == ["JetNemotronForCausalLM"])

    let mixed = try exported(repository + "/Tests/Fixtures/all-mixers.json")
    let supernet = try exported(goldenFolder + "/jet/config.json") {
      $0["layer_types"] = [String](repeating: "attn", count: 4)
      $0["supernet_mixer"] = "jet"
    }
    for other in [mixed, supernet] {
      #expect(!other.files.contains("modeling_jet_nemotron.py") && other.files.contains("tokenizer.json"))
    }
    #expect(mixed.code == .hybrid && mixed.files.contains("modeling_jettrain_hybrid.py"))
    #expect(supernet.object["auto_map"] == nil && supernet.object["architectures"] == nil)
    #expect(supernet.code.description.contains("supernet"))

    let qwen2 = try exported(goldenFolder + "/qwen2/config.json") {
      $0["layer_types"] = ["attn", "swa"] + [String](repeating: "attn", count: ($0["num_hidden_layers"] as! Int) - 2)
      $0["sliding_window"] = 9
    }
    #expect(qwen2.code == .transformers && qwen2.object["auto_map"] == nil)
    #expect((qwen2.object["layer_types"] as? [String])?.prefix(2) == ["full_attention", "sliding_attention"])
    #expect(qwen2.object["sliding_window"] as? Int == 9 && qwen2.object["use_sliding_window"] as? Bool == true)
  }

  @Test func bfloat16RoundsToNearestEven() {
    for (bits, expected) in [
      (UInt32(0x3F80_0000), UInt16(0x3F80)), (0x3F80_8000, 0x3F80), (0x3F81_8000, 0x3F82), (0x3F80_8001, 0x3F81),
      (0x3F80_7FFF, 0x3F80), (0x7F7F_FFFF, 0x7F80), (0xFF80_0000, 0xFF80), (0x8000_0000, 0x8000), (0x0000_8000, 0),
    ] {
      #expect(bfloat16(rounding: Float(bitPattern: bits)) == expected, "\(String(bits, radix: 16))")
    }
    #expect(Float(bitPattern: UInt32(bfloat16(rounding: .nan)) << 16).isNaN)
  }

  @Test func missingAndSurplusArraysAreNamed() throws {
    let backend = CPUBackend(threads: 1)
    let folder = FileManager.default.temporaryDirectory.appendingPathComponent("jettrain-\(UUID())").path
    defer { try? FileManager.default.removeItem(atPath: folder) }
    try ModelWriter().write(try HybridLM.load(goldenFolder + "/qwen2", backend: backend), to: folder)
    let text = try String(contentsOfFile: goldenFolder + "/jet/config.json", encoding: .utf8)
    try text.write(toFile: folder + "/config.json", atomically: true, encoding: .utf8)
    let error = #expect(throws: ModelError.self) { try HybridLM.load(folder, backend: backend) }
    let reason = try #require(error).description
    #expect(reason.contains("lack model.layers.0.self_attn") && reason.contains("and 10 more"), "\(reason)")
    #expect(reason.contains("does not ask for, model.layers.0.self_attn.k_proj.bias"), "\(reason)")
  }

  /// RECIPE section 2: what the released models hold, name by name and in all.
  @Test func releasedShapesComeOutExactly() throws {
    let jobs = repository + "/Jobs/models/"
    for (file, parameters, mixer) in [
      ("jet-nemotron-2b", 1_964_806_208, 23_052_568), ("jet-nemotron-4b", 3_960_424_768, 43_073_824),
      ("qwen2.5-1.5b", 1_543_714_304, 0), ("qwen2.5-3b", 3_085_938_688, 0),
    ] {
      let model = HybridLM(try ModelConfiguration(path: jobs + file + ".json"))
      #expect(model.store.count == parameters, "\(file)")
      guard mixer > 0 else { continue }
      let names = model.store.parameters.filter { $0.name.hasPrefix("model.layers.0.self_attn.") }
      #expect(names.reduce(0) { $0 + $1.count } == mixer)
      #expect(
        Set(names.map { String($0.name.dropFirst(25)) })
          == [
            "q_proj.weight", "k_proj.weight", "v_proj.weight", "g_proj.weight", "a_proj.weight", "b_proj.weight",
            "o_proj.weight", "A_log", "dt_bias", "o_norm.weight", "dynamic_conv1d.kernel_generator.w1.weight",
            "dynamic_conv1d.kernel_generator.w2.weight", "dynamic_conv1d.kernel_generator.w2.bias",
          ])
      #expect(model.store["lm_head.weight"] == nil)
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
    #expect(throws: ModelError.self) { try configuration { $0["model_type"] = "mamba" } }
    #expect(throws: ModelError.self) { try configuration { $0["hidden_size"] = -1 } }
    #expect(throws: ModelError.self) { try configuration { $0["layer_types"] = ["jet"] } }
    #expect(throws: ModelError.self) { try configuration { $0["num_key_value_heads"] = 3 } }
  }
}

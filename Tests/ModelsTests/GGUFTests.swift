import CPUBackend
import Files
import Foundation
import GGUF
import Models
import NN
import Safetensors
import Tensors
import TestSupport
import Testing
import Tokenizers

/// GGUF files, against what the `gguf` package reads of them (Tests/Interop/make_gguf_fixtures.py).
@Suite struct GGUFTests {
  private static let folder = repository + "/Tests/Fixtures/gguf/"

  @Test func everyTypeIsThePackagesToTheBit() throws {
    let file = try GGUFFile(path: Self.folder + "types.gguf")
    let expected = try SafetensorsFile(path: Self.folder + "types.safetensors")
    #expect(Set(file.entries.values.map(\.type)).count == GGUFType.allCases.count)
    for (name, entry) in file.entries {
      #expect(entry.shape == [3, 256])
      let (found, reference) = (try file.floats(name), try expected.floats(name))
      #expect(found.map(\.bitPattern) == reference.map(\.bitPattern), "\(name)")
    }
  }

  /// The weights of the Hugging Face folder that the file was made of, in its order, and its configuration.
  @Test func llamaComesBack() throws {
    let backend = CPUBackend(threads: 1)
    let found = try HybridLM.load(Self.folder + "llama.gguf", backend: backend)
    let expected = try HybridLM.load(goldenFolder + "/families/linear", backend: backend)
    #expect(found.configuration.architecture == expected.configuration.architecture)
    for parameter in expected.store.parameters {
      #expect(
        try #require(found.store[parameter.name]).value.toArray() == parameter.value.toArray(), "\(parameter.name)")
    }
  }

  /// Yarn, by llama.cpp's usual bounds and by a file's own, whose factor on queries and keys is a float32.
  @Test(arguments: ["yarn", "yarn-attention"]) func yarnIsRead(name: String) throws {
    let backend = CPUBackend(threads: 1)
    let found = try HybridLM.load(Self.folder + name + ".gguf", backend: backend)
    let expected = try HybridLM.load(goldenFolder + "/families/" + name, backend: backend)
    var (architecture, reference) = (found.configuration.architecture, expected.configuration.architecture)
    #expect(abs(architecture.rope.magnitude - reference.rope.magnitude) < 1e-6)
    guard case .yarn(let factor, let fast, let slow, let context, _, let truncates) = architecture.rope.scaling else {
      Issue.record("\(architecture.rope)")
      return
    }
    architecture.rope.scaling = .yarn(
      factor: factor, fast: fast, slow: slow, originalContext: context, magnitude: reference.rope.magnitude,
      truncates: truncates)
    reference.initializerRange = architecture.initializerRange
    #expect(architecture == reference)
    let batch = Batch(
      tokens: backend.tensor((0..<40).map { Int32($0 * 7 % 48) }), segments: Segments(count: 1, length: 40))
    let outputs = backend.withoutRecording { [found, expected].map { $0.logits($0(batch)).toArray() } }
    #expect(relativeError(outputs[0], outputs[1]) < 1e-5)
  }

  @Test func itsTokenizerIsTheOneItWasMadeOf() throws {
    let (a, b) = (
      try makeTokenizer(Self.folder + "llama.gguf"), try makeTokenizer(repository + "/Tests/Fixtures/tokenizers/smollm")
    )
    let text = "It's 2025: naïve 🦙  text\n\twith 3 spaces   and <|endoftext|>"
    #expect(a.encode(text.utf8, special: .recognized) == b.encode(text.utf8, special: .recognized))
    #expect(a.endOfText == b.endOfText && a.beginOfText == nil)
  }

  /// Headers that lie are refused with the file's name, and nothing is allocated by what they say.
  @Test func headersThatLieAreRefused() throws {
    let whole = Array(try Data(contentsOf: URL(fileURLWithPath: Self.folder + "types.gguf")))
    func refusal(_ change: (inout [UInt8]) -> Void) -> String? {
      var bytes = whole
      change(&bytes)
      do {
        _ = try GGUFFile(content: bytes, path: "lies.gguf")
        return nil
      } catch {
        #expect(error is FileError)
        return "\(error)"
      }
    }
    #expect(refusal { _ in } == nil)
    #expect(refusal { $0[0] = 0 }?.contains("lies.gguf") == true)
    #expect(refusal { $0[4] = 9 }?.contains("version 9") == true)
    // More arrays, and more values, than the file could hold.
    #expect(
      refusal { $0.replaceSubrange(8..<16, with: [255, 255, 255, 255, 255, 255, 255, 127]) }?.contains("arrays") == true
    )
    #expect(refusal { $0.replaceSubrange(16..<24, with: [0, 0, 0, 0, 1, 0, 0, 0]) }?.contains("values") == true)
    #expect(refusal { $0.removeLast(64) }?.contains("cut short") == true)
    for length in stride(from: 0, to: 700, by: 7) { #expect(refusal { $0 = Array($0.prefix(length)) } != nil) }
  }
}

import ArgumentParser
import Conversion
import Evaluation
import Foundation
import Models
import NN
import Reporting
import Safetensors
import Tensors
import Training

extension StudentInitialization: ExpressibleByArgument {}
extension LayerType: ExpressibleByArgument {}

/// Element types that models are written as.
enum WeightType: String, ExpressibleByArgument, CaseIterable {
  case bfloat16, float32
  var safetensors: SafetensorsType { self == .bfloat16 ? .bfloat16 : .float32 }
}

struct Convert: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Make the student of a teacher: MLPs, norms, embeddings and kept attention copied, JetBlocks begun.",
    discussion:
      "The student is a config.json, or the teacher with --mixer in some layers, or else the teacher itself, which makes a "
      + "Hugging Face folder of a GGUF file. Without a teacher: a model of random weights, to try a machine with.")
  @Argument(help: "The teacher: a model folder, run folder or checkpoint.") var teacher: String?
  @Option(help: "The student's config.json.") var config: String?
  @Option(help: "Instead of --config: the mixer of the layers that do not stay attention: jet, gdn, gla …")
  var mixer: LayerType?
  @Option(help: "With --mixer: these layers, counted from 0, as in 3,7,8-10.") var layers: String?
  @Option(help: "Folder to write.") var output: String
  @Option(name: .customLong("init"), help: "transfer (default): from the teacher's attention, per head; or random.")
  var initialization: StudentInitialization?
  @Option(help: "The same seed gives the same weights.") var seed: UInt64 = 1
  @Option(help: "bfloat16 or float32; default: as the teacher has them, or as config.json says.") var dtype: WeightType?
  @OptionGroup var cores: ThreadsOption

  func run() {
    withoutWorld {
      try refuseExisting(output)
      let backend = makeBackend(threads: cores.count())
      guard config == nil || (mixer == nil && layers == nil), (mixer == nil) == (layers == nil) else {
        throw JobError(.usage, "give --config, or --mixer with --layers, or neither to write the teacher itself")
      }
      var clock = PhaseClock()
      guard let teacher else {
        guard initialization != .transfer else { throw JobError(.usage, "--init transfer needs a teacher") }
        guard let config else { throw JobError(.usage, "without a teacher, --config says what to make") }
        let configuration = try ModelConfiguration(path: config)
        let model = HybridLM(configuration)
        let bytes = try ModelWriter(type: dtype?.safetensors ?? (configuration.keepsBFloat16 ? .bfloat16 : .float32))
          .write(model, to: output) { backend.tensor($0.initialValues(seed: seed), $0.shape) }
        clock.mark("write")
        return say(model, "random weights", bytes, clock)
      }
      let source = try loadModel(teacher, backend: backend)
      try source.checkFinite(at: teacher)
      let configuration = try config.map { try ModelConfiguration(path: $0) } ?? replaced(source.configuration)
      let initialization = initialization ?? .transfer
      let student = try Student(
        configuration, of: source, initialization: initialization, seed: seed, backend: backend)
      let inherited = student.model.store.parameters.reduce(0) { $0 + ($1.hasValue ? $1.count : 0) }
      let losses = student.complete()
      clock.mark("make")
      if !losses.isEmpty {
        print("lost in transfer, of the heads that were kept relative to the teacher's (Frobenius):")
        let rows = losses.map { loss in
          [
            "\(loss.layer)", String(format: "%.4f", loss.scores), String(format: "%.4f", loss.values),
            "\(loss.droppedHeads.count) of \(loss.heads)",
          ]
        }
        print(Format.table([["layer", "scores q·k", "values o·v", "heads dropped"]] + rows))
        if let dropped = losses.droppedHeads { print(dropped) }
      }
      try carryTokenizer(of: companionFolder(of: teacher), to: output)
      let isNarrow = source.store.parameters.contains { $0.value.dtype == .bfloat16 }
      let bytes = try ModelWriter(
        type: dtype?.safetensors ?? (isNarrow ? .bfloat16 : .float32), companions: companionFolder(of: teacher)
      ).write(student.model, to: output)
      clock.mark("write")
      say(
        student.model, "\(inherited) inherited, \(student.model.store.count - inherited) begun (\(initialization))",
        bytes,
        clock)
    }
  }

  /// The teacher's configuration with `mixer` in the layers that are asked for, its state as wide as the teacher's heads,
  /// or with values twice as wide where its makers have them so.
  private func replaced(_ teacher: ModelConfiguration) throws -> ModelConfiguration {
    guard let mixer, let layers else { return teacher }
    let chosen = try Self.indices(layers, below: teacher.layerCount)
    return try teacher.changing("--mixer \(mixer.rawValue)") { architecture in
      if architecture.state(of: mixer) == nil, !mixer.isAttention {
        let (heads, size) = (architecture.attentionHeads, architecture.headSize)
        let widens = mixer == .jet || mixer == .gatedDeltaNet
        architecture.setState(
          of: mixer, HeadShape(heads: heads, keySize: size, valueSize: widens ? 2 * size : size))
      }
      for layer in chosen { architecture.layerTypes[layer] = mixer }
    }
  }

  /// The numbers in a list such as `3,7,8-10`.
  static func indices(_ list: String, below count: Int) throws -> [Int] {
    try list.split(separator: ",", omittingEmptySubsequences: false).flatMap { part in
      let ends = part.split(separator: "-", omittingEmptySubsequences: false).map { Int($0) }
      guard (1...2).contains(ends.count), let first = ends[0], let last = ends[ends.count - 1], first <= last,
        last < count
      else { throw JobError(.usage, "--layers \(list): expected numbers below \(count), as in 3,7,8-10") }
      return Array(first...last)
    }
  }

  private func say(_ model: HybridLM, _ what: String, _ bytes: Int, _ clock: PhaseClock) {
    print(
      "\(output): \(model.store.count) parameters, \(what); \(Format.bytes(Double(bytes))) in "
        + "\(Format.duration(clock.total)), peak memory \(Format.bytes(Double(Machine.peakMemory)))")
    print("\(output): \(model.configuration.loadingCode.description)")
  }
}

/// A model is never written over another.
func refuseExisting(_ folder: String) throws {
  try refusePlace(folder, "--output")
  guard !FileManager.default.fileExists(atPath: folder + "/config.json") else {
    throw JobError(.usage, "--output \(folder): holds a model already; choose another folder, or remove it")
  }
}

import ArgumentParser
import Foundation
import Models
import NN
import Reporting
import Tensors
import Training

extension Bench {
  struct Mixers: ParsableCommand {
    static let configuration = CommandConfiguration(
      abstract: "Forward and backward of every linear token mixer at one shape: tokens a second and share of SGEMM.",
      discussion: "All have the same hidden size, heads and state where their kind allows it. One JSON line each.")
    @Option(help: "Tokens of a sequence.", transform: Whole.from(1, to: Most.context)) var context = 1024
    @Option(help: "Sequences of a pass.", transform: Whole.from(1, to: 65_536)) var batch = 2
    @Option(help: "Hidden size.", transform: Whole.from(2, to: 65_536)) var hidden = 512
    @Option(help: "Heads.", transform: Whole.from(1, to: 4096)) var heads = 4
    @Option(help: "Key channels of a head.", transform: Whole.from(2, to: 4096)) var keySize = 96
    @Option(help: "Value channels of a head.", transform: Whole.from(1, to: 4096)) var valueSize = 256
    @Option(
      help: "Channels of an MLP around each mixer, for the speed of a whole layer; 0: the mixer alone.",
      transform: Whole.from(0, to: 1 << 20))
    var intermediate = 0
    @Option(help: "Timed passes; the median counts.", transform: Whole.from(1, to: Most.timedRuns)) var passes = 5
    @Option(help: "Only these, separated by commas.") var only: String?
    @OptionGroup var device: DeviceOption

    func run() {
      withoutWorld {
        guard hidden % 2 == 0 else { throw JobError(.usage, "--hidden \(hidden): must be even") }
        // Every row's keys, values, gates and residual stream, forward and backward, and all weights with gradients.
        let channels = Double(hidden + heads * (keySize + valueSize) + intermediate)
        try refuse(
          "--context, --batch and the sizes of a layer",
          of: 4 * 8 * channels * (Double(context) * Double(batch) + 2 * Double(hidden)))
        let chosen = only?.split(separator: ",").map(String.init)
        var rows: [(name: String, rate: Double, share: Double)] = []
        for type in LayerType.allCases where !type.isAttention && chosen?.contains(type.rawValue) ?? true {
          let backend = try device.backend()
          let model = HybridLM(try shape(type))
          model.initialize(seed: 1, backend: backend)
          let arena = Arena(model.store, backend: backend) { intermediate > 0 || $0.name.contains("self_attn") }
          let segments = Segments(count: batch, length: context)
          let tokens = [Int32](repeating: 0, count: batch * context)
          var random = RandomStream(seed: 2, name: "input")
          let input = backend.tensor(
            (0..<tokens.count * hidden).map { _ in random.gaussian() }, [tokens.count, hidden])
          var matrixRate = Machine.matrixRate(backend)
          var times: [Double] = []
          var operations = 0.0
          for pass in 0..<passes + 1 {
            arena.beginBackward()
            let before = backend.operations
            var clock = PhaseClock()
            var x = input
            x.slot = GradientSlot(shape: x.shape, backend: backend)
            let sequences = Batch(tokens: backend.tensor(tokens), segments: segments)
            let layer = model.layers[0]
            let (y, tape) = backend.recording {
              intermediate == 0
                ? layer.mixer(x, sequences, cache: nil)
                : layer.complete(x, mixed: layer.mixer(layer.mixerInput(x), sequences, cache: nil))
            }
            y.slot?.accumulate(input)
            tape.backward()
            backend.mark().wait()
            clock.mark("pass")
            arena.endBackward()
            operations = backend.operations - before
            if pass > 0 { times.append(clock.total) }
          }
          matrixRate = max(matrixRate, Machine.matrixRate(backend))
          let seconds = times.sorted()[times.count / 2]
          let rate = Double(tokens.count) / seconds
          // Products of matrices at most: those inside the recurrences are not counted.
          rows.append((type.rawValue, rate, operations / seconds / matrixRate))
          try Bench.emit([
            "bench": "mixers", "mixer": type.rawValue, "tokens_per_s": rate, "context": context, "hidden": hidden,
            "intermediate": intermediate,
            "parameters": arena.count, "sgemm_gflops": matrixRate / 1e9,
            "projections_share_of_sgemm": operations / seconds / matrixRate,
          ])
        }
        guard let fastest = rows.map(\.rate).max() else { throw JobError(.usage, "--only names no linear mixer") }
        let table = rows.sorted { $0.rate > $1.rate }.map { row in
          [
            row.name, Format.count(row.rate), String(format: "%.2f", row.rate / fastest),
            String(format: "%.0f %%", row.share * 100),
          ]
        }
        FileHandle.standardError.write(
          Foundation.Data((Format.table([["mixer", "tok/s", "of the fastest", "SGEMM"]] + table) + "\n").utf8))
      }
    }

    /// One layer of this mixer, with a vocabulary and an MLP as small as they can be.
    private func shape(_ type: LayerType) throws -> ModelConfiguration {
      var settings: [String: Any] = [
        "num_heads": heads, "head_dim": keySize, "expand_v": Double(valueSize) / Double(keySize),
      ]
      if type == .mamba2 { settings = ["num_heads": heads, "head_dim": valueSize, "state_size": keySize] }
      // As many channels as the others have values; its state is square.
      if type == .rwkv7 { settings = ["num_heads": max(1, heads * valueSize / 64), "head_dim": 64] }
      let object: [String: Any] = [
        "model_type": "jet_nemotron", "vocab_size": 2, "hidden_size": hidden, "intermediate_size": max(1, intermediate),
        "num_hidden_layers": 1, "num_attention_heads": 1, "head_dim": 2, "tie_word_embeddings": true,
        "layer_types": [type.rawValue], "efficient_attention_config": [type.rawValue: settings],
      ]
      return try ModelConfiguration(
        json: JSONSerialization.data(withJSONObject: object), path: "bench mixers \(type.rawValue)")
    }
  }
}

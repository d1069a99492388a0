import ArgumentParser
import CPUBackend
import CUDA
import CUDABackend
import Evaluation
import Foundation
import Models
import Reporting
import Safetensors
import Tensors
import Training

struct Devices: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "The cards of this machine: what they are, what they reach, whether the kernels are right on them.",
    subcommands: [List.self, Check.self], defaultSubcommand: List.self)

  /// 13000 as 13.0.
  static func version(_ number: Int) -> String { "\(number / 1000).\(number % 1000 / 10)" }
  /// 90100 as 9.1.0.
  static func longVersion(_ number: Int) -> String { "\(number / 10_000).\(number % 10_000 / 100).\(number % 100)" }

  struct List: ParsableCommand {
    static let configuration = CommandConfiguration(
      commandName: "list",
      abstract: "Print cards, memory, driver, libraries with versions and paths, and measured rates.")

    func run() {
      withoutWorld {
        let count = try Device.count()
        guard count > 0 else {
          throw CUDAError(.missing, "the driver shows no card; CUDA_VISIBLE_DEVICES may hide some")
        }
        let driver = try Device.driverVersion()
        print("driver      CUDA \(Devices.version(driver.version))  \(driver.path)")
        // A library that is missing is told once, with where it was looked for; the rest is still printed.
        var missing: [any Error] = []
        do {
          let compiler = try Compiler()
          print("NVRTC       \(compiler.version.major).\(compiler.version.minor)  \(compiler.path)")
        } catch { missing.append(error) }
        for (title, found) in [
          ("cuDNN", DeviceRates.attentionLibrary()), ("NCCL", DeviceRates.collectivesLibrary()),
        ] {
          let padded = title.padding(toLength: 12, withPad: " ", startingAt: 0)
          print(padded + (found.map { "\(Devices.longVersion($0.version))  \($0.path)" } ?? "not found"))
        }
        for index in 0..<count {
          let device = try Device(index)
          if index == 0 {
            do {
              let products = try MatrixProducts(device)
              print("cuBLASLt    \(Devices.longVersion(products.version))  \(products.path)")
            } catch { missing.append(error) }
          }
          let memory = Double(device.memory) / 1_073_741_824
          let free = Double(try device.freeMemory()) / 1_073_741_824
          print(
            "card \(index)      \(device.name), \(device.architecture), \(device.multiprocessors) multiprocessors, "
              + String(format: "%.1f GiB, %.1f GiB free", memory, free))
          print(String(format: "  copy      %.2f TB/s read and written", try DeviceRates.copyBandwidth(device) / 1e12))
          if let products = try? MatrixProducts(device) {
            let rate = try DeviceRates.productRate(products, device)
            print(String(format: "  products  %.0f TFLOP/s, bfloat16, 8192 x 8192 x 8192", rate / 1e12))
          }
        }
        if let first = missing.first { throw first }
      }
    }
  }

  struct Check: ParsableCommand {
    static let configuration = CommandConfiguration(
      abstract:
        "Compare every kernel with a reference in double precision, at odd sizes; two runs must give the same bits.")
    @Option(help: "The card, as `jettrain devices` counts.") var device = 0
    @Flag(help: "Only the smallest sizes, as for compute-sanitizer.") var small = false
    @Option(help: "Also a golden file as `jettrain verify` reads it, as MODEL=FILE; may be given several times.")
    var golden: [String] = []
    @Option(help: "Only the checks in whose names this text is.") var only: String?

    func run() {
      withoutWorld {
        let backend = try CUDABackend(device)
        let card = backend.device
        var (rows, misses) = ([["kernel", "shape", "outputs", "gradients", "bits", ""]], 0)
        func report(_ result: CheckResult) {
          if !result.passes {
            misses += 1
            FileHandle.standardError.write(Data("miss: \(result)\n".utf8))
          }
          rows.append([
            result.kernel, result.shape, String(format: "%.1e", result.outputError),
            result.gradientError.map { String(format: "%.1e", $0) } ?? "", result.repeats ? "same" : "DIFFER",
            result.passes ? "" : String(format: "MISS (%.0e, %.0e)", result.outputBound, result.gradientBound),
          ])
        }
        for argument in golden {
          report(try model(argument, on: backend))
          report(try steps(argument, on: backend))
        }
        backend.poisonsNewTensors = true
        BackendCheck(backend, against: CPUBackend(threads: Machine.cores)).run(small: small, only: only, report: report)
        if only == nil { try DeviceCheck(card).run(small: small, report: report) }
        print(Format.table(rows))
        print("\(rows.count - 1) checks on \(card.name), \(Format.counted(misses, "miss", plural: "misses"))")
        guard misses == 0 else {
          throw CUDAError(
            .fault, "\(misses) of \(rows.count - 1) kernels do not compute what they should on \(card.name)")
        }
      }
    }

    /// A whole model that generates: the step that is recorded and repeated beside one pass over everything.
    private func steps(_ argument: String, on backend: CUDABackend) throws -> CheckResult {
      let path = String(argument.split(separator: "=", maxSplits: 1)[0])
      let model = try loadModel(path, backend: backend)
      let vocabulary = model.configuration.vocabularySize
      let tokens = (0..<60).map { UInt32($0 * 37 % vocabulary) }
      let whole = Generator(model, sequences: 2, backend: backend).read([tokens, Array(tokens[7...])]).toArray()
      let runs = try (0..<2).map { _ in
        let generator = Generator(model, sequences: 2, backend: backend)
        _ = generator.read([Array(tokens[..<30]), Array(tokens[7..<30])])
        for token in tokens[30...] { _ = try generator.step([token, token], Sampling(), uniforms: [0, 0]) }
        return generator.logits!.toArray()
      }
      return CheckResult(
        kernel: "golden model, steps", shape: path,
        outputError: relativeError(runs[0].map(Double.init), whole.map(Double.init)), gradientError: nil,
        outputBound: model.head.dtype == .bfloat16 ? 1e-2 : 2e-5, gradientBound: 0, repeats: runs[0] == runs[1])
    }

    /// A whole model, forward and backward, beside a reference implementation's.
    private func model(_ argument: String, on backend: CUDABackend) throws -> CheckResult {
      let parts = argument.split(separator: "=", maxSplits: 1).map(String.init)
      guard parts.count == 2 else { throw JobError(.usage, "--golden \(argument): expected MODEL=FILE") }
      let golden = try SafetensorsFile(path: parts[1])
      let runs = try (0..<2).map { _ in
        try GoldenComparison(
          model: loadModel(parts[0], backend: backend), golden: golden, backend: backend
        ).entries
      }
      func worst(_ isGradient: Bool) -> Double? { runs[0].filter { $0.isGradient == isGradient }.map(\.error).max() }
      return CheckResult(
        kernel: "golden model, float32", shape: parts[0], outputError: worst(false) ?? 0, gradientError: worst(true),
        outputBound: 2e-5, gradientBound: 1e-4, repeats: runs[0].map(\.error) == runs[1].map(\.error))
    }
  }
}

extension Bench {
  struct Kernels: ParsableCommand {
    static let configuration = CommandConfiguration(
      abstract: "Time kernels of a card by themselves, at the sizes of a layer of the 2B.")
    @Option(help: "The card, as `jettrain devices` counts.") var device = 0
    @Option(help: "Heads of the layer.") var heads = 12
    @Option(help: "Key channels of a head.") var keySize = 96
    @Option(help: "Value channels of a head.") var valueSize = 256
    @Option(help: "Sequences side by side.") var sequences = 2
    @Option(help: "Tokens of a sequence.") var length = 4096
    @Option(help: "Channels of the residual stream.") var hidden = 1536
    @Option(help: "Channels of the MLP.") var intermediate = 8960
    @Option(help: "Rows of the vocabulary.") var vocabulary = 151_936
    @Option(help: "Timed runs; the median counts.") var runs = 31
    @Flag(help: "Time the float32 mode too.") var float32 = false

    func validate() throws {
      for (name, value) in [
        ("--heads", heads), ("--key-size", keySize), ("--value-size", valueSize), ("--sequences", sequences),
        ("--length", length), ("--runs", runs), ("--hidden", hidden), ("--intermediate", intermediate),
        ("--vocabulary", vocabulary),
      ] where value < 1 {
        throw ValidationError("\(name) is \(value): it must be at least 1")
      }
    }

    func run() {
      withoutWorld {
        let card = try Device(device)
        let bandwidth = try DeviceRates.copyBandwidth(card)
        let benchmark = try KernelBenchmark(card)
        for (kernel, nanoseconds, bytes) in try benchmark.rows(
          tokens: sequences * length, hidden: hidden, intermediate: intermediate, heads: heads, keySize: keySize,
          valueSize: valueSize, vocabulary: vocabulary, runs: runs)
        {
          try Bench.emit([
            "bench": "kernels", "kernel": kernel, "ns_per_token": nanoseconds, "bytes_per_token": bytes,
            "share_of_copy": bytes / (nanoseconds * 1e-9) / bandwidth, "copy_tb_s": bandwidth / 1e12,
            "tokens": sequences * length, "mode": "bfloat16", "card": card.name,
          ])
        }
        for elements in [GatedDeltaRule.Elements.bfloat16] + (float32 ? [.float32] : []) {
          let (times, saved) = try benchmark.gatedDeltaRule(
            heads: heads, keySize: keySize, valueSize: valueSize, sequences: sequences, length: length,
            elements: elements, runs: runs)
          for (pass, nanoseconds) in times {
            try Bench.emit([
              "bench": "kernels", "kernel": "gated_delta_rule", "pass": pass, "ns_per_token": nanoseconds,
              "mode": "\(elements)", "heads": heads, "key_size": keySize, "value_size": valueSize,
              "sequences": sequences, "length": length, "saved_bytes_per_token": saved / (sequences * length),
              "copy_tb_s": bandwidth / 1e12, "card": card.name,
            ])
          }
        }
      }
    }
  }
}

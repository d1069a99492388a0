import CUDA
import CUDABackend
import Foundation
import TestSupport
import Testing

/// What NVRTC makes of the kernels; without NVRTC skipped, with what is missing.
@Suite(.serialized) struct CompilerTests {
  private static let compiler = Result { try Compiler() }
  private static let hasCompiler = (try? compiler.get()) != nil
  private static let hasCard = (try? Device.count()).map { $0 > 0 } ?? false

  /// Kernels and the sizes that they are compiled for: the 2B's heads, the 4B's, the smallest.
  private static let variants: [(file: String, defines: [String: String])] = {
    let parts = ["Prepare", "Forward", "BackwardStates", "Backward"].map { "GatedDeltaRule\($0).cu" }
    let sizes = [
      ["KEY_SIZE": "96", "VALUE_SIZE": "256"], ["KEY_SIZE": "128", "VALUE_SIZE": "256"],
      ["KEY_SIZE": "16", "VALUE_SIZE": "16", "BACKWARD_STAGES": "2"],
    ]
    let plain = ["GatedDeltaRuleExact.cu", "Normalization.cu", "DynamicConvolution.cu", "Elementwise.cu", "Losses.cu"]
    // One by one: as one expression it takes the compiler longer than it allows itself.
    var all: [(file: String, defines: [String: String])] = []
    for file in parts { all += sizes.map { (file, $0) } }
    for file in plain { all += ["float", "bf16"].map { (file, ["ELEMENT": $0]) } }
    for size in ["128", "64", "16"] {
      all += ["Attention.cu", "AttentionExact.cu"].map { ($0, ["HEAD_SIZE": size]) }
    }
    for (keys, states) in [("96", "float"), ("96", "bf16"), ("128", "float"), ("256", "float")] {
      all += ["DeltaRuleStep.cu", "JetStep.cu"].map {
        ($0, ["KEY_SIZE": keys, "VALUE_SIZE": "256", "ELEMENT": "bf16", "STATE": states])
      }
    }
    all += ["128", "64"].map { ("CacheAttention.cu", ["HEAD_SIZE": $0]) }
    let whole = [
      "AttentionHopper.cu", "AttentionHopperBackward.cu", "Caches.cu", "Convolution.cu", "Elements.cu",
      "RowsAndColumns.cu",
      "Sampling.cu", "Tables.cu",
    ]
    all += whole.map { ($0, [:]) }
    return all + [("Recurrence.cu", ["KEY_SIZE": "64"])]
  }()

  @Test(
    .enabled(
      if: hasCompiler, "NVRTC is missing: pip download nvidia-cuda-nvrtc, JETTRAIN_CUDA_LIBRARIES names its folder"),
    arguments: ["sm_80", "sm_89", "sm_90a", "sm_100"])
  func everyKernelCompilesWithoutSpills(architecture: String) throws {
    let compiler = try Self.compiler.get()
    let covered = Set(Self.variants.map(\.file))
    #expect(covered == Set(KernelSources.all.keys.filter { $0.hasSuffix(".cu") }), "a kernel is not compiled here")
    // Every size on the card that is measured, the 2B's and the plain kernel on the others.
    for (file, defines) in Self.variants
    where architecture == "sm_90a"
      || (!file.hasPrefix("AttentionHopper")
        && (defines["KEY_SIZE"] == "96" || defines["ELEMENT"] == "bf16" || defines["HEAD_SIZE"] == "128"
          || defines.isEmpty))
    {
      let output = try compiler.compile(
        KernelSources.all[file]!, headers: KernelSources.headers, defines: defines, architecture: architecture,
        caches: false)
      let name = "\(architecture) \(file) \(defines.sorted { $0.key < $1.key }.map(\.value).joined(separator: " "))"
      var (kernel, kernels) = ("", 0)
      for line in output.log.split(separator: "\n") {
        if let range = line.range(of: "entry function '") {
          kernel = String(line[range.upperBound...].prefix { $0 != "'" })
        } else if line.contains("spill stores") {
          #expect(line.contains(" 0 bytes spill stores, 0 bytes spill loads"), "\(name): \(kernel) spills: \(line)")
        } else if let range = line.range(of: "Used ") {
          print("\(name): \(kernel) \(line[range.upperBound...].prefix { $0 != "," })")
          kernels += 1
        }
      }
      #expect(kernels > 0, "NVRTC told nothing of \(name): \(output.log)")
    }
  }

  @Test(.enabled(if: hasCompiler, "NVRTC is missing"))
  func compiledKernelsAreKeptAndDamagedOnesMadeAnew() throws {
    let folder = FileManager.default.temporaryDirectory.appendingPathComponent("jettrain-kernels-\(UUID())").path
    setenv("JETTRAIN_KERNEL_CACHE", folder, 1)
    defer {
      unsetenv("JETTRAIN_KERNEL_CACHE")
      try? FileManager.default.removeItem(atPath: folder)
    }
    let compiler = try Self.compiler.get()
    func compile(_ text: String) throws -> Compiler.Output {
      try compiler.compile(
        .init(name: "a.cu", text: text), headers: [], defines: [:], architecture: "sm_80")
    }
    let text = "extern \"C\" __global__ void a(float *x) { x[threadIdx.x] = 1; }"
    let made = try compile(text)
    let kept = try compile(text)
    #expect(!made.log.isEmpty && kept.log.isEmpty && kept.code == made.code)
    #expect(try !compile(text + " ").log.isEmpty, "another text is another kernel")
    for name in try FileManager.default.contentsOfDirectory(atPath: folder) {
      let path = folder + "/" + name
      try Data(contentsOf: URL(fileURLWithPath: path)).dropLast(100).write(to: URL(fileURLWithPath: path))
    }
    let again = try compile(text)
    #expect(!again.log.isEmpty && again.code == made.code)
  }

  @Test(.enabled(if: hasCompiler, "NVRTC is missing"))
  func aKernelThatDoesNotCompileSaysWhy() throws {
    let compiler = try Self.compiler.get()
    let error = #expect(throws: CUDAError.self) {
      try compiler.compile(
        .init(name: "wrong.cu", text: "int x = y;"), headers: [], defines: [:], architecture: "sm_80", caches: false)
    }
    #expect(
      error?.kind == .compilation && error?.description.contains("wrong.cu(1)") == true, "\(String(describing: error))")
  }

  // MARK: With and without a card

  private func run(_ arguments: [String], environment: [String: String] = [:]) throws -> (status: Int32, errors: String)
  {
    let process = Process()
    process.executableURL = URL(fileURLWithPath: jettrainProgram)
    process.arguments = arguments
    process.environment = ProcessInfo.processInfo.environment.merging(environment) { $1 }
    let pipe = Pipe()
    process.standardError = pipe
    process.standardOutput = FileHandle.nullDevice
    try process.run()
    let errors = String(decoding: pipe.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
    process.waitUntilExit()
    return (process.terminationStatus, errors)
  }

  @Test(
    .enabled(if: !hasCard, "there is a card"), arguments: [["devices"], ["devices", "check"], ["bench", "kernels"]])
  func withoutACardOneLineSaysWhatIsMissing(command: [String]) throws {
    let (status, errors) = try run(command, environment: ["JETTRAIN_CUDA_LIBRARIES": "/nowhere/at/all"])
    #expect(status == 69, "\(errors)")
    let lines = errors.split(separator: "\n")
    #expect(lines.count == 1 && errors.hasPrefix("jettrain: "), "\(errors)")
    // A driver without a card is another way to have none.
    #expect(errors.contains("/nowhere/at/all") || errors.contains("no CUDA card"), "\(errors)")
  }

  @Test(.enabled(if: hasCard, "no card: `jettrain devices` says what is missing"))
  func theKernelsAreRightOnTheCard() throws {
    let (status, errors) = try run(["devices", "check"])
    #expect(status == 0, "\(errors)")
  }
}

// swift-tools-version: 6.0
import Foundation
import PackageDescription

/// The instruction set that the kernels are compiled for; a binary for other machines wants e.g. `x86-64-v3`.
let cpu = ProcessInfo.processInfo.environment["JETTRAIN_CPU"] ?? "native"

/// Without these flags `squareRoot()` and `addingProduct` become library calls and reductions stay scalar.
let kernelFlags: [SwiftSetting] = [.unsafeFlags(["-Xcc", "-march=\(cpu)", "-Xcc", "-fno-math-errno"])]

/// For what only calls the rooms: the optimizer would take most of its build time and make nothing faster. Program and
/// tests have one configuration, release.
let unoptimized: [SwiftSetting] = [.unsafeFlags(["-Onone"])]

/// Texts that the C target CUDAKernels embeds.
let kernels = [
  "Attention.cu", "AttentionExact.cu", "AttentionHopper.cu", "AttentionHopper.cuh", "AttentionHopperBackward.cu",
  "CacheAttention.cu", "Caches.cu", "Convolution.cu", "DeltaRuleStep.cu", "DeltaRuleStep.cuh",
  "DynamicConvolution.cu", "Elements.cu", "Elementwise.cu", "GatedDeltaRule.cuh", "GatedDeltaRuleBackward.cu",
  "GatedDeltaRuleBackwardStates.cu", "GatedDeltaRuleExact.cu", "GatedDeltaRuleForward.cu", "GatedDeltaRulePrepare.cu",
  "GatedDeltaRuleWalk.cuh", "JetStep.cu", "Losses.cu", "Normalization.cu", "Primitives.cuh", "Recurrence.cu",
  "Rows.cuh", "RowsAndColumns.cu", "Sampling.cu", "Spans.cuh", "Tables.cu", "Values.cuh",
]

let argumentParser = Target.Dependency.product(name: "ArgumentParser", package: "swift-argument-parser")
let yams = Target.Dependency.product(name: "Yams", package: "Yams")

// A room imports only rooms listed above it (docs/design.md, section 3).
let package = Package(
  name: "jettrain",
  products: [.executable(name: "jettrain", targets: ["jettrain"])],
  dependencies: [
    .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.0"),
    .package(url: "https://github.com/jpsim/Yams", from: "6.2.0"),
  ],
  targets: [
    .systemLibrary(name: "CCUDA"),
    .systemLibrary(name: "CCrypto", pkgConfig: "libcrypto", providers: [.apt(["libssl-dev"])]),
    .systemLibrary(name: "CMPI", pkgConfig: "ompi-c", providers: [.apt(["libopenmpi-dev"])]),
    .systemLibrary(name: "CStack"),
    .systemLibrary(name: "CVector"),
    .systemLibrary(name: "COpenBLAS", pkgConfig: "openblas", providers: [.apt(["libopenblas-dev"])]),
    .systemLibrary(name: "CZstd", pkgConfig: "libzstd", providers: [.apt(["libzstd-dev"])]),
    .target(name: "Hashing", dependencies: ["CCrypto"]),
    .target(name: "MPI", dependencies: ["CMPI"]),
    .target(name: "Parallel", swiftSettings: kernelFlags),
    .target(name: "Tensors"),
    .target(
      name: "CPUBackend", dependencies: ["COpenBLAS", "CVector", "Parallel", "Tensors"], swiftSettings: kernelFlags),
    .target(name: "Fabric", dependencies: ["CPUBackend", "CUDA", "CUDABackend", "MPI", "Tensors"]),
    .target(name: "CUDA", dependencies: ["CCUDA", "Hashing"]),
    .target(
      name: "CUDAKernels", path: "Sources/CUDABackend/Kernels", exclude: kernels,
      cSettings: [.unsafeFlags(["-Wno-c23-extensions"])]),
    .target(name: "CUDABackend", dependencies: ["CCUDA", "CUDA", "CUDAKernels", "Tensors"], exclude: ["Kernels"]),
    .target(name: "Ops", dependencies: ["Tensors"]),
    .target(name: "NN", dependencies: ["Ops", "Tensors"]),
    .target(name: "Files", dependencies: ["CZstd", "Hashing"]),
    .target(name: "JSON"),
    .target(name: "Safetensors", dependencies: ["Files", "JSON", "Tensors"], swiftSettings: kernelFlags),
    .target(name: "GGUF", dependencies: ["Files"], swiftSettings: kernelFlags),
    .target(name: "Chat"),
    .target(name: "Fetching", dependencies: ["Files", "Hashing"]),
    .target(
      name: "Models", dependencies: ["Files", "GGUF", "NN", "Ops", "Safetensors", "Tensors"],
      resources: [.embedInCode("Modelling/modeling_jettrain_hybrid.py")]),
    .target(name: "Conversion", dependencies: ["COpenBLAS", "Models", "NN", "Tensors"]),
    .target(name: "Optimizers", dependencies: ["NN", "Tensors"]),
    .target(name: "Tokenizers", dependencies: ["Files", "GGUF", "Hashing", "JSON"]),
    .target(
      name: "TokenStreams", dependencies: ["Chat", "Files", "Hashing", "Parallel", "Tokenizers", yams],
      swiftSettings: kernelFlags),
    .target(
      name: "Checkpointing",
      dependencies: ["Files", "Hashing", "MPI", "NN", "Parallel", "Safetensors", "Tensors"]),
    .target(name: "Reporting", dependencies: ["Files", "Tensors"]),
    .target(
      name: "Training",
      dependencies: [
        "CStack",
        "Chat", "Checkpointing", "Conversion", "Fabric", "Files", "GGUF", "Hashing", "MPI", "Models", "NN", "Ops", "Optimizers", "Parallel",
        "Reporting", "Tensors", "Tokenizers", "TokenStreams",
      ]),
    .target(
      name: "Evaluation",
      dependencies: ["Files", "Models", "NN", "Ops", "Safetensors", "Tensors", "Tokenizers", "Training", "TokenStreams"]),
    .target(
      name: "Search",
      dependencies: [
        "Checkpointing", "Conversion", "Evaluation", "Files", "Hashing", "MPI", "Models", "NN", "Ops", "Reporting",
        "Tensors", "Tokenizers", "TokenStreams", "Training",
      ]),
    .executableTarget(
      name: "jettrain",
      dependencies: [
        "Search",
        "Chat", "Checkpointing", "Conversion", "CPUBackend", "CUDA", "CUDABackend", "Evaluation", "Fabric", "Fetching", "Files", "GGUF", "Models", "MPI", "NN",
        "Parallel", "Reporting",
        "Safetensors", "Tensors", "Tokenizers", "TokenStreams", "Training", argumentParser,
      ], swiftSettings: unoptimized),
    .target(name: "TestSupport", dependencies: ["CPUBackend", "Tensors"], path: "Tests/TestSupport"),
    .testTarget(
      name: "OpsTests", dependencies: ["CPUBackend", "Ops", "Tensors", "TestSupport"], swiftSettings: unoptimized),
    .testTarget(
      name: "ModelsTests",
      dependencies: [
        "Chat", "Conversion", "CPUBackend", "Evaluation", "Files", "GGUF", "Models", "NN", "Ops", "Safetensors", "Tensors",
        "TestSupport", "Tokenizers", "Training",
      ], swiftSettings: unoptimized),
    .target(
      name: "KernelEmulator", path: "Tests/KernelEmulator", exclude: ["GatedDeltaRule.inc"],
      cxxSettings: [
        .headerSearchPath("."), .headerSearchPath("../../Sources/CUDABackend/Kernels"),
        .unsafeFlags(["-std=c++17", "-O1", "-Wno-pass-failed", "-Wno-unused-function", "-Wno-unknown-pragmas"]),
      ]),
    .testTarget(
      name: "CUDATests",
      dependencies: [
        "CPUBackend", "CUDA", "CUDABackend", "jettrain", "KernelEmulator", "Tensors", "TestSupport",
      ], swiftSettings: unoptimized),
    .testTarget(name: "ChatTests", dependencies: ["Chat", "TestSupport"], swiftSettings: unoptimized),
    .testTarget(name: "TokenizersTests", dependencies: ["TestSupport", "Tokenizers"], swiftSettings: unoptimized),
    .testTarget(
      name: "TokenStreamsTests", dependencies: ["Chat", "Files", "Parallel", "TestSupport", "Tokenizers", "TokenStreams"],
      swiftSettings: unoptimized),
    .testTarget(
      name: "TrainingTests",
      dependencies: [
        "Checkpointing", "CPUBackend", "Fabric", "Models", "MPI", "NN", "Optimizers", "Tensors", "TestSupport", "TokenStreams",
        "Training",
      ], swiftSettings: unoptimized),
    .testTarget(name: "SearchTests", dependencies: ["CPUBackend", "Search", "TestSupport"], swiftSettings: unoptimized),
    .testTarget(name: "CommandTests", dependencies: ["jettrain", "TestSupport"], swiftSettings: unoptimized),
    .testTarget(name: "RankTests", dependencies: ["jettrain", "TestSupport"], swiftSettings: unoptimized),
    .executableTarget(
      name: "jettrain-faults",
      dependencies: ["Checkpointing", "Files", "MPI", "NN", "TestSupport", "TokenStreams", "Training"],
      path: "Tests/Faults", swiftSettings: unoptimized),
    .testTarget(
      name: "FaultTests", dependencies: ["jettrain", "jettrain-faults", "TestSupport"], swiftSettings: unoptimized),
    .executableTarget(
      name: "jettrain-fuzz",
      dependencies: [
        "Chat", "Checkpointing", "Evaluation", "Files", "GGUF", "Hashing", "Models", "Parallel", "Safetensors", "Search", "TestSupport", "Tokenizers",
        "TokenStreams", "Training",
      ], path: "Tests/Fuzz"),
    .testTarget(
      name: "InteropTests", dependencies: ["jettrain", "jettrain-fuzz", "TestSupport"], path: "Tests/Interop",
      exclude: [
        "hub_server.py", "hybrid_parity.py", "jet_twin.py", "make_chat_fixtures.py", "make_family_goldens.py",
        "make_gguf_fixtures.py", "make_golden.py", "make_layer_fixtures.py", "make_reference.py",
        "make_tokenizer_fixtures.py", "parity.py", "tokenizer_parity.py",
      ],
      swiftSettings: unoptimized),
  ],
  swiftLanguageModes: [.v6]
)

import CCUDA
import Foundation

/// A shared library of NVIDIA's, opened at run time.
package final class Library: @unchecked Sendable {
  package enum Name: String, CaseIterable, Sendable {
    case driver = "libcuda"
    case compiler = "libnvrtc"
    case matrices = "libcublasLt"
    case attention = "libcudnn"
    case collectives = "libnccl"

    /// File names to try, the newest first.
    var files: [String] {
      switch self {
      case .driver: ["libcuda.so.1", "libcuda.so"]
      case .compiler: ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"]
      case .matrices: ["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"]
      case .attention: ["libcudnn.so.9", "libcudnn.so"]
      case .collectives: ["libnccl.so.2", "libnccl.so"]
      }
    }

    /// Where the library comes from, for the line that says that it is missing.
    var origin: String {
      switch self {
      case .driver: "it comes with NVIDIA's driver"
      case .compiler: "it comes with the CUDA toolkit, or `pip install nvidia-cuda-nvrtc`"
      case .matrices: "it comes with the CUDA toolkit, or `pip install nvidia-cublas`"
      case .attention: "it comes with cuDNN, or `pip install nvidia-cudnn-cu13`"
      case .collectives: "it comes with NCCL, or `pip install nvidia-nccl-cu13`"
      }
    }
  }

  package let name: Name
  /// The file that the loader took.
  package let path: String
  private let handle: UnsafeMutableRawPointer

  private init(name: Name, path: String, handle: UnsafeMutableRawPointer) {
    (self.name, self.path, self.handle) = (name, path, handle)
  }

  /// The environment variable that names folders to look in first.
  package static let folderVariable = "JETTRAIN_CUDA_LIBRARIES"

  /// Opens a library: in the folders of JETTRAIN_CUDA_LIBRARIES, where the loader looks, in the CUDA toolkit, in the
  /// folders of Python packages.
  ///
  /// - Throws: `CUDAError.missing` with every place that was looked in.
  package static func open(_ name: Name) throws -> Library {
    let own = (ProcessInfo.processInfo.environment[folderVariable] ?? "").split(separator: ":").map(String.init)
    let folders = own + [""] + installedFolders
    var refusal = ""
    for folder in folders {
      for file in name.files {
        let path = folder.isEmpty ? file : folder + "/" + file
        guard folder.isEmpty || access(path, R_OK) == 0 else { continue }
        // NVRTC opens its table of built-in functions by name alone.
        if name == .compiler, !folder.isEmpty { preload(prefix: "libnvrtc-builtins.so", in: folder) }
        if let handle = dlopen(path, RTLD_NOW | RTLD_LOCAL) {
          return Library(name: name, path: loadedPath(handle, name) ?? path, handle: handle)
        }
        if !folder.isEmpty { refusal = dlerror().map { "; the loader refused: " + String(cString: $0) } ?? "" }
      }
    }
    let places = folders.map { $0.isEmpty ? "the loader's path" : $0 }.joined(separator: ", ")
    throw CUDAError(
      .missing,
      "\(name.rawValue) is missing: looked in \(places)\(refusal); \(name.origin); \(folderVariable) names other folders"
    )
  }

  /// The function `symbol` of the library as `type`, a C function pointer.
  package func function<T>(_ symbol: String, as type: T.Type = T.self) throws -> T {
    guard let address = dlsym(handle, symbol) else {
      throw CUDAError(.missing, "\(path) has no \(symbol): a version of CUDA 12 or 13 is needed")
    }
    return unsafeBitCast(address, to: T.self)
  }

  private static func preload(prefix: String, in folder: String) {
    let names = (try? FileManager.default.contentsOfDirectory(atPath: folder)) ?? []
    for name in names.sorted().reversed() where name.hasPrefix(prefix) {
      if dlopen(folder + "/" + name, RTLD_NOW | RTLD_GLOBAL) != nil { return }
    }
  }

  private static func loadedPath(_ handle: UnsafeMutableRawPointer, _ name: Name) -> String? {
    let symbols: [Name: String] = [
      .driver: "cuInit", .compiler: "nvrtcVersion", .matrices: "cublasLtCreate", .attention: "cudnnGetVersion",
      .collectives: "ncclGetVersion",
    ]
    var information = jettrain_symbol_information()
    guard let symbol = symbols[name], let address = dlsym(handle, symbol),
      jettrain_find_symbol(address, &information) != 0
    else {
      return nil
    }
    return information.file.map { String(cString: $0) }
  }

  /// Folders in which toolkits and Python packages put libraries, where they exist, the newest first.
  private static let installedFolders: [String] = {
    let environment = ProcessInfo.processInfo.environment
    var roots = [environment["VIRTUAL_ENV"], environment["CONDA_PREFIX"], environment["HOME"].map { $0 + "/.local" }]
    roots += ["/usr/local", "/usr"]
    var patterns = ["/usr/local/cuda*/lib64"]
    for root in roots.compactMap({ $0 }) {
      patterns.append(root + "/lib/python3*/site-packages/nvidia/*/lib")
      patterns.append(root + "/lib/python3*/dist-packages/nvidia/*/lib")
    }
    return patterns.flatMap { pattern in
      var found = glob_t()
      defer { globfree(&found) }
      guard glob(pattern, 0, nil, &found) == 0 else { return [String]() }
      return (0..<Int(found.gl_pathc)).compactMap { found.gl_pathv[$0].map { String(cString: $0) } }.reversed()
    }
  }()
}

import CUDA
import CUDAKernels
import Foundation

/// The kernels' sources, as they were when the program was built.
package enum KernelSources {
  /// Every kernel by its file's name: those of the folder `JETTRAIN_KERNELS`, where it is set, else those built in.
  package static let all: [String: Compiler.Source] = {
    guard let folder = ProcessInfo.processInfo.environment["JETTRAIN_KERNELS"] else { return embedded }
    return embedded.mapValues { source in
      let text = try? String(contentsOfFile: folder + "/" + source.name, encoding: .utf8)
      return text.map { Compiler.Source(name: source.name, text: $0) } ?? source
    }
  }()

  /// Every file of Sources/CUDABackend/Kernels, as it was when the program was built.
  package static let embedded: [String: Compiler.Source] = {
    var sources: [String: Compiler.Source] = [:]
    var index: Int32 = 0
    while true {
      let source = jettrain_kernel_source_at(index)
      guard let name = source.name, let text = source.text else { return sources }
      let bytes = UnsafeRawBufferPointer(start: text, count: source.length)
      sources[String(cString: name)] = Compiler.Source(
        name: String(cString: name), text: String(decoding: bytes, as: UTF8.self))
      index += 1
    }
  }()

  /// What kernels include.
  package static let headers = all.values.filter { $0.name.hasSuffix(".cuh") }.sorted { $0.name < $1.name }
}

/// Kernels of a card, compiled for it when they are first asked for.
package final class KernelLibrary: @unchecked Sendable {
  package let device: Device
  package let compiler: Compiler
  private var modules: [String: Module] = [:]

  /// - Throws: `CUDAError.missing` without NVRTC.
  package init(_ device: Device) throws {
    (self.device, compiler) = (device, try Compiler())
  }

  /// The kernels of `file`, compiled with `defines`.
  package func module(_ file: String, defines: [String: String]) throws -> Module {
    let key = file + defines.sorted { $0.key < $1.key }.map { " \($0.key)=\($0.value)" }.joined()
    if let module = modules[key] { return module }
    guard let source = KernelSources.all[file] else { preconditionFailure("no kernels of \(file) are embedded") }
    func load(caches: Bool) throws -> Module {
      let output = try compiler.compile(
        source, headers: KernelSources.headers, defines: defines, architecture: device.architecture, caches: caches)
      return try Module(device, code: output.code, name: key)
    }
    // A kept file that the driver refuses was not ours: made anew.
    let module = try (try? load(caches: true)) ?? load(caches: false)
    modules[key] = module
    return module
  }
}

import CCUDA
import Foundation
import Hashing

/// Compiles CUDA C++ for a card at run time, and keeps what it made in a folder.
package final class Compiler: @unchecked Sendable {
  /// A text and the name under which `#include` finds it.
  package struct Source: Sendable {
    package let name: String
    package let text: String

    package init(name: String, text: String) { (self.name, self.text) = (name, text) }
  }

  /// Machine code, and what the compiler said of it (registers and spills of every kernel); empty if it was kept.
  package struct Output: Sendable {
    package let code: [UInt8]
    package let log: String
  }

  package let version: (major: Int, minor: Int)
  package let path: String
  private let library: Library
  private let errorString: nvrtcGetErrorString_t
  private let createProgram: nvrtcCreateProgram_t
  private let destroyProgram: nvrtcDestroyProgram_t
  private let compileProgram: nvrtcCompileProgram_t
  private let logSize: nvrtcGetSize_t
  private let log: nvrtcGetText_t
  private let codeSize: nvrtcGetSize_t
  private let code: nvrtcGetText_t

  /// - Throws: `CUDAError.missing` without NVRTC.
  package init() throws {
    library = try Library.open(.compiler)
    path = library.path
    errorString = try library.function("nvrtcGetErrorString")
    createProgram = try library.function("nvrtcCreateProgram")
    destroyProgram = try library.function("nvrtcDestroyProgram")
    compileProgram = try library.function("nvrtcCompileProgram")
    logSize = try library.function("nvrtcGetProgramLogSize")
    log = try library.function("nvrtcGetProgramLog")
    codeSize = try library.function("nvrtcGetCUBINSize")
    code = try library.function("nvrtcGetCUBIN")
    let nvrtcVersion: nvrtcVersion_t = try library.function("nvrtcVersion")
    var (major, minor): (Int32, Int32) = (0, 0)
    guard nvrtcVersion(&major, &minor) == 0 else { throw CUDAError(.fault, "\(path) does not tell its version") }
    version = (Int(major), Int(minor))
  }

  /// The folder of compiled kernels: `JETTRAIN_KERNEL_CACHE`, else `jettrain/kernels` in the user's folder of caches;
  /// nil when there is none.
  package static var cacheFolder: String? {
    let environment = ProcessInfo.processInfo.environment
    if let folder = environment["JETTRAIN_KERNEL_CACHE"] { return folder.isEmpty ? nil : folder }
    if let folder = environment["XDG_CACHE_HOME"], !folder.isEmpty { return folder + "/jettrain/kernels" }
    return environment["HOME"].map { $0 + "/.cache/jettrain/kernels" }
  }

  /// Compiles `source` for an architecture such as `sm_90a`, or takes what an earlier run made of the same texts and
  /// options with the same NVRTC.
  ///
  /// - Parameter caches: whether the folder of compiled kernels is read and written.
  package func compile(
    _ source: Source, headers: [Source], defines: [String: String], architecture: String, caches: Bool = true
  ) throws -> Output {
    let options =
      [
        "--gpu-architecture=\(architecture)", "--std=c++17", "--device-as-default-execution-space",
        "--ptxas-options=-v",
      ]
      + defines.sorted { $0.key < $1.key }.map { "-D\($0.key)=\($0.value)" }
    var hash = SHA256()
    for text in [source.name, source.text] + headers.flatMap({ [$0.name, $0.text] }) + options {
      hash.update("\(text.utf8.count) \(text)")
    }
    hash.update("NVRTC \(version.major).\(version.minor)")
    let file = caches ? Self.cacheFolder.map { "\($0)/\(hash.finish()).cubin" } : nil
    // The end of a kept file says that it is whole.
    let mark = Array("jettrain cubin".utf8)
    if let file, let kept = FileManager.default.contents(atPath: file), kept.suffix(mark.count).elementsEqual(mark) {
      return Output(code: [UInt8](kept.dropLast(mark.count)), log: "")
    }
    let output = try build(source, headers: headers, options: options)
    if let file {
      // A folder that cannot be written costs the next run some seconds, nothing else.
      let folder = (file as NSString).deletingLastPathComponent
      try? FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
      try? Data(output.code + mark).write(to: URL(fileURLWithPath: file), options: .atomic)
    }
    return output
  }

  private func build(_ source: Source, headers: [Source], options: [String]) throws -> Output {
    var program: nvrtcProgram?
    try withCStrings(headers.map(\.text)) { texts in
      try withCStrings(headers.map(\.name)) { names in
        try check(
          createProgram(&program, source.text, source.name, Int32(headers.count), texts, names),
          "giving \(source.name) to NVRTC")
      }
    }
    defer { _ = destroyProgram(&program) }
    let status = withCStrings(options) { compileProgram(program, Int32(options.count), $0) }
    let said = String(decoding: try bytes(program, logSize, log).prefix { $0 != 0 }, as: UTF8.self)
    guard status == 0 else {
      throw CUDAError(
        .compilation,
        "NVRTC \(version.major).\(version.minor) (\(path)) does not compile \(source.name) with "
          + "\(options.joined(separator: " ")): \(String(cString: errorString(status)!))\n\(said)")
    }
    return Output(code: try bytes(program, codeSize, code), log: said)
  }

  private func bytes(_ program: nvrtcProgram?, _ size: nvrtcGetSize_t, _ get: nvrtcGetText_t) throws -> [UInt8] {
    var count = 0
    try check(size(program, &count), "asking NVRTC for its output")
    var result = [UInt8](repeating: 0, count: count)
    try result.withUnsafeMutableBytes { buffer in
      try check(get(program, buffer.bindMemory(to: CChar.self).baseAddress), "taking NVRTC's output")
    }
    return result
  }

  private func check(_ status: nvrtcResult, _ action: String) throws {
    guard status != 0 else { return }
    throw CUDAError(.fault, "\(action) failed: \(String(cString: errorString(status)!)) (\(path))")
  }
}

/// Calls `body` with C strings of `texts`, which live as long as the call.
private func withCStrings<R>(_ texts: [String], _ body: (UnsafePointer<UnsafePointer<CChar>?>?) throws -> R) rethrows
  -> R
{
  let copies = texts.map { strdup($0) }
  defer { for copy in copies { free(copy) } }
  return try copies.map { $0.map { UnsafePointer($0) } }.withUnsafeBufferPointer { try body($0.baseAddress) }
}

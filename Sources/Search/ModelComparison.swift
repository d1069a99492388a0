import Evaluation
import Foundation
import Models
import Reporting
import Tensors
import TokenStreams
import Training

/// Models side by side: what they lose, what they answer, what they remember and how fast they write.
package struct ModelComparison: Sendable {
  /// One model, measured.
  package struct Row: Sendable {
    package let name: String
    /// Mean cross-entropy on held-out text, in nats, and KL from the first model.
    package let loss: Double
    package let kl: Double?
    /// Right answers of all that were asked for, by task.
    package let answers: [(right: Int, asked: Int)]
    /// What it wrote behind every sample's question.
    package let samples: [String]
    package let cacheBytes: [Int]
    package let decoding: [Double]
    package let curve: RunCurve?
  }

  /// What is measured.
  package struct Plan {
    package var text: EvaluationText
    /// Tasks whose answers are counted.
    package var tasks: [Objective] = []
    /// Questions whose answers are shown.
    package var samples: QuestionSet?
    /// Tokens that are decoded for a speed.
    package var decodedTokens = 64

    package init(text: EvaluationText) { self.text = text }
  }

  package static let contexts = [1024, 16_384, 65_536]

  package let tasks: [String]
  package let questions: [Question]
  private let match: AnswerMatch
  package private(set) var rows: [Row] = []

  package init(_ plan: Plan) {
    tasks = plan.tasks.map { shortName($0.name).replacingOccurrences(of: "accuracy=", with: "") }
    questions = plan.samples?.questions ?? []
    match = plan.samples?.match ?? .contains
  }

  /// Measures `model` and adds it.
  ///
  /// - Parameters:
  ///   - path: where it came from, for the log of its run
  ///   - teacher: the first model, where this is another
  package mutating func add(
    _ name: String, _ model: HybridLM, at path: String, teacher: HybridLM?, _ plan: Plan, backend: any Backend
  ) throws {
    let result = try Evaluation(model: model, teacher: teacher, text: plan.text, backend: backend)
    rows.append(
      Row(
        name: name, loss: result.loss, kl: result.kl,
        answers: try plan.tasks.map { try $0.answers(model, backend: backend) ?? (0, 0) },
        samples: try plan.samples?.texts(model, backend: backend) ?? [],
        cacheBytes: Self.contexts.map(model.cacheBytes),
        decoding: Self.contexts.map { model.decodingRate(after: $0, steps: plan.decodedTokens, backend: backend) },
        curve: RunCurve(ofModelAt: path)))
  }

  // MARK: - For people

  private static func kilo(_ context: Int) -> String { "\(context / 1024)K" }

  /// Losses and answers, the head first.
  package var qualityRows: [[String]] {
    [["model", "loss", "KL", "perplexity"] + tasks.map { "right: \($0)" }]
      + rows.map { row in
        [
          row.name, String(format: "%.4f", row.loss), row.kl.map { String(format: "%.4f", $0) } ?? "–",
          String(format: "%.3f", exp(row.loss)),
        ]
          + row.answers.map {
            String(format: "%.1f %% (%d of %d)", 100 * Double($0.right) / Double(max(1, $0.asked)), $0.right, $0.asked)
          }
      }
  }

  /// Caches and speeds.
  package var speedRows: [[String]] {
    [["model"] + Self.contexts.map { "cache \(Self.kilo($0))" } + Self.contexts.map { "tok/s \(Self.kilo($0))" }]
      + rows.map { row in
        [row.name] + row.cacheBytes.map { Format.bytes(Double($0)) } + row.decoding.map { String(format: "%.0f", $0) }
      }
  }

  /// The end of every sample's question, its answer, and what each model wrote.
  package var sampleRows: [[String]] {
    guard !questions.isEmpty else { return [] }
    return [["question", "right"] + rows.map(\.name)]
      + questions.indices.map { index in
        [Self.short(questions[index].prompt), Self.firstLine(questions[index].answers[0])]
          + rows.map { Self.firstLine($0.samples[index]) }
      }
  }

  private func isRight(_ row: Int, _ question: Int) -> Bool {
    match.accepts(rows[row].samples[question], answers: questions[question].answers)
  }

  private static func firstLine(_ text: String) -> String {
    String((text.split(whereSeparator: \.isNewline).first ?? "").trimmingCharacters(in: .whitespaces).prefix(40))
  }

  private static func short(_ prompt: String) -> String {
    let line = prompt.split(whereSeparator: \.isNewline).last.map(String.init) ?? ""
    return line.count > 40 ? "…" + line.suffix(39) : line
  }

  /// What a terminal shows.
  package var text: String {
    var parts = [Format.table(qualityRows)]
    let curves = rows.compactMap { row in row.curve.map { (row.name, $0) } }
    if !curves.isEmpty {
      let lines = curves.map { name, curve in
        [name, curve.sparkline, String(format: "%.3f to %.3f", curve.points.first!.loss, curve.points.last!.loss)]
      }
      parts.append("validation loss over the run\n" + Format.table(lines))
    }
    if !sampleRows.isEmpty { parts.append(Format.table(sampleRows)) }
    parts.append(Format.table(speedRows))
    return parts.joined(separator: "\n\n")
  }

  /// The same as a page.
  ///
  /// - Parameter notes: sentences to begin with
  package func page(title: String, notes: [String]) -> String {
    var body = notes.isEmpty ? "" : Page.section("In short", notes.map(Page.escaped).joined(separator: "<br>"), "")
    body += Page.section(
      "What they lose and what they answer",
      "Loss and KL from \(Page.escaped(rows.first?.name ?? "")) in nats a token of held-out text; right answers of those asked for.",
      Page.table(qualityRows))
    let curves = rows.compactMap { row in row.curve.map { (row.name, $0) } }
    if !curves.isEmpty {
      let points = curves.flatMap(\.1.points)
      // Untrained models lose so much that nothing else could be told apart: a curve may enter from above the frame.
      let trained = curves.flatMap { $0.1.points.count > 2 ? $0.1.points.dropFirst() : $0.1.points[...] }
      let chart = Chart(
        xs: 0...max(1, (points.map(\.tokens).max() ?? 1) * 1.02), ys: Chart.padded(trained.map(\.loss)))
      let lines = curves.map { name, curve in
        (
          legend: "\(name): \(String(format: "%.3f", curve.points.last!.loss))",
          points: curve.points.map { (x: $0.tokens, y: $0.loss) }
        )
      }
      body += Page.section(
        "How they got there", "Mean cross-entropy on held-out text over the tokens of each run.",
        Page.figure(
          chart.svg(title: "Validation loss", xTitle: "tokens", yTitle: "nats a token", chart.lines(lines))))
    }
    if !questions.isEmpty {
      let first = Page.escaped(questions[0].prompt)
      body += Page.section(
        "Side by side", "The first question in full:<br><code style=\"white-space: pre-wrap\">\(first)</code>",
        Page.table(sampleRows) { row, column in
          guard row > 0 else { return nil }
          return column < 2 ? "text" : isRight(column - 2, row - 1) ? "right text" : "wrong text"
        })
    }
    body += Page.section(
      "Memory and speed",
      "Bytes that the caches of one sequence hold (float32) and tokens a second of one sequence, behind so many tokens.",
      Page.table(speedRows))
    return Page.html(title: title, heading: title, body: body)
  }
}

import Foundation
import Reporting

/// A page that shows a search, without anything from a network: pictures are SVG in the page.
package func report(_ result: SearchResult) -> String {
  var body = ""
  func section(_ title: String, _ text: String, _ content: String) { body += Page.section(title, text, content) }
  if let placement = result.placement {
    let summary =
      "Layers \(placement.path.full) of \(placement.layers) keep full attention"
      + (placement.path.sliding.isEmpty ? "" : ", \(placement.path.sliding) a sliding window")
      + "; the others become \(placement.mixer). Scores are better when smaller."
    section("Importance", summary, Page.figure(heatMap(placement)) + Page.table(placement.importanceRows))
    section(
      "Strategies", "Best joint score of a whole placement against what was evaluated for it.",
      Page.figure(curves(placement)) + Page.table(placement.strategyRows))
    if placement.objectives.count > 1 {
      section(
        "Pareto front", "Placements that no other one beats on every objective.", Page.table(placement.paretoRows))
    }
  }
  if let blocks = result.blocks {
    section(
      "Blocks", "Every candidate at the same placement, trained on the same tokens; the paper's figures beside.",
      Page.table(blocks.rows))
  }
  if let dimensions = result.dimensions {
    section(
      "Dimensions",
      "Shapes of one state size (\(dimensions.stateElements) elements a layer). Decoding must reach "
        + "\(Int(dimensions.tolerance * 100)) % of the fastest.",
      Page.figure(scatter(dimensions)) + Page.table(dimensions.rows))
  }
  return Page.html(title: "jettrain search", heading: "PostNAS: what the search found", body: body)
}

/// Best joint score so far against evaluations, a line for each strategy.
private func curves(_ placement: PlacementResult) -> String {
  let lines = placement.strategies.map { result in
    (
      result.strategy.rawValue,
      result.curve.enumerated().compactMap { index, score in score.map { (Double(index + 1), $0) } }
    )
  }
  let points = lines.flatMap(\.1)
  let chart = Chart(
    xs: 0...max(2, (points.map(\.0).max() ?? 2) * 1.02), ys: Chart.padded(points.map(\.1)))
  let content = chart.lines(
    lines.map { (legend: "\($0): \($1.last.map { number($0.1) } ?? "–")", points: $1.map { (x: $0.0, y: $0.1) }) })
  return chart.svg(
    title: "Search curves", xTitle: "evaluations", yTitle: "best joint score", content)
}

/// Decoding speed against joint score, a point for each shape.
private func scatter(_ dimensions: DimensionsResult) -> String {
  let shapes = dimensions.shapes
  let chart = Chart(
    xs: Chart.padded(shapes.map(\.result.decodeTokensPerSecond)), ys: Chart.padded(shapes.map(\.joint), by: 0.12))
  var content = ""
  for (index, shape) in shapes.enumerated() {
    let (x, y) = (chart.x(shape.result.decodeTokensPerSecond), chart.y(shape.joint))
    let color = index == dimensions.chosen ? "#d9480f" : shape.isAllowed ? "#1c7ed6" : "#adb5bd"
    content += """
      <circle cx="\(Chart.fixed(x))" cy="\(Chart.fixed(y))" r="\(index == dimensions.chosen ? 7 : 5)" fill="\(color)"/>
      <text x="\(Chart.fixed(x + 10))" y="\(Chart.fixed(y + 4))">\(shape.keySize)/\(shape.valueSize)/\(shape.heads)</text>

      """
  }
  return chart.svg(
    title: "Shapes of the linear state: d_K/d_V/heads", xTitle: "decode tokens/s", yTitle: "joint score", content)
}

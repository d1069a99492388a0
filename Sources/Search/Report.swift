import Foundation

/// A page that shows a search, without anything from a network: pictures are SVG in the page.
package func report(_ result: SearchResult) -> String {
  var body = ""
  func section(_ title: String, _ text: String, _ content: String) {
    body += "<section><h2>\(title)</h2><p>\(text)</p>\(content)</section>\n"
  }
  if let placement = result.placement {
    let summary =
      "Layers \(placement.path.full) of \(placement.layers) keep full attention"
      + (placement.path.sliding.isEmpty ? "" : ", \(placement.path.sliding) a sliding window")
      + "; the others become \(placement.mixer). Scores are better when smaller."
    section("Importance", summary, figure(heatMap(placement)) + table(placement.importanceRows))
    section(
      "Strategies", "Best joint score of a whole placement against what was evaluated for it.",
      figure(curves(placement)) + table(placement.strategyRows))
    if placement.objectives.count > 1 {
      section(
        "Pareto front", "Placements that no other one beats on every objective.", table(placement.paretoRows))
    }
  }
  if let blocks = result.blocks {
    section(
      "Blocks", "Every candidate at the same placement, trained on the same tokens; the paper's figures beside.",
      table(blocks.rows))
  }
  if let dimensions = result.dimensions {
    section(
      "Dimensions",
      "Shapes of one state size (\(dimensions.stateElements) elements a layer). Decoding must reach "
        + "\(Int(dimensions.tolerance * 100)) % of the fastest.",
      figure(scatter(dimensions)) + table(dimensions.rows))
  }
  return """
    <!DOCTYPE html>
    <html lang="en">
    <head>
    <meta charset="utf-8">
    <meta name="viewport" content="width=device-width, initial-scale=1">
    <link rel="icon" href="data:,">
    <title>jettrain search</title>
    <style>
    body { font: 15px/1.5 system-ui, sans-serif; color: #212529; background: #f8f9fa; margin: 0; }
    main { max-width: 1240px; margin: 0 auto; padding: 24px 16px 64px; }
    h1 { font-size: 26px; margin: 8px 0 20px; } h2 { font-size: 18px; margin: 0 0 4px; }
    section { background: #fff; border: 1px solid #dee2e6; border-radius: 10px; padding: 18px 22px; margin: 0 0 18px; }
    p { color: #495057; margin: 0 0 12px; } figure { margin: 0 0 14px; overflow-x: auto; }
    .scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }
    th, td { padding: 4px 12px; text-align: right; border-bottom: 1px solid #e9ecef; white-space: nowrap; }
    th { color: #495057; font-weight: 600; } th:first-child, td:first-child { text-align: left; padding-left: 0; }
    </style>
    </head>
    <body><main>
    <h1>PostNAS: what the search found</h1>
    \(body)</main></body>
    </html>

    """
}

private func figure(_ svg: String) -> String { "<figure>\(svg)</figure>" }

private func table(_ rows: [[String]]) -> String {
  func cells(_ row: [String], _ tag: String) -> String {
    "<tr>" + row.map { "<\(tag)>\(escaped($0))</\(tag)>" }.joined() + "</tr>"
  }
  guard let head = rows.first else { return "" }
  return "<div class=\"scroll\"><table><thead>\(cells(head, "th"))</thead><tbody>"
    + rows.dropFirst().map { cells($0, "td") }.joined(separator: "\n") + "</tbody></table></div>"
}

/// A chart's frame: scales from values to pixels, axes with about five round marks each.
private struct Chart {
  let width = 900.0
  let height = 340.0
  let xs: ClosedRange<Double>
  let ys: ClosedRange<Double>
  let left = 70.0
  let right = 190.0
  let top = 30.0
  let bottom = 46.0

  func x(_ value: Double) -> Double {
    left + (value - xs.lowerBound) / max(xs.upperBound - xs.lowerBound, 1e-12) * (width - left - right)
  }
  func y(_ value: Double) -> Double {
    height - bottom - (value - ys.lowerBound) / max(ys.upperBound - ys.lowerBound, 1e-12) * (height - top - bottom)
  }

  func svg(title: String, xTitle: String, yTitle: String, _ content: String) -> String {
    var marks = ""
    for value in Self.marks(xs) {
      marks += """
        <line x1="\(fixed(x(value)))" y1="\(top)" x2="\(fixed(x(value)))" y2="\(height - bottom)" stroke="#f1f3f5"/>
        <text x="\(fixed(x(value)))" y="\(height - bottom + 16)" text-anchor="middle" fill="#666">\(short(value))</text>

        """
    }
    for value in Self.marks(ys) {
      marks += """
        <line x1="\(left)" y1="\(fixed(y(value)))" x2="\(width - right)" y2="\(fixed(y(value)))" stroke="#f1f3f5"/>
        <text x="\(left - 8)" y="\(fixed(y(value) + 4))" text-anchor="end" fill="#666">\(short(value))</text>

        """
    }
    return """
      <svg xmlns="http://www.w3.org/2000/svg" width="\(Int(width))" height="\(Int(height))" \
      viewBox="0 0 \(Int(width)) \(Int(height))" font-family="system-ui, sans-serif" font-size="12">
      <rect width="100%" height="100%" fill="#fff"/>
      <text x="12" y="18" font-size="14" font-weight="600">\(escaped(title))</text>
      \(marks)<text x="\((left + width - right) / 2)" y="\(height - 8)" text-anchor="middle" fill="#495057">\(xTitle)</text>
      <text transform="translate(14 \((top + height - bottom) / 2)) rotate(-90)" text-anchor="middle" fill="#495057">\
      \(yTitle)</text>
      \(content)</svg>

      """
  }

  private static func marks(_ range: ClosedRange<Double>) -> [Double] {
    let span = range.upperBound - range.lowerBound
    guard span > 0 else { return [range.lowerBound] }
    let raw = span / 5
    let power = pow(10, floor(log10(raw)))
    let step = [1.0, 2, 5, 10].map { $0 * power }.first { $0 >= raw } ?? raw
    return Array(stride(from: (range.lowerBound / step).rounded(.up) * step, through: range.upperBound, by: step))
  }
}

private func fixed(_ value: Double) -> String { String(format: "%.1f", value) }
private func short(_ value: Double) -> String { String(format: "%.4g", value) }

private let colors = [
  "#1c7ed6", "#d9480f", "#2b8a3e", "#ae3ec9", "#f08c00", "#0c8599", "#c2255c", "#5c940d", "#495057", "#845ef7",
]

private func padded(_ values: [Double], by share: Double = 0.06) -> ClosedRange<Double> {
  let (low, high) = (values.min() ?? 0, values.max() ?? 1)
  let margin = max((high - low) * share, abs(high) * 1e-3 + 1e-9)
  return (low - margin)...(high + margin)
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
    xs: 0...max(2, (points.map(\.0).max() ?? 2) * 1.02), ys: padded(points.map(\.1)))
  var content = ""
  for (index, (name, points)) in lines.enumerated() {
    let color = colors[index % colors.count]
    let path = points.map { "\(fixed(chart.x($0.0))),\(fixed(chart.y($0.1)))" }.joined(separator: " ")
    content += """
      <polyline points="\(path)" fill="none" stroke="\(color)" stroke-width="2" stroke-linejoin="round"/>

      """
    if let last = points.last {
      content += """
        <circle cx="\(fixed(chart.x(last.0)))" cy="\(fixed(chart.y(last.1)))" r="4" fill="\(color)"/>

        """
    }
    let y = 40 + 20 * index
    content += """
      <rect x="730" y="\(y - 9)" width="12" height="12" rx="3" fill="\(color)"/>
      <text x="748" y="\(y + 1)">\(name): \(points.last.map { number($0.1) } ?? "–")</text>

      """
  }
  return chart.svg(
    title: "Search curves", xTitle: "evaluations", yTitle: "best joint score", content)
}

/// Decoding speed against joint score, a point for each shape.
private func scatter(_ dimensions: DimensionsResult) -> String {
  let shapes = dimensions.shapes
  let chart = Chart(
    xs: padded(shapes.map(\.result.decodeTokensPerSecond)), ys: padded(shapes.map(\.joint), by: 0.12))
  var content = ""
  for (index, shape) in shapes.enumerated() {
    let (x, y) = (chart.x(shape.result.decodeTokensPerSecond), chart.y(shape.joint))
    let color = index == dimensions.chosen ? "#d9480f" : shape.isAllowed ? "#1c7ed6" : "#adb5bd"
    content += """
      <circle cx="\(fixed(x))" cy="\(fixed(y))" r="\(index == dimensions.chosen ? 7 : 5)" fill="\(color)"/>
      <text x="\(fixed(x + 10))" y="\(fixed(y + 4))">\(shape.keySize)/\(shape.valueSize)/\(shape.heads)</text>

      """
  }
  return chart.svg(
    title: "Shapes of the linear state: d_K/d_V/heads", xTitle: "decode tokens/s", yTitle: "joint score", content)
}

import Foundation
import Models
import Reporting

/// The importance of every layer for every objective as a picture: dark where a layer alone brings most of what one layer
/// can bring. Self-contained SVG.
package func heatMap(_ result: PlacementResult) -> String {
  let (cell, top) = (34, 46)
  let left = 24 + 7 * max(12, result.objectives.map { shortName($0).count }.max() ?? 0)
  let importance = result.importance
  let (width, height) = (max(720, left + importance.count * cell + 20), top + result.objectives.count * cell + 44)
  var svg = """
    <svg xmlns="http://www.w3.org/2000/svg" width="\(width)" height="\(height)" viewBox="0 0 \(width) \(height)" \
    font-family="system-ui, sans-serif" font-size="12">
    <rect width="100%" height="100%" fill="#fff"/>
    <text x="12" y="22" font-size="14" font-weight="600">What each layer brings when it alone keeps full attention</text>

    """
  for (o, name) in result.objectives.enumerated() {
    let y = top + o * cell
    let label = Page.escaped(shortName(name))
    svg += "<text x=\"\(left - 10)\" y=\"\(y + 21)\" text-anchor=\"end\">\(label)</text>\n"
    for (layer, row) in importance.enumerated() {
      let value = row[o]
      // White to a deep blue, even in lightness.
      let (r, g, b) = (Int(255 - 225 * value), Int(255 - 175 * value), Int(255 - 105 * value))
      let ink = value > 0.55 ? "#fff" : "#333"
      let frame = ["#dee2e6", "#d9480f", "#0c8599"][result.path.role(of: layer).rank]
      svg += """
        <rect x="\(left + layer * cell)" y="\(y)" width="\(cell - 2)" height="\(cell - 2)" rx="4" fill="rgb(\(r),\(g),\(b))" \
        stroke="\(frame)" stroke-width="\(result.path.role(of: layer) == .linear ? 1 : 2.5)"/>
        <text x="\(left + layer * cell + cell / 2 - 1)" y="\(y + 20)" text-anchor="middle" font-size="10" fill="\(ink)">\
        \(Int((value * 100).rounded()))</text>

        """
    }
  }
  let base = top + result.objectives.count * cell
  for layer in importance.indices {
    svg += """
      <text x="\(left + layer * cell + cell / 2 - 1)" y="\(base + 14)" text-anchor="middle" fill="#666">\(layer)</text>

      """
  }
  svg += """
    <text x="12" y="\(base + 36)" fill="#666">layer; % of what the best single layer brings; framed: \
    the placement found (red full, green sliding)</text>
    </svg>

    """
  return svg
}

extension LayerRole {
  fileprivate var rank: Int {
    switch self {
    case .linear: 0
    case .full: 1
    case .sliding: 2
    }
  }
}

/// An objective's name without the folder of its file.
func shortName(_ objective: String) -> String {
  let parts = objective.split(separator: "=", maxSplits: 1)
  guard parts.count == 2, let file = parts[1].split(separator: "/").last else { return objective }
  return parts[0] + "=" + file
}

import Foundation

/// A chart's frame: scales from values to pixels, axes with about five round marks each. Self-contained SVG.
package struct Chart {
  private let width = 900.0
  private let height = 340.0
  private let xs: ClosedRange<Double>
  private let ys: ClosedRange<Double>
  private let left = 70.0
  private let right = 190.0
  private let top = 30.0
  private let bottom = 46.0

  package init(xs: ClosedRange<Double>, ys: ClosedRange<Double>) { (self.xs, self.ys) = (xs, ys) }

  package func x(_ value: Double) -> Double {
    left + (value - xs.lowerBound) / max(xs.upperBound - xs.lowerBound, 1e-12) * (width - left - right)
  }
  package func y(_ value: Double) -> Double {
    height - bottom - (value - ys.lowerBound) / max(ys.upperBound - ys.lowerBound, 1e-12) * (height - top - bottom)
  }

  /// The picture, with `content` in its frame.
  package func svg(title: String, xTitle: String, yTitle: String, _ content: String) -> String {
    var marks = ""
    for value in Self.marks(xs) {
      marks += """
        <line x1="\(Self.fixed(x(value)))" y1="\(top)" x2="\(Self.fixed(x(value)))" y2="\(height - bottom)" stroke="#f1f3f5"/>
        <text x="\(Self.fixed(x(value)))" y="\(height - bottom + 16)" text-anchor="middle" fill="#666">\(Self.short(value))</text>

        """
    }
    for value in Self.marks(ys) {
      marks += """
        <line x1="\(left)" y1="\(Self.fixed(y(value)))" x2="\(width - right)" y2="\(Self.fixed(y(value)))" stroke="#f1f3f5"/>
        <text x="\(left - 8)" y="\(Self.fixed(y(value) + 4))" text-anchor="end" fill="#666">\(Self.short(value))</text>

        """
    }
    return """
      <svg xmlns="http://www.w3.org/2000/svg" width="\(Int(width))" height="\(Int(height))" \
      viewBox="0 0 \(Int(width)) \(Int(height))" font-family="system-ui, sans-serif" font-size="12">
      <rect width="100%" height="100%" fill="#fff"/>
      <text x="12" y="18" font-size="14" font-weight="600">\(Page.escaped(title))</text>
      \(marks)<text x="\((left + width - right) / 2)" y="\(height - 8)" text-anchor="middle" fill="#495057">\(xTitle)</text>
      <text transform="translate(14 \((top + height - bottom) / 2)) rotate(-90)" text-anchor="middle" fill="#495057">\
      \(yTitle)</text>
      \(content)</svg>

      """
  }

  /// A line for each of `lines`, its last point marked, and a legend. What lies outside the frame is cut off at it.
  package func lines(_ lines: [(legend: String, points: [(x: Double, y: Double)])]) -> String {
    var content = """
      <clipPath id="frame"><rect x="\(left)" y="\(top)" width="\(width - left - right)" height="\(height - top - bottom)"/></clipPath>

      """
    for (index, (legend, points)) in lines.enumerated() {
      let color = Self.color(index)
      let path = points.map { "\(Self.fixed(x($0.x))),\(Self.fixed(y($0.y)))" }.joined(separator: " ")
      content += """
        <polyline clip-path="url(#frame)" points="\(path)" fill="none" stroke="\(color)" stroke-width="2" stroke-linejoin="round"/>

        """
      if let last = points.last {
        content += """
          <circle cx="\(Self.fixed(x(last.x)))" cy="\(Self.fixed(y(last.y)))" r="4" fill="\(color)"/>

          """
      }
      let place = 40 + 20 * index
      content += """
        <rect x="730" y="\(place - 9)" width="12" height="12" rx="3" fill="\(color)"/>
        <text x="748" y="\(place + 1)">\(Page.escaped(legend))</text>

        """
    }
    return content
  }

  private static func marks(_ range: ClosedRange<Double>) -> [Double] {
    let span = range.upperBound - range.lowerBound
    guard span > 0 else { return [range.lowerBound] }
    let raw = span / 5
    let power = pow(10, floor(log10(raw)))
    let step = [1.0, 2, 5, 10].map { $0 * power }.first { $0 >= raw } ?? raw
    return Array(stride(from: (range.lowerBound / step).rounded(.up) * step, through: range.upperBound, by: step))
  }

  package static func fixed(_ value: Double) -> String { String(format: "%.1f", value) }
  private static func short(_ value: Double) -> String { Format.count(value) }

  /// The color of line `index`.
  package static func color(_ index: Int) -> String {
    let colors = [
      "#1c7ed6", "#d9480f", "#2b8a3e", "#ae3ec9", "#f08c00", "#0c8599", "#c2255c", "#5c940d", "#495057", "#845ef7",
    ]
    return colors[index % colors.count]
  }

  /// A range around `values` with a margin.
  package static func padded(_ values: [Double], by share: Double = 0.06) -> ClosedRange<Double> {
    let (low, high) = (values.min() ?? 0, values.max() ?? 1)
    let margin = max((high - low) * share, abs(high) * 1e-3 + 1e-9)
    return (low - margin)...(high + margin)
  }
}

/// A page for a browser that needs nothing from a network: its style and pictures are in it.
package enum Page {
  package static func html(title: String, heading: String, body: String) -> String {
    """
    <!DOCTYPE html>
    <html lang="en">
    <head>
    <meta charset="utf-8">
    <meta name="viewport" content="width=device-width, initial-scale=1">
    <link rel="icon" href="data:,">
    <title>\(escaped(title))</title>
    <style>
    body { font: 15px/1.5 system-ui, sans-serif; color: #212529; background: #f8f9fa; margin: 0; }
    main { max-width: 1240px; margin: 0 auto; padding: 24px 16px 64px; }
    h1 { font-size: 26px; margin: 8px 0 20px; } h2 { font-size: 18px; margin: 0 0 4px; }
    section { background: #fff; border: 1px solid #dee2e6; border-radius: 10px; padding: 18px 22px; margin: 0 0 18px; }
    p { color: #495057; margin: 0 0 12px; } figure { margin: 0 0 14px; overflow-x: auto; }
    .scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }
    th, td { padding: 4px 12px; text-align: right; border-bottom: 1px solid #e9ecef; white-space: nowrap; }
    th { color: #495057; font-weight: 600; } th:first-child, td:first-child { text-align: left; padding-left: 0; }
    td.right { color: #2b8a3e; } td.wrong { color: #c92a2a; } td.text { white-space: pre-wrap; font-family: monospace; }
    </style>
    </head>
    <body><main>
    <h1>\(escaped(heading))</h1>
    \(body)</main></body>
    </html>

    """
  }

  /// A part of the page; `content` is HTML.
  package static func section(_ title: String, _ text: String, _ content: String) -> String {
    "<section><h2>\(escaped(title))</h2><p>\(text)</p>\(content)</section>\n"
  }

  package static func figure(_ svg: String) -> String { "<figure>\(svg)</figure>" }

  /// Rows, of which the first is the head.
  ///
  /// - Parameter style: the class of the cell of a row and column
  package static func table(_ rows: [[String]], style: (Int, Int) -> String? = { _, _ in nil }) -> String {
    func cells(_ index: Int, _ tag: String) -> String {
      "<tr>"
        + rows[index].enumerated().map { column, cell in
          "<\(tag)\(style(index, column).map { " class=\"\($0)\"" } ?? "")>\(escaped(cell))</\(tag)>"
        }.joined() + "</tr>"
    }
    guard !rows.isEmpty else { return "" }
    return "<div class=\"scroll\"><table><thead>\(cells(0, "th"))</thead><tbody>"
      + rows.indices.dropFirst().map { cells($0, "td") }.joined(separator: "\n") + "</tbody></table></div>"
  }

  /// Text for HTML and SVG.
  package static func escaped(_ text: String) -> String {
    var out = ""
    for character in text {
      switch character {
      case "&": out += "&amp;"
      case "<": out += "&lt;"
      case ">": out += "&gt;"
      case "\"": out += "&quot;"
      default: out.append(character)
      }
    }
    return out
  }
}

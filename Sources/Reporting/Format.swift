import Foundation

/// Numbers as people read them.
package enum Format {
  /// 1234567 as 1.23M; powers of a thousand.
  package static func count(_ value: Double) -> String {
    for (limit, suffix) in [(1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")] where abs(value) >= limit {
      return String(format: "%.3g", value / limit) + suffix
    }
    return String(format: "%.4g", value)
  }

  /// A count with its noun: 1 shard, 2 shards.
  ///
  /// - Parameter plural: of nouns that take more than an s
  package static func counted(_ count: Int, _ noun: String, plural: String? = nil) -> String {
    "\(count) \(count == 1 ? noun : plural ?? noun + "s")"
  }

  /// A measured value in at most 8 characters: 1.7615, 0.01235, 3.21e-05.
  package static func figure(_ value: Double) -> String {
    let size = abs(value)
    if size >= 1e5 || (size < 1e-3 && size > 0) { return String(format: "%.2e", value) }
    return String(format: size < 1 ? "%.4g" : "%.5g", value)
  }

  /// Bytes in powers of 1024.
  package static func bytes(_ value: Double) -> String {
    for (limit, suffix) in [(0x1p40, "TiB"), (0x1p30, "GiB"), (0x1p20, "MiB"), (0x1p10, "KiB")]
    where value >= limit {
      return String(format: "%.1f ", value / limit) + suffix
    }
    return String(format: "%.0f B", value)
  }

  /// Seconds as 12.3 years, 1d02h, 3h07m, 4m05s or 6.5s.
  package static func duration(_ seconds: Double) -> String {
    guard seconds.isFinite, seconds < 1e18 else { return "?" }
    let year = 365.25 * 86_400
    if seconds >= year {
      let years = seconds / year
      return (years < 100 ? String(format: "%.1f", years) : years < 1e5 ? "\(Int(years))" : count(years)) + " years"
    }
    let s = Int(seconds)
    if s >= 86_400 { return String(format: "%dd%02dh", s / 86_400, s % 86_400 / 3_600) }
    if s >= 3_600 { return String(format: "%dh%02dm", s / 3_600, s % 3_600 / 60) }
    if s >= 60 { return String(format: "%dm%02ds", s / 60, s % 60) }
    return String(format: "%.1fs", seconds)
  }

  /// Rows with columns of one width; the first column to the left, the others to the right.
  package static func table(_ rows: [[String]]) -> String {
    let columns = rows.map(\.count).max() ?? 0
    let widths = (0..<columns).map { c in rows.map { c < $0.count ? $0[c].count : 0 }.max() ?? 0 }
    return rows.map { row in
      row.enumerated().map { c, cell in
        let padding = String(repeating: " ", count: widths[c] - cell.count)
        return c == 0 ? cell + padding : padding + cell
      }.joined(separator: "  ")
    }.joined(separator: "\n")
  }
}

/// Lines for people, on standard error, so that standard output stays free for results. A line that replaces the
/// one before is rewritten in place on a terminal; elsewhere only every so often, as a line of its own.
package final class ProgressLine {
  private let isTerminal = isatty(2) == 1
  private var lastPrinted = Date.distantPast
  private var isOpen = false

  package init() {}

  /// Shows `text` in place of the last such text. `isFinal` ends it.
  ///
  /// - Parameter isDue: to be shown elsewhere too, as one that ends it is: whoever asked for a line every so often gets it
  package func update(_ text: String, isFinal: Bool = false, isDue: Bool = false) {
    if isTerminal {
      write("\r\u{1B}[K" + text + (isFinal ? "\n" : ""))
      isOpen = !isFinal
    } else if isFinal || isDue || Date().timeIntervalSince(lastPrinted) > 5 {
      write(text + "\n")
      lastPrinted = Date()
    }
  }

  /// A line of its own.
  package func print(_ text: String) {
    write((isOpen ? "\r\u{1B}[K" : "") + text + "\n")
    isOpen = false
  }

  private func write(_ text: String) { FileHandle.standardError.write(Data(text.utf8)) }
}

import ArgumentParser
import Training

/// When a run is to stop by itself.
struct StopOptions: ParsableArguments {
  @Option(
    help: ArgumentHelp(
      "Stop at a checkpoint and exit with 75 after this time, such as 90s, 30m, 23h or 1d12h.", valueName: "time"))
  var maxTime: String?

  func request(runFolder: String) throws -> StopRequest {
    StopRequest(runFolder: runFolder, maxSeconds: try maxTime.map(Self.seconds))
  }

  private static func seconds(_ text: String) throws -> Double {
    var (total, digits) = (0.0, "")
    for character in text {
      if let unit = ["d": 86_400.0, "h": 3_600, "m": 60, "s": 1][String(character)], let count = Double(digits) {
        total += count * unit
        digits = ""
      } else {
        digits.append(character)
      }
    }
    guard digits.isEmpty, total > 0 else {
      throw JobError(.usage, "--max-time \(text): expected a time such as 90s, 30m, 23h or 1d12h")
    }
    return total
  }
}

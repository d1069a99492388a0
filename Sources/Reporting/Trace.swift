import Foundation
import Tensors

/// Spans as Chrome's trace viewer and Perfetto (ui.perfetto.dev) read them: the format of trace events, in microseconds, with a
/// row for each track.
package enum Trace {
  /// - Parameter process: what ran, in a few words
  package static func file(_ spans: [Span], process: String) throws -> Data {
    let tracks: [(track: Span.Track, name: String)] = [(.step, "steps"), (.host, "host"), (.device, "device")]
    var events: [[String: Any]] = [
      ["ph": "M", "pid": 1, "tid": 0, "name": "process_name", "args": ["name": process]]
    ]
    for (place, track) in tracks.enumerated() {
      events.append([
        "ph": "M", "pid": 1, "tid": place + 1, "name": "thread_name", "args": ["name": track.name],
      ])
      for span in spans where span.track == track.track {
        events.append([
          "ph": "X", "pid": 1, "tid": place + 1, "name": span.name, "ts": span.start * 1e6, "dur": span.seconds * 1e6,
        ])
      }
    }
    return try JSONSerialization.data(
      withJSONObject: ["traceEvents": events, "displayTimeUnit": "ms"], options: [.sortedKeys])
  }
}

import CUDA
import Tensors

/// Kernels by name, as the host asked for them and as the card ran them, which is read once they are over.
package struct Profile {
  private var host: SpanLog
  private var marks: [(name: String, begin: CUDA.Event, end: CUDA.Event)] = []
  /// The beginning on the card, at which it had nothing to do.
  private let zero: CUDA.Event

  package init(_ device: Device) throws {
    try device.synchronize()
    zero = try CUDA.Event(device)
    host = SpanLog()
    try zero.record()
  }

  var now: Double { host.now }

  mutating func add(_ name: String, from start: Double, _ begin: CUDA.Event, _ end: CUDA.Event) {
    host.add(name, from: start)
    marks.append((name, begin, end))
  }

  /// Of the host and of the card, seconds since the beginning.
  package func spans() throws -> [Span] {
    host.spans
      + (try marks.map { name, begin, end in
        Span(name, .device, start: try zero.seconds(to: begin), seconds: try begin.seconds(to: end))
      })
  }
}

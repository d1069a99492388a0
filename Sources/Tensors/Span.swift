/// What took place from one moment to another, as profiles and traces show it.
package struct Span: Sendable {
  /// Who was at work.
  package enum Track: Sendable {
    /// The program: kernels of the CPU, or asking a device for its.
    case host
    case device
    /// What several kernels make: a step.
    case step
  }

  package let name: String
  package let track: Track
  /// Seconds from the beginning of the profile.
  package let start: Double
  package let seconds: Double

  package init(_ name: String, _ track: Track, start: Double, seconds: Double) {
    (self.name, self.track, self.start, self.seconds) = (name, track, start, seconds)
  }
}

/// Spans of the host since it was made.
package struct SpanLog {
  package let began = ContinuousClock.now
  package private(set) var spans: [Span] = []

  package init() {}

  /// Seconds since the log began.
  package var now: Double { seconds(to: .now) }

  package func seconds(to moment: ContinuousClock.Instant) -> Double {
    let elapsed = (moment - began).components
    return Double(elapsed.seconds) + Double(elapsed.attoseconds) * 1e-18
  }

  /// Adds what began at `start` and ends now.
  package mutating func add(_ name: String, _ track: Span.Track = .host, from start: Double) {
    spans.append(Span(name, track, start: start, seconds: now - start))
  }
}

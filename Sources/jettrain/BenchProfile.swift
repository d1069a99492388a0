import CPUBackend
import CUDABackend
import Tensors

/// Begins to record what a backend does.
func startProfile(of backend: any Backend) throws {
  (backend as? CPUBackend)?.profile = SpanLog()
  if let card = backend as? CUDABackend { card.profile = try Profile(card.device) }
}

/// Ends that and gives what was recorded.
func takeProfile(of backend: any Backend) throws -> [Span] {
  if let backend = backend as? CUDABackend {
    defer { backend.profile = nil }
    return try backend.profile?.spans() ?? []
  }
  return (backend as? CPUBackend)?.profile?.spans ?? []
}

/// Seconds and launches by op, of the device where there are such, the longest first.
func opTimes(_ spans: [Span]) -> [(name: String, seconds: Double, launches: Int)] {
  let track: Span.Track = spans.contains { $0.track == .device } ? .device : .host
  var times: [String: (seconds: Double, launches: Int)] = [:]
  for span in spans where span.track == track {
    let (seconds, launches) = times[span.name] ?? (0, 0)
    times[span.name] = (seconds + span.seconds, launches + 1)
  }
  return times.map { ($0.key, $0.value.seconds, $0.value.launches) }.sorted { $0.1 > $1.1 }
}

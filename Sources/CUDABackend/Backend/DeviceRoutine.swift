import CUDA
import Foundation
import Tensors

/// Work that runs once as it is, which compiles and chooses what it needs, is recorded the second time, and launched as one
/// from then on.
private final class RecordedRoutine: Routine {
  private let backend: CUDABackend
  private let body: () -> Void
  private var state = State.new

  private enum State {
    case new, ready
    case recorded(Graph, DeviceArena.Pool)
    /// The work cannot be recorded, and so is enqueued anew each time.
    case plain
  }

  init(_ backend: CUDABackend, _ body: @escaping () -> Void) { (self.backend, self.body) = (backend, body) }

  deinit {
    guard case .recorded(_, let pool) = state else { return }
    // What was launched may still use the memory, but comes first in the stream.
    backend.memory.dissolve(pool)
  }

  func run() {
    backend.must { try backend.device.makeCurrent() }
    switch state {
    case .new:
      state = .ready
      body()
    case .ready where backend.profile == nil: record()
    case .recorded(let graph, _) where backend.profile == nil: backend.must { try graph.launch() }
    // Events around single kernels are not part of what was recorded.
    case .ready, .plain, .recorded: body()
    }
  }

  private func record() {
    do {
      backend.isRecording = true
      defer { backend.isRecording = false }
      let (graph, pool) = try backend.memory.recording { try Graph(backend.device, recording: body) }
      state = .recorded(graph, pool)
      try graph.launch()
    } catch {
      FileHandle.standardError.write(Data("jettrain: generating without a graph: \(error)\n".utf8))
      state = .plain
      body()
    }
  }
}

extension CUDABackend {
  package func routine(_ body: @escaping () -> Void) -> any Routine { RecordedRoutine(self, body) }

  /// Rows that fill the card's products.
  package var promptTokens: Int { 8192 }

  /// Bytes that the driver has lent to this backend.
  package var heldBytes: Int { memory.heldBytes }
}

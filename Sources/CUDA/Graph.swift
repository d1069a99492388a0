import CCUDA

/// Work that was recorded from a stream and is launched as one, as often as is wanted: the same kernels with the same
/// arguments.
package final class Graph: @unchecked Sendable {
  private let device: Device
  private let executable: CUgraphExec

  /// Records what `body` enqueues on the device's stream; nothing of it runs. What waits for the card, or copies from
  /// memory that is pinned for the moment, cannot be recorded.
  ///
  /// - Throws: `CUDAError.fault` where the work cannot be recorded; the stream is as before then
  package init(_ device: Device, recording body: () throws -> Void) throws {
    let driver = device.driver
    // CU_STREAM_CAPTURE_MODE_RELAXED: memory may be asked for meanwhile, here and on other threads.
    try driver.check(driver.cuStreamBeginCapture(device.stream.handle, 2), "recording a stream of card \(device.index)")
    let outcome = Result { try body() }
    var graph: CUgraph?
    let status = driver.cuStreamEndCapture(device.stream.handle, &graph)
    defer { if let graph { _ = driver.cuGraphDestroy(graph) } }
    try outcome.get()
    try driver.check(status, "recording a stream of card \(device.index)")
    var executable: CUgraphExec?
    try driver.check(
      driver.cuGraphInstantiate(&executable, graph, 0), "preparing recorded work for card \(device.index)")
    (self.device, self.executable) = (device, executable!)
  }

  deinit { _ = device.driver.cuGraphExecDestroy(executable) }

  /// Enqueues the work once.
  package func launch() throws {
    try device.driver.check(
      device.driver.cuGraphLaunch(executable, device.stream.handle), "launching recorded work on card \(device.index)")
  }
}

import Foundation
import TestSupport
import Testing

/// A few cases of each kind of fault; `jettrain-faults` runs as many as one likes (docs/reliability.md).
@Suite(.serialized) struct FaultTests {
  private static let harness =
    URL(fileURLWithPath: #filePath).deletingLastPathComponent()
    .deletingLastPathComponent().deletingLastPathComponent().path + "/.build/debug/jettrain-faults"

  private func faults(_ arguments: String...) throws {
    let process = Process()
    process.executableURL = URL(fileURLWithPath: Self.harness)
    process.arguments = arguments
    let pipe = Pipe()
    process.standardOutput = pipe
    process.standardError = pipe
    try process.run()
    let output = String(decoding: pipe.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
    process.waitUntilExit()
    #expect(process.terminationStatus == 0 && output.contains(" 0 failures"), "\(output)")
    print(output)
  }

  @Test func faultsAtEveryPointAreOvercome() throws { try faults("points") }
  @Test func killsUnderTheSupervisorAreOvercome() throws { try faults("kills", "6") }
  @Test func signalsStopRunsAtACheckpoint() throws { try faults("signals", "4") }
  @Test func flippedBytesAreNoticed() throws { try faults("flips", "23") }
  @Test func spikesAreSkippedAndPassedOver() throws { try faults("spikes") }
  @Test func stoppedRanksAreNamed() throws { try faults("hang") }
}

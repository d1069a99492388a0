import Foundation
import TestSupport
import Testing

/// A few cases of each kind of fault; `jettrain-faults` runs as many as one likes (docs/reliability.md).
@Suite(.serialized) struct FaultTests {
  private static let harness = builtProgram("jettrain-faults")

  /// Network namespaces need root and some tools; without them the test is skipped.
  private static let testbed = repository + "/Cluster/testbed/testbed"
  private static let hasTestbed: Bool = {
    let process = Process()
    process.executableURL = URL(fileURLWithPath: testbed)
    process.arguments = ["2", "testbed", "skew", "host2", "+0d"]
    process.standardError = FileHandle.nullDevice
    guard (try? process.run()) != nil else { return false }
    process.waitUntilExit()
    return process.terminationStatus == 0
  }()

  private func faults(_ arguments: String..., in surroundings: [String] = []) throws {
    let process = Process()
    let command = surroundings + [Self.harness] + arguments
    process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
    process.arguments = command
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
  @Test func whatOperatorsMeetIsOvercome() throws { try faults("operators") }
  @Test func aWaitingRankHoldsUpNoExchange() throws {
    try faults(
      "exchange",
      in: [
        "env", "OMPI_ALLOW_RUN_AS_ROOT=1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1", "mpirun", "--oversubscribe", "--bind-to",
        "none", "-n", "2",
      ])
  }
  @Test func stoppedRanksAreNamed() throws { try faults("hang") }
  @Test(.enabled(if: hasTestbed, "needs root, iproute2, openssh-server and faketime (Cluster/testbed)"))
  func hostsMayStopOrDie() throws { try faults("hosts", in: [Self.testbed, "2"]) }
}

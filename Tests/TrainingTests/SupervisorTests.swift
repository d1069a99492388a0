import Testing
import Training

/// What the supervisor of a job reads and decides.
@Suite struct SupervisorTests {
  /// Names are whole words, whichever is listed first.
  @Test func hostsAreNotTakenForOthers() {
    let hosts = ["node1", "node12", "gpu.a", "gpu-b.cluster"]
    for (line, host) in [
      ("mpirun noticed that process rank 3 with PID 7 on node node12 exited on signal 9 (Killed).", "node12"),
      ("mpirun noticed that process rank 3 with PID 7 on node node1 exited on signal 9 (Killed).", "node1"),
      ("jettrain: rank 1 on node12 is silent since 7 s: step 3, compute", "node12"),
      ("jettrain: rank 1 on gpu-b is silent since 7 s: step 3, compute", "gpu-b.cluster"),
      ("Process 1 on node node12.example exit code 70.", "node12"),
    ] { #expect(Supervisor.faultyHost(line, among: hosts) == host, "\(line)") }
    #expect(Supervisor.faultyHost("rank 1 on node123 is silent since 7 s", among: hosts) == nil)
    #expect(Supervisor.faultyHost("node1 is well", among: hosts) == nil)
  }

  /// Of three hosts with 4 slots each, one lost: the largest number that divides the batch, and no more than there is room.
  @Test func asManyRanksGoOnAsTheJobAccepts() {
    func plan(_ ranks: Int, _ accepts: @escaping (Int) -> Bool) -> LaunchPlan {
      LaunchPlan(
        ranks: ranks, hostfile: nil, maxRestarts: 1, crashesAtAStep: 1, backoff: 1, mpirunArguments: [], command: [],
        runFolder: "", accepts: accepts)
    }
    #expect(plan(12) { 24 % $0 == 0 }.ranks(in: 11) == 8)
    #expect(plan(12) { 18 % $0 == 0 }.ranks(in: 8) == 6)
    #expect(plan(4) { 24 % $0 == 0 }.ranks(in: 11) == 4)
    #expect(plan(12) { $0 > 8 }.ranks(in: 8) == nil)
  }
}

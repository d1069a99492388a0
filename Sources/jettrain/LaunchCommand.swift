import ArgumentParser
import Foundation
import Training

struct Launch: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract:
      "Run a training job or a search under mpirun and start it again after a crash, from its newest good checkpoint.",
    discussion:
      "Everything behind -- is the job: `jettrain launch --ranks 8 --hostfile hosts -- distill --job job.yaml`. Restarts "
      + "wait longer each time that no step was won; bad input and faults that repeat at one step are given up. Logs of "
      + "every rank and a report of all attempts are in RUN/logs.")
  @Option(help: "Ranks to start.") var ranks: Int
  @Option(help: "Hosts, a line each: NAME slots=N. One that failed twice is left out.") var hostfile: String?
  @Option(help: "Restarts at most.") var maxRestarts = 20
  @Option(help: "Give up after this many crashes in a row at the same step.") var crashesAtAStep = 3
  @Option(help: "Seconds before the first restart.") var backoff = 5.0
  @Option(name: .customLong("mpirun"), help: "A further argument of mpirun; may be given several times.")
  var mpirunArguments: [String] = []
  @Argument(parsing: .postTerminator, help: "pretrain, distill, finetune or search, and its options.") var command:
    [String]

  func run() {
    withoutWorld {
      guard ranks > 0, maxRestarts >= 0, crashesAtAStep > 0, backoff >= 0 else {
        throw JobError(
          .usage, "--ranks and --crashes-at-a-step must be above zero, --max-restarts and --backoff not below")
      }
      let program = ProcessInfo.processInfo.arguments[0]
      let path = program.contains("/") ? URL(fileURLWithPath: program).path : program
      let supervisor = try Supervisor(
        LaunchPlan(
          ranks: ranks, hostfile: hostfile, maxRestarts: maxRestarts, crashesAtAStep: crashesAtAStep, backoff: backoff,
          mpirunArguments: mpirunArguments, command: [path] + command, runFolder: runFolder(ranks: ranks),
          accepts: { (try? runFolder(ranks: $0)) != nil }))
      Supervisor.child.forward([SIGUSR1, SIGUSR2, SIGTERM, SIGINT])
      let status = try supervisor.supervise()
      if status != 0 { Foundation.exit(status) }
    }
  }

  /// Where the job keeps its checkpoints, as the job itself will find it; fails where so many ranks cannot run it.
  private func runFolder(ranks: Int) throws -> String {
    let arguments = Array(command.dropFirst())
    guard let name = command.first else { throw Self.noJob }
    switch JobKind(rawValue: name) {
    case .pretrain: return try Pretrain.parse(arguments).options.job(.pretrain, overrides: [], ranks: ranks).runFolder
    case .distill: return try Distill.parse(arguments).options.job(.distill, overrides: [], ranks: ranks).runFolder
    case .finetune:
      let finetune = try Finetune.parse(arguments)
      return try finetune.options.job(.finetune, overrides: finetune.mixOverride, ranks: ranks).runFolder
    case nil:
      guard name == "search" else { throw Self.noJob }
      switch try Search.parseAsRoot(arguments) {
      case let all as Search.All: return try all.job(ranks: ranks).runFolder
      case let placement as Search.Placement: return placement.runDir
      case let block as Search.Block: return block.options.runDir
      case let dimensions as Search.Dimensions: return dimensions.options.runDir
      default: throw JobError(.usage, "behind search stands all, placement, block or dimensions")
      }
    }
  }

  private static var noJob: JobError {
    JobError(.usage, "behind -- stands pretrain, distill, finetune or search, with its options")
  }
}

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
  @Option(help: "Ranks to start.", transform: Whole.from(1, to: Most.ranks)) var ranks: Int
  @Option(help: "Hosts, a line each: NAME slots=N. One that failed twice is left out.") var hostfile: String?
  @Option(help: "Restarts at most.", transform: Whole.from(0)) var maxRestarts = 20
  @Option(help: "Give up after this many crashes in a row at the same step.", transform: Whole.from(1))
  var crashesAtAStep = 3
  @Option(help: "Seconds before the first restart.", transform: Real.from(0, to: 86_400)) var backoff = 5.0
  @Option(name: .customLong("mpirun"), help: "A further argument of mpirun; may be given several times.")
  var mpirunArguments: [String] = []
  @Argument(parsing: .postTerminator, help: "pretrain, distill, finetune or search, and its options.") var command:
    [String]

  func run() {
    withoutWorld {
      if let first = mpirunArguments.first, !first.hasPrefix("-") {
        throw JobError(
          .usage, "--mpirun \(first): mpirun would take this for the program; give an option of mpirun, then its value")
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
    guard !command.isEmpty else { throw Self.noJob }
    var parsed: any ParsableCommand
    // What the command itself would say to these arguments, its help included.
    do {
      parsed = try JettrainCommand.parseAsRoot(command)
      if type(of: parsed).configuration.commandName == "help" { try parsed.run() }
    } catch { endOfArguments(error) }
    switch parsed {
    case let pretrain as Pretrain: return try pretrain.options.job(.pretrain, overrides: [], ranks: ranks).runFolder
    case let distill as Distill: return try distill.options.job(.distill, overrides: [], ranks: ranks).runFolder
    case let finetune as Finetune:
      return try finetune.options.job(.finetune, overrides: finetune.mixOverride, ranks: ranks).runFolder
    case let all as Search.All: return try all.job(ranks: ranks).runFolder
    case let placement as Search.Placement: return placement.runDir
    case let block as Search.Block: return block.options.runDir
    case let dimensions as Search.Dimensions: return dimensions.options.runDir
    default: throw Self.noJob
    }
  }

  private static var noJob: JobError {
    JobError(
      .usage,
      "behind -- stands pretrain, distill, finetune, or search all, placement, block or dimensions, with its options")
  }
}

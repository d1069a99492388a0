import ArgumentParser
import CPUBackend
import CUDA
import CUDABackend
import Foundation
import MPI
import Tensors
import Training

/// What a command computes on.
enum DeviceChoice: Equatable, ExpressibleByArgument {
  /// A card where every rank of the host can have one of its own, else the CPU.
  case automatic
  case cpu
  /// The card of this number, or of the rank's number on its host.
  case cuda(Int?)

  init?(argument: String) {
    switch argument {
    case "auto": self = .automatic
    case "cpu": self = .cpu
    case "cuda": self = .cuda(nil)
    default:
      guard argument.hasPrefix("cuda:"), let index = Int(argument.dropFirst(5)), index >= 0 else { return nil }
      self = .cuda(index)
    }
  }
}

struct DeviceOption: ParsableArguments {
  @Option(
    help: ArgumentHelp(
      "What to compute on: auto, cpu, cuda, or cuda:I for card I; default: the job's train.device, else auto.",
      valueName: "auto|cpu|cuda[:i]"))
  var device: DeviceChoice?
  @OptionGroup var cores: ThreadsOption

  /// The option, what the job says, or auto.
  func choice(job: String? = nil) throws -> DeviceChoice {
    if let device { return device }
    guard let job else { return .automatic }
    guard let choice = DeviceChoice(argument: job) else {
      throw JobError(.usage, "train.device: \(job) is not one of auto, cpu, cuda, cuda:I")
    }
    return choice
  }

  /// The backend of a command that runs in one process.
  ///
  /// - Parameter usual: where the option is not given
  func backend(_ usual: DeviceChoice = .automatic) throws -> any Backend {
    try makeBackend(device ?? usual, threads: cores.count(), place: (0, 1))
  }

  /// The backend of one of `world`'s ranks.
  func backend(_ world: Communicator, job: String? = nil) throws -> any Backend {
    // Ranks share the cores and the cards of their host.
    let local = ProcessInfo.processInfo.environment["OMPI_COMM_WORLD_LOCAL_RANK"].flatMap { Int($0) }
    return try makeBackend(choice(job: job), threads: cores.count(world), place: (local ?? 0, world.localSize))
  }
}

struct ThreadsOption: ParsableArguments {
  @Option(
    help: "Threads of a rank; default: JETTRAIN_THREADS, else the cores of its host over the ranks there.",
    transform: Whole.from(1, to: Most.threads))
  var threads: Int?

  /// The option, or what the machine has for one of `world`'s ranks.
  func count(_ world: Communicator = .alone) -> Int { threads ?? Machine.threads(world) }
}

/// The backend of commands that compute on the CPU whatever there is.
func makeBackend(threads: Int = Machine.threads(.alone)) -> any Backend { CPUBackend(threads: threads) }

/// The one place where a backend is chosen.
///
/// - Parameter place: the rank's number on its host, and how many ranks are there
/// - Throws: `CUDAError.missing` where a card was asked for and cannot be had
private func makeBackend(_ choice: DeviceChoice, threads: Int, place: (rank: Int, count: Int)) throws -> any Backend {
  switch choice {
  case .cpu: return CPUBackend(threads: threads)
  case .cuda(let index?): return try CUDABackend(index)
  case .cuda(nil): return try CUDABackend(place.rank % max(1, Device.count()))
  case .automatic:
    guard let cards = try? Device.count(), cards >= place.count else { return CPUBackend(threads: threads) }
    do { return try CUDABackend(place.rank) } catch let error as CUDAError where error.kind == .missing {
      FileHandle.standardError.write(Data("jettrain: computing on the CPU, although there is a card: \(error)\n".utf8))
      return CPUBackend(threads: threads)
    }
  }
}

import CUDA
import Checkpointing
import Files
import Foundation
import MPI
import Models
import Safetensors
import Tokenizers
import Training

/// Exit codes (docs/design.md, section 7).
enum ExitStatus {
  static let usage: Int32 = 64
  static let badData: Int32 = 65
  /// No card where one was asked for, or one that failed.
  static let cardFault: Int32 = 69
  static let internalFault: Int32 = 70
  static let inputOutput: Int32 = 74
  static let stoppedOnRequest: Int32 = 75

  /// The code for an error of any room.
  static func of(_ error: any Error) -> Int32 {
    switch error {
    case let error as JobError:
      switch error.kind {
      case .usage: usage
      case .data: badData
      case .diverged: internalFault
      }
    case is Stopped: stoppedOnRequest
    case let error as FileError: error.kind == .system ? inputOutput : badData
    case is CheckpointError, is ModelError, is SafetensorsError, is PeerError: badData
    case is TokenizerError: badData
    case let error as CUDAError: error.kind == .compilation ? internalFault : cardFault
    case is CocoaError: inputOutput
    default: internalFault
    }
  }
}

/// Prints what went wrong, a line for each fault, and ends the process.
func fail(_ error: any Error) -> Never {
  FileHandle.standardError.write(Data("jettrain: \(error)\n".utf8))
  exit(ExitStatus.of(error))
}

/// Runs `body` on every rank; an error ends the whole job with its exit code and is printed once.
///
/// A fault that all ranks meet is printed by the coordinator alone: the others wait a moment, in which it ends the
/// job. A fault of one rank is printed by that rank.
func withWorld(_ body: (Communicator) throws -> Void) {
  do {
    try withMPI { world in
      do {
        try body(world)
      } catch {
        if error is PeerError {
          sleep(10)
        } else {
          if !world.isCoordinator { usleep(1_500_000) }
          let place = world.size > 1 && !world.isCoordinator ? "rank \(world.rank): " : ""
          FileHandle.standardError.write(Data("jettrain: \(place)\(error)\n".utf8))
        }
        world.abort(code: ExitStatus.of(error))
      }
    }
  } catch { fail(error) }
}

/// Runs `body` in this process alone; an error is printed and decides the exit code.
func withoutWorld(_ body: () throws -> Void) {
  do { try body() } catch { fail(error) }
}

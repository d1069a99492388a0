import ArgumentParser
import CUDA
import Chat
import Checkpointing
import Fetching
import Files
import Foundation
import MPI
import Models
import Tokenizers
import Training

/// Exit codes (docs/design.md, section 7).
enum ExitStatus {
  static let usage: Int32 = 64
  static let badData: Int32 = 65
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
    case is CheckpointError, is ModelError, is PeerError: badData
    case let error as FetchError: error.kind == .system ? inputOutput : badData
    case is TokenizerError, is TemplateError: badData
    case let error as CUDAError: error.exitCode
    case is CocoaError: inputOutput
    default: internalFault
    }
  }
}

/// Prints what went wrong, a line for each fault, and ends the process.
func fail(_ error: any Error) -> Never {
  FileHandle.standardError.write(Data("jettrain: \(said(error))\n".utf8))
  exit(ExitStatus.of(error))
}

/// An error in the words of this program: what Foundation throws prints its domain and number.
func said(_ error: any Error) -> String {
  guard let error = error as? CocoaError else { return "\(error)" }
  let path = error.userInfo[NSFilePathErrorKey] as? String ?? error.url?.path ?? "a file"
  if let cause = error.userInfo[NSUnderlyingErrorKey] as? POSIXError {
    return "\(path): \(String(cString: strerror(cause.code.rawValue)))"
  }
  let reasons: [CocoaError.Code: String] = [
    .fileWriteOutOfSpace: "no space left on device", .fileWriteNoPermission: "permission denied",
    .fileReadNoPermission: "permission denied", .fileNoSuchFile: "no such file or directory",
    .fileReadNoSuchFile: "no such file or directory", .fileWriteVolumeReadOnly: "read-only file system",
  ]
  return "\(path): \(reasons[error.code] ?? error.localizedDescription)"
}

/// Ends the process as the arguments deserve: with help, where it was asked for, or with one line that names the mistake
/// and where help is.
func endOfArguments(_ error: any Error) -> Never {
  let status = JettrainCommand.exitCode(for: error)
  if status.isSuccess { JettrainCommand.exit(withError: error) }
  let message = JettrainCommand.message(for: error).split(separator: "\n").map {
    $0.trimmingCharacters(in: .whitespaces)
  }
  .joined(separator: " ")
  // The parser's full text names the command whose help it is.
  let pointer = JettrainCommand.fullMessage(for: error).firstMatch(of: /See '([^']*) --help'/).map(\.1)
  FileHandle.standardError.write(
    Data("jettrain: \(message)\(pointer.map { "; \($0) --help shows its options" } ?? "")\n".utf8))
  exit(status == .validationFailure ? ExitStatus.usage : status.rawValue)
}

/// Runs `body` on every rank; an error ends the whole job with its exit code and is printed once.
///
/// A fault that all ranks meet is printed by the first that knows it, the coordinator as a rule, and they leave together. A
/// fault of one rank is printed by that rank, which then ends the others.
func withWorld(_ body: (Communicator) throws -> Void) {
  do {
    try withMPI { world in
      do {
        try body(world)
      } catch {
        // Whoever fails because another rank did has nothing of its own to say.
        let isOwn = !(error is PeerError)
        func say() {
          let place = world.isCoordinator ? "" : "rank \(world.rank): "
          FileHandle.standardError.write(Data("jettrain: \(place)\(said(error))\n".utf8))
        }
        let speaksFirst = world.isCoordinator && isOwn
        if speaksFirst { say() }
        let code = ExitStatus.of(error)
        if let first = world.whereAllFail(code: code, speaks: isOwn) {
          if first.rank == world.rank, !speaksFirst { say() }
          world.leave(code: first.code)
        }
        if !isOwn { sleep(10) } else if !speaksFirst { say() }
        world.abort(code: code)
      }
    }
  } catch { fail(error) }
}

/// Runs `body` in this process alone; an error is printed and decides the exit code.
func withoutWorld(_ body: () throws -> Void) {
  do { try body() } catch { fail(error) }
}

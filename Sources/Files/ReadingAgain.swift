import Foundation

/// Reads something that may fail for a moment: the system's refusals (a stale handle, a broken wire, too many open files)
/// are tried four times in three seconds, and what is not as it was written is read once more before that is believed.
///
/// - Parameter body: reads; given how often it has failed, so that it may open the file anew
package func readingAgain<Value>(_ path: String, _ body: (_ attempt: Int) throws -> Value) throws -> Value {
  var faults: [any Error] = []
  while true {
    do {
      let value = try body(faults.count)
      if let fault = faults.first {
        FileHandle.standardError.write(
          Data("jettrain: WARNING: \(fault). It was read again, and is as it should be\n".utf8))
      }
      return value
    } catch {
      let isSystem = (error as? FileError)?.kind == .system
      let pauses: [UInt32] = isSystem ? [100_000, 500_000, 2_400_000] : [100_000]
      guard faults.count < pauses.count else { throw error }
      usleep(pauses[faults.count])
      faults.append(error)
    }
  }
}

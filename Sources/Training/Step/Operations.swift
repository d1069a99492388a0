import Files
import MPI

/// What ranks have asked of file systems, and of each other, since they began (docs/reliability.md, A thousand ranks).
package struct Operations: Sendable, Equatable {
  package static let names = [
    "opens", "looks", "syncs", "bytes_read", "bytes_written", "messages", "message_bytes",
  ]
  /// In the order of ``names``; whole numbers below 2^53.
  package private(set) var counts = [Double](repeating: 0, count: names.count)

  package init() {}

  /// Those of this process until now.
  package static var ofThisRank: Operations {
    let (files, traffic) = (FileOperations.sinceStart, Communicator.traffic)
    var operations = Operations()
    operations.counts = [
      files.opens, files.looks, files.syncs, files.bytesRead, files.bytesWritten, traffic.messages, traffic.bytes,
    ].map(Double.init)
    return operations
  }

  mutating func add(_ count: Double, at index: Int) { counts[index] += count }

  /// By name.
  var named: [String: Int] { Dictionary(uniqueKeysWithValues: zip(Self.names, counts.map { Int($0) })) }
}

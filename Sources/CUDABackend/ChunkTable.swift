import CUDA

/// Packed documents cut into chunks of 64 tokens, on the card: what kernels of recurrences walk by.
package struct ChunkTable {
  package static let chunkLength = 64

  package let segments: [Range<Int>]
  package let tokens: Int
  package let chunkCount: Int
  /// First token and length of every chunk.
  let chunks: any DeviceMemory
  /// The first chunk of every segment, and the count of chunks.
  let firstChunks: any DeviceMemory

  /// - Parameter segments: documents, one behind the other.
  package init(_ device: Device, segments: [Range<Int>]) throws {
    try self.init(segments: segments) { try DeviceBuffer(device, $0) }
  }

  /// - Parameter upload: brings numbers to the card
  init(segments: [Range<Int>], upload: ([Int32]) throws -> any DeviceMemory) rethrows {
    let (chunks, firstChunks) = Self.tables(segments)
    self.segments = segments
    tokens = segments.last?.upperBound ?? 0
    chunkCount = chunks.count / 2
    self.chunks = try upload(chunks)
    self.firstChunks = try upload(firstChunks)
  }

  /// First token and length of every chunk; the first chunk of every segment and the count of chunks.
  package static func tables(_ segments: [Range<Int>]) -> (chunks: [Int32], firstChunks: [Int32]) {
    var (chunks, firstChunks): ([Int32], [Int32]) = ([], [])
    for segment in segments {
      firstChunks.append(Int32(chunks.count / 2))
      for first in stride(from: segment.lowerBound, to: segment.upperBound, by: chunkLength) {
        chunks += [Int32(first), Int32(min(chunkLength, segment.upperBound - first))]
      }
    }
    firstChunks.append(Int32(chunks.count / 2))
    return (chunks, firstChunks)
  }
}

import Files
import Foundation

/// A consecutive run of a dataset's shards, seen as sequences of `context` tokens with a label each.
///
/// Sequence i covers tokens i·context ..< (i + 1)·context of the run, or of a part of it, and one more for the last label.
package final class TokenStream {
  package let dataset: Dataset
  private let shards: Range<Int>
  /// First token of every shard of the run, and the end of the last.
  private let starts: [Int]
  package let context: Int
  /// The tokens of the run that its sequences lie in.
  private let part: Range<Int>

  /// - Parameters:
  ///   - shards: ordinals of consecutive shards
  ///   - part: the tokens of the run that are read; nil for all
  ///   - context: tokens of a sequence
  package init(_ dataset: Dataset, shards: Range<Int>, part: Range<Int>? = nil, context: Int) {
    self.dataset = dataset
    self.shards = shards
    self.context = context
    var starts = [0]
    for ordinal in shards { starts.append(starts[starts.count - 1] + dataset.manifest.shards[ordinal].tokens) }
    self.starts = starts
    let all = 0..<starts[starts.count - 1]
    self.part = part?.clamped(to: all) ?? all
  }

  /// Whole sequences to read.
  package var sequenceCount: Int { max(0, (part.count - 1) / context) }

  /// The first shard of the run whose end lies behind `token`.
  private func firstShard(endingAfter token: Int) -> Int {
    var (low, high) = (0, shards.count)
    while low < high {
      let middle = (low + high) / 2
      if starts[middle + 1] > token { high = middle } else { low = middle + 1 }
    }
    return low
  }

  /// One sequence, appended to `batch`.
  package func read(_ index: Int, into batch: inout SequenceBatch) throws {
    precondition(index < sequenceCount, "sequence \(index) of \(sequenceCount)")
    let start = part.lowerBound + index * context
    let range = start..<start + context + 1
    var tokens: [UInt32] = []
    tokens.reserveCapacity(range.count)
    // Label t counts if token t + 1 counts and belongs to the same document.
    var counts = [Bool](repeating: false, count: range.count)
    let base = batch.tokens.count
    var position = firstShard(endingAfter: range.lowerBound)
    while position < shards.count, starts[position] < range.upperBound {
      defer { position += 1 }
      let part = range.clamped(to: starts[position]..<starts[position + 1])
      guard !part.isEmpty else { continue }
      let reader = try dataset.shard(shards.lowerBound + position)
      let start = starts[position]
      let local = part.lowerBound - start..<part.upperBound - start
      try reader.read(local, into: &tokens)
      reader.index.forEachDocument(in: local) { document in
        let first = document.lowerBound + start - range.lowerBound
        for offset in 1..<max(1, document.count) where reader.index.counts(document.lowerBound + offset) {
          counts[first + offset - 1] = true
        }
        let segment = first..<min(context, first + document.count)
        if !segment.isEmpty { batch.segments.append(base + segment.lowerBound..<base + segment.upperBound) }
      }
    }
    batch.tokens += tokens[..<context].map(Int32.init(bitPattern:))
    for t in 0..<context { batch.labels.append(counts[t] ? Int32(bitPattern: tokens[t + 1]) : -1) }
    batch.sequenceCount += 1
  }
}

/// Sequences as a model takes them.
package struct SequenceBatch: Sendable {
  package var tokens: [Int32] = []
  /// What each token predicts; −1 where nothing counts.
  package var labels: [Int32] = []
  /// The documents, ranges of `tokens`.
  package var segments: [Range<Int>] = []
  package var sequenceCount = 0

  package init() {}

  /// Labels that count.
  package var countedLabels: Int { labels.reduce(0) { $0 + ($1 >= 0 ? 1 : 0) } }
}

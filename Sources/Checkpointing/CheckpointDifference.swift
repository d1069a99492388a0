/// Where two checkpoints differ, array by array, whatever number of ranks saved them.
package struct CheckpointDifference {
  /// One line for each difference.
  package private(set) var lines: [String] = []
  /// Arrays of the first checkpoint.
  package let arrays: Int

  /// Reads both whole.
  package init(_ a: Checkpoint, _ b: Checkpoint) throws {
    let (left, right) = (try a.assemble(), try b.assemble())
    arrays = left.count
    if a.manifest.step != b.manifest.step { lines.append("step: \(a.manifest.step) and \(b.manifest.step)") }
    for key in Set(left.keys).union(right.keys).sorted() {
      guard let x = left[key], let y = right[key], x.count == y.count else {
        lines.append("\(key): only in one, or of different size")
        continue
      }
      let count = zip(x, y).reduce(0) { $0 + ($1.0.bitPattern == $1.1.bitPattern ? 0 : 1) }
      if count > 0 {
        let largest = zip(x, y).map { abs($0 - $1) }.max() ?? 0
        lines.append("\(key): \(count) of \(x.count) elements differ, by \(largest) at most")
      }
    }
  }
}

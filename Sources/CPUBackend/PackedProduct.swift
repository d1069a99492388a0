import Tensors

/// Rows that panels are packed from, as float32.
private protocol PanelSource {
  /// `count` elements of a row, then zeros.
  func lanes(_ row: Int, _ index: Int, _ count: Int) -> Lanes
}

extension Rows: PanelSource {
  @inline(__always)
  fileprivate func lanes(_ row: Int, _ index: Int, _ count: Int) -> Lanes { self[row].lanes(index, count) }
}

/// Rows of bfloat16.
private struct WideRows: PanelSource {
  let start: BFloatPointer
  let stride: Int

  @inline(__always)
  func lanes(_ row: Int, _ index: Int, _ count: Int) -> Lanes { (start + row * stride).wide(index, count) }
}

/// Products of matrices by a microkernel over packed panels. B, the side that all rows of A meet, is packed once for all
/// threads, and widened on the way where it is bfloat16; A is read where it lies, unless it is transposed.
///
/// A slice owns a tile of rows, and with few rows some of the panels; the sum goes along in stretches of fixed length. All
/// that depends on shapes alone, and so the bits do not on the number of threads.
struct PackedProduct {
  /// An operand in host memory, as it is read: of `rows` rows.
  enum Right {
    case float32(Matrix)
    case bfloat16(BFloatPointer, stride: Int, isTransposed: Bool)
  }

  let rows: Int
  let columns: Int
  let inner: Int
  let a: Matrix
  let b: Right
  let c: Rows
  let alpha: Float
  let adds: Bool

  /// Rows of A in a tile, which stays in the second cache with a panel of B.
  private static let tileRows = 64
  /// Steps along the sum, and columns, of what is packed at a time: 8 MB at most.
  private static let mostDepth = 1024
  private static let mostColumns = 2048
  /// Slices that a product is cut into at least, where it can be.
  private static let fewestSlices = 8

  /// Columns as they are packed: in whole vectors.
  private static func padded(_ columns: Int) -> Int { (columns + laneCount - 1) / laneCount * laneCount }

  /// Equal stretches of at most `most`.
  private static func stretches(_ count: Int, most: Int) -> [Range<Int>] {
    let parts = max(1, (count + most - 1) / most)
    let length = ((count + parts - 1) / parts + laneCount - 1) / laneCount * laneCount
    return stride(from: 0, to: count, by: length).map { $0..<min(count, $0 + length) }
  }

  /// Computes c on the pool of `backend`.
  ///
  /// - Parameter finish: is called with rows and columns of c as soon as they are complete, on the thread that made them
  func run(on backend: CPUBackend, kernel: String, finish: ((_ rows: Range<Int>, _ columns: Range<Int>) -> Void)? = nil)
  {
    let depths = Self.stretches(inner, most: Self.mostDepth)
    let strips = Self.stretches(columns, most: Self.mostColumns)
    guard let depth = depths.first?.count, let strip = strips.first?.count else { return }
    backend.withTemporary(depth * Self.padded(strip)) { packed in
      for columns in strips {
        for depth in depths {
          pack(depth, columns, into: packed, on: backend, kernel)
          let isLast = depth.upperBound == inner
          multiply(depth, columns, packed, on: backend, kernel, finish: isLast ? finish : nil)
        }
      }
    }
  }

  private func panels(_ columns: Range<Int>) -> Int {
    (columns.count + Microkernel.columns - 1) / Microkernel.columns
  }

  /// Columns of panel `index`, of those of a strip.
  private func panel(_ index: Int, of columns: Range<Int>) -> Range<Int> {
    let first = columns.lowerBound + index * Microkernel.columns
    return first..<min(columns.upperBound, first + Microkernel.columns)
  }

  /// Panels `[depth, width]` of B, one behind the other, zero where a width is more than there are columns.
  private func pack(
    _ depth: Range<Int>, _ columns: Range<Int>, into packed: FloatPointer, on backend: CPUBackend, _ kernel: String
  ) {
    backend.parallel(panels(columns), kernel: kernel) { index in
      let panel = panel(index, of: columns)
      let width = Self.padded(panel.count)
      let out = packed + (panel.lowerBound - columns.lowerBound) * depth.count
      switch b {
      case .float32(let matrix):
        if matrix.isTransposed {
          Self.packTransposed(depth, panel, width, Rows(start: matrix.start, stride: matrix.stride), into: out)
        } else {
          Self.packRows(depth, panel, width, Rows(start: matrix.start, stride: matrix.stride), into: out)
        }
      case .bfloat16(let start, let stride, let isTransposed):
        if isTransposed {
          Self.packTransposed(depth, panel, width, WideRows(start: start, stride: stride), into: out)
        } else {
          Self.packRows(depth, panel, width, WideRows(start: start, stride: stride), into: out)
        }
      }
    }
  }

  /// From rows that are columns of the product, sixteen of them and sixteen steps at a time.
  private static func packTransposed<Source: PanelSource>(
    _ depth: Range<Int>, _ panel: Range<Int>, _ width: Int, _ source: Source, into out: FloatPointer
  ) {
    var scratch = Scratch(2 * laneCount * laneCount)
    defer { scratch.free() }
    let rows = UnsafeMutableRawPointer(scratch.take(2 * laneCount * laneCount)).assumingMemoryBound(to: Lanes.self)
    for first in stride(from: depth.lowerBound, to: depth.upperBound, by: laneCount) {
      let steps = min(laneCount, depth.upperBound - first)
      for column in stride(from: 0, to: width, by: laneCount) {
        for i in 0..<laneCount {
          rows[i] = column + i < panel.count ? source.lanes(panel.lowerBound + column + i, first, steps) : Lanes.zero
        }
        transpose(rows, rows + laneCount)
        let target = out + (first - depth.lowerBound) * width + column
        for step in 0..<steps { target.store(rows[step], step * width) }
      }
    }
  }

  /// Turns sixteen rows of sixteen in place: in every round, rows that are eight apart are shuffled into each other.
  @inline(__always)
  private static func transpose(_ rows: UnsafeMutablePointer<Lanes>, _ other: UnsafeMutablePointer<Lanes>) {
    func round(_ x: UnsafeMutablePointer<Lanes>, _ y: UnsafeMutablePointer<Lanes>) {
      for i in 0..<laneCount / 2 {
        let (a, b) = (x[i], x[i + laneCount / 2])
        var (low, high) = (Lanes(), Lanes())
        (low.evenHalf, low.oddHalf) = (a.lowHalf, b.lowHalf)
        (high.evenHalf, high.oddHalf) = (a.highHalf, b.highHalf)
        (y[2 * i], y[2 * i + 1]) = (low, high)
      }
    }
    round(rows, other)
    round(other, rows)
    round(rows, other)
    round(other, rows)
  }

  private static func packRows<Source: PanelSource>(
    _ depth: Range<Int>, _ panel: Range<Int>, _ width: Int, _ source: Source, into out: FloatPointer
  ) {
    for step in depth {
      let target = out + (step - depth.lowerBound) * width
      sweep(panel.count) { i, n in target.store(source.lanes(step, panel.lowerBound + i, n), i) }
    }
  }

  private func multiply(
    _ depth: Range<Int>, _ columns: Range<Int>, _ packed: FloatPointer, on backend: CPUBackend, _ kernel: String,
    finish: ((Range<Int>, Range<Int>) -> Void)?
  ) {
    let tiles = (rows + Self.tileRows - 1) / Self.tileRows
    let panels = panels(columns)
    let groups = min(panels, max(1, (Self.fewestSlices + tiles - 1) / tiles))
    backend.parallel(tiles * groups, kernel: kernel) { slice in
      let (tile, group) = (slice / groups, slice % groups)
      let rows = tile * Self.tileRows..<min(self.rows, (tile + 1) * Self.tileRows)
      let owned = panels * group / groups..<panels * (group + 1) / groups
      withOperands(rows, depth) { operand in
        for index in owned {
          let panel = panel(index, of: columns)
          let b = packed + (panel.lowerBound - columns.lowerBound) * depth.count
          for row in stride(from: rows.lowerBound, to: rows.upperBound, by: Microkernel.rows) {
            Microkernel.multiply(
              depth.count, operand(row), b, width: Self.padded(panel.count),
              into: Microkernel.Target(
                start: c[row] + panel.lowerBound, stride: c.stride, rows: min(Microkernel.rows, rows.upperBound - row),
                columns: panel.count, alpha: alpha, adds: adds || depth.lowerBound > 0))
          }
        }
      }
      finish?(
        rows, panel(owned.lowerBound, of: columns).lowerBound..<panel(owned.upperBound - 1, of: columns).upperBound)
    }
  }

  /// Calls `body` with what gives the microkernel's operand from a row of A on: its rows where they lie, or copies `[depth,
  /// rows]` of a few each where A is transposed, and of the last rows where there are too few.
  private func withOperands(
    _ rows: Range<Int>, _ depth: Range<Int>, _ body: ((_ row: Int) -> Microkernel.Operand) -> Void
  ) {
    let few = Microkernel.rows
    let direct = { (row: Int) in
      Microkernel.Operand(start: a.start + row * a.stride + depth.lowerBound, row: a.stride, step: 1)
    }
    let copied = a.isTransposed ? 0 : rows.count / few * few
    guard copied < rows.count else { return body(direct) }
    let first = rows.lowerBound + copied
    let panels = (rows.upperBound - first + few - 1) / few
    var scratch = Scratch(Scratch.rounded(panels * few * depth.count))
    defer { scratch.free() }
    let copy = scratch.take(panels * few * depth.count)
    for step in 0..<depth.count {
      let place = depth.lowerBound + step
      for panel in 0..<panels {
        let row = first + panel * few
        let (out, count) = (copy + panel * few * depth.count + step * few, min(few, rows.upperBound - row))
        if a.isTransposed && count == 8 && few == 8 {
          let source = UnsafeRawPointer(a.start + place * a.stride + row)
          UnsafeMutableRawPointer(out).storeBytes(
            of: source.loadUnaligned(as: SIMD8<Float>.self), as: SIMD8<Float>.self)
        } else {
          for i in 0..<few {
            out[i] = i < count ? a.start[a.isTransposed ? place * a.stride + row + i : (row + i) * a.stride + place] : 0
          }
        }
      }
    }
    body { row in
      row < first ? direct(row) : Microkernel.Operand(start: copy + (row - first) * depth.count, row: 1, step: few)
    }
  }
}

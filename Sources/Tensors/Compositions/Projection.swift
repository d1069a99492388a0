/// Products with the rows of one matrix that may lie apart, composed of the core.
extension Backend {
  package func project(_ x: Tensor, _ weights: [Tensor], biases: [Tensor], onto base: Tensor?, into y: Tensor) {
    composedProject(x, weights, biases: biases, onto: base, into: y)
  }

  /// The composition, also for backends whose own kernel is for some shapes alone.
  package func composedProject(
    _ x: Tensor, _ weights: [Tensor], biases: [Tensor], onto base: Tensor?, into y: Tensor
  ) {
    forEachPart(of: y, rows: weights) { part, range, weight in
      multiply(x, transposed: false, weight, transposed: true, into: part, alpha: 1, adds: false)
      if part.storage !== y.storage { addColumns(part, into: y, range, adds: range.lowerBound > 0) }
    }
    forEachPart(of: y, rows: biases) { part, range, bias in
      if part.storage === y.storage { return addBias(bias, to: part) }
      let ones = filled([y.rows, 1], with: 1)
      let spread = empty([y.rows, range.count])
      multiply(
        ones, transposed: false, bias.reshaped([1, bias.count]), transposed: false, into: spread, alpha: 1, adds: false)
      addColumns(spread, into: y, range, adds: true)
    }
    if let base { add(base, scale: 1, into: y) }
  }

  package func projectBackward(_ dy: Tensor, _ weights: [Tensor], into dx: Tensor, adds: Bool) {
    forEachPart(of: dy, rows: weights) { part, range, weight in
      if part.storage !== dy.storage { copyColumns(dy, range, into: part) }
      multiply(
        part, transposed: false, weight, transposed: false, into: dx, alpha: 1, adds: adds || range.lowerBound > 0)
    }
  }

  /// Calls `body` with the columns of y for each of `rows`, in place or as room of their own.
  private func forEachPart(
    of y: Tensor, rows: [Tensor], _ body: (_ part: Tensor, _ range: Range<Int>, _ rows: Tensor) -> Void
  ) {
    var first = 0
    for rows in rows {
      let range = first..<first + rows.rows
      let isPlace = takesColumnViews || range.count == y.columns
      body(isPlace ? y.columns(range) : empty([y.rows, range.count]), range, rows)
      first = range.upperBound
    }
  }
}

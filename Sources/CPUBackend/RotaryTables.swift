import Tensors

/// Cosines and sines of the rotary angles of positions 0, 1, …: `[positions, half]` each.
///
/// Angles in double precision: float32 loses a turn at positions beyond 2^17.
final class RotaryTables {
  let half: Int
  let angles: RotaryAngles
  let positions: Int
  let cosines: FloatPointer
  let sines: FloatPointer

  /// Tables that reach `position` at least.
  init(upTo position: Int, half: Int, angles: RotaryAngles) {
    self.half = half
    self.angles = angles
    var positions = 256
    while positions <= position { positions *= 2 }
    self.positions = positions
    cosines = .allocate(capacity: positions * half)
    sines = .allocate(capacity: positions * half)
    let frequencies = (0..<half).map {
      angles.stretched(CPUBackend.inversePower(Double(angles.theta), Double($0) / Double(half)), $0, of: half)
    }
    for row in 0..<positions {
      for i in 0..<half {
        let (sine, cosine) = CPUBackend.sineCosine(Double(row) * frequencies[i])
        cosines[row * half + i] = Float(cosine)
        sines[row * half + i] = Float(sine)
      }
    }
  }

  deinit {
    cosines.deallocate()
    sines.deallocate()
  }
}

extension CPUBackend {
  /// The tables for these angles, kept for as long as the backend: a model may have several kinds.
  func rotaryTables(upTo position: Int, half: Int, angles: RotaryAngles) -> RotaryTables {
    if let known = knownRotaryTables.first(where: { $0.half == half && $0.angles == angles }) {
      if known.positions > position { return known }
      knownRotaryTables.removeAll { $0 === known }
    }
    let tables = RotaryTables(upTo: position, half: half, angles: angles)
    knownRotaryTables.append(tables)
    return tables
  }
}

/// Numbers as the card's bfloat16, rounded to the nearest, ties to even.
package func bfloat16(_ values: [Float]) -> [UInt16] {
  values.map { value in
    let bits = value.bitPattern
    return value.isNaN ? 0x7fff : UInt16(truncatingIfNeeded: (bits &+ 0x7fff &+ (bits >> 16 & 1)) >> 16)
  }
}

/// bfloat16 as float32, exactly.
package func widened(_ values: [UInt16]) -> [Float] { values.map { Float(bitPattern: UInt32($0) << 16) } }

/// Element types of arrays that jettrain reads. Those that begin with Q are blocks of small whole numbers with common
/// scales (ggml's `ggml-quants.c` defines them).
package enum GGUFType: UInt32, Sendable, CaseIterable, CustomStringConvertible {
  case f32 = 0
  case f16 = 1
  case q40 = 2
  case q41 = 3
  case q50 = 6
  case q51 = 7
  case q80 = 8
  case q4k = 12
  case q5k = 13
  case q6k = 14
  case bf16 = 30

  private static let names = [
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K",
    12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL",
    21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M",
    30: "BF16",
    34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
  ]

  /// ggml's name of a type, supported or not.
  static func name(of code: UInt32) -> String { names[Int(code)] ?? "number \(code)" }

  static var supported: String { allCases.map(\.description).joined(separator: ", ") }

  package var description: String { Self.name(of: rawValue) }

  /// Elements of a block; a row has a whole number of blocks.
  package var blockElements: Int {
    switch self {
    case .f32, .f16, .bf16: 1
    case .q40, .q41, .q50, .q51, .q80: 32
    case .q4k, .q5k, .q6k: 256
    }
  }

  package var blockBytes: Int {
    switch self {
    case .f32: 4
    case .f16, .bf16: 2
    case .q40: 18
    case .q41: 20
    case .q50: 22
    case .q51: 24
    case .q80: 34
    case .q4k: 144
    case .q5k: 176
    case .q6k: 210
    }
  }
}

extension GGUFType {
  /// Writes the elements of `blocks` blocks that lie at `source` into `out`, in the order of operations of ggml, so that the
  /// bits are the same.
  func dequantize(_ source: UnsafeRawPointer, blocks: Int, into out: UnsafeMutablePointer<Float>) {
    switch self {
    case .f32: UnsafeMutableRawPointer(out).copyMemory(from: source, byteCount: blocks * 4)
    case .f16: for i in 0..<blocks { out[i] = source.half(2 * i) }
    case .bf16:
      for i in 0..<blocks {
        out[i] = Float(
          bitPattern: UInt32(source.loadUnaligned(fromByteOffset: 2 * i, as: UInt16.self).littleEndian) << 16)
      }
    case .q40, .q50:
      // Numbers around zero: 4 bits from −8, or 5 from −16, the fifth bits in a word of their own.
      let hasFifth = self == .q50
      eachBlock(source, blocks, out) { block, out in
        let d = block.half(0)
        nibbles(block + (hasFifth ? 6 : 2), hasFifth ? block.word(2) : 0) {
          out[$0] = d * Float($1 - (hasFifth ? 16 : 8))
        }
      }
    case .q41, .q51:
      let hasFifth = self == .q51
      eachBlock(source, blocks, out) { block, out in
        let (d, least) = (block.half(0), block.half(2))
        nibbles(block + (hasFifth ? 8 : 4), hasFifth ? block.word(4) : 0) { out[$0] = d * Float($1) + least }
      }
    case .q80:
      eachBlock(source, blocks, out) { block, out in
        let d = block.half(0)
        for i in 0..<32 { out[i] = d * Float(block.load(fromByteOffset: 2 + i, as: Int8.self)) }
      }
    case .q4k, .q5k: eachBlock(source, blocks, out) { kBlock($0, hasFifth: self == .q5k, $1) }
    case .q6k: eachBlock(source, blocks, out, sixBitBlock)
    }
  }

  @inline(__always)
  private func eachBlock(
    _ source: UnsafeRawPointer, _ blocks: Int, _ out: UnsafeMutablePointer<Float>,
    _ body: (UnsafeRawPointer, UnsafeMutablePointer<Float>) -> Void
  ) {
    for block in 0..<blocks { body(source + block * blockBytes, out + block * blockElements) }
  }

  /// 32 numbers of four bits, the low halves of 16 bytes first, with fifth bits from `high`.
  @inline(__always)
  private func nibbles(_ bytes: UnsafeRawPointer, _ high: UInt32, _ body: (Int, Int) -> Void) {
    for i in 0..<16 {
      let byte = Int(bytes.byte(i))
      body(i, byte & 15 | Int(high >> UInt32(i) & 1) << 4)
      body(i + 16, byte >> 4 | Int(high >> UInt32(i + 16) & 1) << 4)
    }
  }

  /// Eight groups of 32 numbers, each with a scale and a minimum of six bits.
  private func kBlock(_ block: UnsafeRawPointer, hasFifth: Bool, _ out: UnsafeMutablePointer<Float>) {
    let (d, least) = (block.half(0), block.half(2))
    let packed = block + 4
    func scales(_ group: Int) -> (scale: Float, minimum: Float) {
      if group < 4 {
        return (d * Float(packed.byte(group) & 63), least * Float(packed.byte(group + 4) & 63))
      }
      let both = packed.byte(group + 4)
      return (
        d * Float(both & 15 | (packed.byte(group - 4) >> 6) << 4),
        least * Float(both >> 4 | (packed.byte(group) >> 6) << 4)
      )
    }
    let high = block + 16
    let low = block + (hasFifth ? 48 : 16)
    for group in 0..<8 {
      let (scale, minimum) = scales(group)
      for i in 0..<32 {
        let byte = low.byte(group / 2 * 32 + i)
        let nibble = group % 2 == 0 ? byte & 15 : byte >> 4
        let fifth = hasFifth ? high.byte(i) >> UInt8(group) & 1 : 0
        out[group * 32 + i] = scale * Float(nibble | fifth << 4) - minimum
      }
    }
  }

  /// Sixteen groups of 16 numbers of six bits from −32, each with a scale of eight.
  private func sixBitBlock(_ block: UnsafeRawPointer, _ out: UnsafeMutablePointer<Float>) {
    let d = block.half(208)
    for half in 0..<2 {
      let (low, high, scales) = (block + half * 64, block + 128 + half * 32, block + 192 + half * 8)
      for quarter in 0..<4 {
        for i in 0..<32 {
          let byte = low.byte(quarter % 2 * 32 + i)
          let nibble = quarter < 2 ? byte & 15 : byte >> 4
          let number = Int(nibble | (high.byte(i) >> UInt8(2 * quarter) & 3) << 4) - 32
          let scale = Float(scales.load(fromByteOffset: quarter * 2 + i / 16, as: Int8.self))
          out[half * 128 + quarter * 32 + i] = d * scale * Float(number)
        }
      }
    }
  }
}

extension UnsafeRawPointer {
  fileprivate func byte(_ offset: Int) -> UInt8 { load(fromByteOffset: offset, as: UInt8.self) }
  fileprivate func half(_ offset: Int) -> Float {
    Float(Float16(bitPattern: loadUnaligned(fromByteOffset: offset, as: UInt16.self).littleEndian))
  }
  fileprivate func word(_ offset: Int) -> UInt32 { loadUnaligned(fromByteOffset: offset, as: UInt32.self).littleEndian }
}

/// SplitMix64.
struct Generator: RandomNumberGenerator {
  var state: UInt64
  mutating func next() -> UInt64 {
    state &+= 0x9E37_79B9_7F4A_7C15
    var z = state
    z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
    z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
    return z ^ (z >> 31)
  }
}

/// Changes a few places: bits, bytes, runs, numbers and ends. Half of the cases change numbers alone, so that what is
/// behind the syntax is reached.
func mutate(_ original: [UInt8], _ random: inout Generator) -> [UInt8] {
  var bytes = original
  let changesNumbers = Bool.random(using: &random)
  let tokens = [
    "0", "-1", "1e999", "18446744073709551615", "9223372036854775807", "4294967296", "1e-5", "null", "true", "[]", "{}",
    "\"\"", "\"\\ud800\"", "[[[[", ",", ":", "\u{0}", "NaN", "0.5", "65536", "99999999",
  ]
  for _ in 0..<Int.random(in: 1...4, using: &random) {
    guard !bytes.isEmpty else { break }
    let at = Int.random(in: 0..<bytes.count, using: &random)
    switch changesNumbers ? 4 : Int.random(in: 0..<8, using: &random) {
    case 0: bytes[at] ^= 1 << UInt8.random(in: 0..<8, using: &random)
    case 1: bytes[at] = UInt8.random(in: 0...255, using: &random)
    case 2: bytes.removeSubrange(at..<min(bytes.count, at + Int.random(in: 1...64, using: &random)))
    case 3:
      let end = min(bytes.count, at + Int.random(in: 1...64, using: &random))
      bytes.insert(contentsOf: Array(bytes[at..<end]), at: Int.random(in: 0...bytes.count, using: &random))
    case 4:
      // A number in its place becomes another.
      guard let first = bytes[at...].firstIndex(where: { (48...57).contains($0) }) else { continue }
      let end = bytes[first...].firstIndex { !(48...57).contains($0) } ?? bytes.count
      bytes.replaceSubrange(first..<end, with: tokens.randomElement(using: &random)!.utf8)
    case 5: bytes.insert(contentsOf: tokens.randomElement(using: &random)!.utf8, at: at)
    case 6: bytes.removeLast(bytes.count - at)
    default: for i in at..<min(bytes.count, at + 8) { bytes[i] = [0, 0xFF, 0x7F, 0x80].randomElement(using: &random)! }
    }
  }
  return bytes
}

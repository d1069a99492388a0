import Foundation

/// Normalisation form C of short runs of scalars (Unicode Standard Annex 15), by tables read off Foundation one
/// character at a time. Foundation's own function on whole strings leaves a Hangul syllable and the consonant behind it
/// apart, and drops the last of some hundred marks in a row.
struct CanonicalComposition: Sendable {
  /// Built at first use, in some tens of milliseconds; most text never needs it.
  static let tables = CanonicalComposition()

  /// Full canonical decompositions of scalars that have one.
  private var decompositions: [UInt32: [UInt32]] = [:]
  /// The scalar that two in a row become.
  private var compositions: [UInt64: UInt32] = [:]

  private init() {
    func scalars(_ text: String) -> [UInt32] { text.unicodeScalars.map(\.value) }
    func text(_ values: some Sequence<UInt32>) -> String {
      var view = String.UnicodeScalarView()
      for value in values { view.append(Unicode.Scalar(value).unsafelyUnwrapped) }
      return String(view)
    }
    for range in [0xC0..<0x3400, 0xF900..<0xFB50, 0x11000..<0x12000, 0x1D100..<0x1D200, 0x2F800..<0x2FA20] {
      for value in range {
        guard let scalar = Unicode.Scalar(UInt32(value)), scalar.properties.age.map({ $0.major <= 9 }) ?? false
        else { continue }
        let whole = String(Character(scalar))
        let parts = scalars(whole.decomposedStringWithCanonicalMapping)
        guard parts != [scalar.value] else { continue }
        decompositions[scalar.value] = parts
        // Composition leaves out what does not compose back to itself.
        guard parts.count > 1, scalars(whole.precomposedStringWithCanonicalMapping) == [scalar.value] else { continue }
        let first = scalars(text(parts.dropLast()).precomposedStringWithCanonicalMapping)
        if first.count == 1 { compositions[Self.key(first[0], parts[parts.count - 1])] = scalar.value }
      }
    }
  }

  private static func key(_ first: UInt32, _ second: UInt32) -> UInt64 { UInt64(first) << 32 | UInt64(second) }

  // Hangul by arithmetic (Unicode Standard, section 3.12).
  private static let syllables: Range<UInt32> = 0xAC00..<0xD7A4
  private static let (leads, vowels, tails): (UInt32, UInt32, UInt32) = (0x1100, 0x1161, 0x11A7)

  private func appendDecomposed(_ value: UInt32, to out: inout [UInt32]) {
    if Self.syllables.contains(value) {
      let index = value - Self.syllables.lowerBound
      out += [Self.leads + index / 588, Self.vowels + index % 588 / 28]
      if index % 28 > 0 { out.append(Self.tails + index % 28) }
    } else if let parts = decompositions[value] {
      out += parts
    } else {
      out.append(value)
    }
  }

  private func composed(_ first: UInt32, _ second: UInt32) -> UInt32? {
    if (Self.leads..<Self.leads + 19).contains(first), (Self.vowels..<Self.vowels + 21).contains(second) {
      return Self.syllables.lowerBound + ((first - Self.leads) * 21 + second - Self.vowels) * 28
    }
    if Self.syllables.contains(first), (first - Self.syllables.lowerBound) % 28 == 0,
      (Self.tails + 1..<Self.tails + 28).contains(second)
    {
      return first + second - Self.tails
    }
    return compositions[Self.key(first, second)]
  }

  /// Form C of `run`.
  func compose(_ run: some Sequence<UInt32>) -> [UInt32] {
    var scalars: [UInt32] = []
    for value in run { appendDecomposed(value, to: &scalars) }
    var marked = scalars.map { value in
      (value: value, order: Unicode.Scalar(value).unsafelyUnwrapped.properties.canonicalCombiningClass.rawValue)
    }
    // Marks between two starters in the order of their classes; a stable sort.
    var start = 0
    while start < marked.count {
      guard marked[start].order > 0 else {
        start += 1
        continue
      }
      let end = marked[start...].firstIndex { $0.order == 0 } ?? marked.count
      let sorted = marked[start..<end].enumerated().sorted {
        ($0.element.order, $0.offset) < ($1.element.order, $1.offset)
      }
      marked.replaceSubrange(start..<end, with: sorted.map(\.element))
      start = end
    }
    var out: [UInt32] = []
    var starter: Int?
    var last: UInt8 = 0
    for (value, order) in marked {
      // A mark reaches its starter over marks of lower classes only.
      if let at = starter, out.count == at + 1 || last < order, let whole = composed(out[at], value) {
        out[at] = whole
        continue
      }
      if order == 0 { starter = out.count }
      last = order
      out.append(value)
    }
    return out
  }
}

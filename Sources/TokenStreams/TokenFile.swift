import Files
import Foundation
import Tokenizers

/// Formats of other programs that hold token ids.
package enum TokenFormat: String, Sendable, CaseIterable {
  /// Megatron-LM's indexed dataset: `NAME.bin` and `NAME.idx`.
  case megatron
  /// llm.c's `.bin`: a header of 256 words.
  case llmc
  /// nanoGPT's `.bin`: 16-bit ids and nothing else.
  case nanogpt
  /// datatrove's `.ds`, with `.ds.index` and `.ds.metadata`.
  case datatrove

  /// Whether a file of this name holds tokens, rather than an index of them.
  func matches(_ name: String) -> Bool { name.hasSuffix(self == .datatrove ? ".ds" : ".bin") }
}

/// A file of token ids that another program wrote, and where its documents lie.
struct TokenFile {
  let path: String
  /// Token ranges of the documents, in their order; empty ones are left out.
  private(set) var documents: [Range<Int>] = []
  private let bytes: UnsafeRawBufferPointer
  /// Bytes of one id.
  let width: Int
  private let file: MappedFile

  /// Opens the file and finds its documents: by its index where the format has one, else between the tokens
  /// `endOfText`.
  init(_ path: String, format: TokenFormat, endOfText: UInt32) throws {
    self.path = path
    file = try MappedFile(path)
    func fail(_ reason: String) -> FileError { FileError(path, reason) }
    var body = file.bytes
    var lengths: [Int]?
    switch format {
    case .megatron:
      let index = try MegatronIndex(String(path.dropLast(4)) + ".idx", dataBytes: body.count)
      (width, documents) = (index.width, index.documents)
      lengths = []
    case .llmc:
      guard body.count >= 1024 else { throw fail("is too short for llm.c's header of 1024 bytes") }
      let header = (0..<3).map { Int32(littleEndian: body.loadUnaligned(fromByteOffset: $0 * 4, as: Int32.self)) }
      switch (header[0], header[1]) {
      case (20_240_520, 1): width = 2
      case (20_240_801, 7): width = 4
      default:
        throw fail("has magic \(header[0]) and version \(header[1]): not llm.c's tokens (20240520/1, 20240801/7)")
      }
      guard (body.count - 1024) == Int(header[2]) * width else {
        throw fail(
          "its header says \(header[2]) tokens, it holds \((body.count - 1024) / width): truncated, or another file")
      }
      body = UnsafeRawBufferPointer(rebasing: body[1024...])
    case .nanogpt:
      width = 2
      guard body.count % 2 == 0 else { throw fail("has an odd number of bytes: not nanoGPT's 16-bit tokens") }
    case .datatrove:
      let ends = try Self.words(path + ".index")
      guard let last = ends.last, last > 0, body.count == last * 2 || body.count == last * 4 else {
        throw fail("has \(body.count) bytes, its index says \(ends.last ?? 0) tokens: truncated, or another index")
      }
      width = body.count / last
      var previous = 0
      lengths = try ends.map { end in
        guard end >= previous else { throw FileError(path + ".index", "its document ends are not in order") }
        defer { previous = end }
        return end - previous
      }
    }
    bytes = body
    if format == .megatron { return }
    if let lengths {
      var start = 0
      for length in lengths {
        if length > 0 { documents.append(start..<start + length) }
        start += length
      }
    } else {
      split(at: endOfText)
    }
  }

  private mutating func split(at endOfText: UInt32) {
    let count = bytes.count / width
    var start = 0
    for index in 0..<count where token(index) == endOfText {
      if index > start { documents.append(start..<index) }
      start = index + 1
    }
    if start < count { documents.append(start..<count) }
  }

  private static func words(_ path: String) throws -> [Int] {
    let file = try MappedFile(path)
    guard file.bytes.count % 8 == 0 else { throw FileError(path, "is not a list of 64-bit numbers") }
    return try (0..<file.bytes.count / 8).map { index in
      let word = UInt64(littleEndian: file.bytes.loadUnaligned(fromByteOffset: index * 8, as: UInt64.self))
      guard word < 1 << 48 else { throw FileError(path, "has an impossible document end of \(word)") }
      return Int(word)
    }
  }

  @inline(__always)
  private func token(_ index: Int) -> UInt32 {
    width == 2
      ? UInt32(UInt16(littleEndian: bytes.loadUnaligned(fromByteOffset: index * 2, as: UInt16.self)))
      : UInt32(littleEndian: bytes.loadUnaligned(fromByteOffset: index * 4, as: UInt32.self))
  }

  /// The ids of document `ordinal`.
  func tokens(_ ordinal: Int) -> [UInt32] { documents[ordinal].map(token) }

  /// Throws unless the ids are those of `tokenizer`: documents spread over the file are decoded and encoded again, and
  /// must come out as they were. Another vocabulary decodes to other text, whose ids are different ones.
  ///
  /// - Returns: how many documents were compared
  func prove(_ tokenizer: any Tokenizer) throws -> Int {
    guard !documents.isEmpty else { return 0 }
    let samples = min(64, documents.count)
    var same = 0
    var example: String?
    for sample in 0..<samples {
      let ordinal = sample * documents.count / samples
      var ids = tokens(ordinal)
      if ids.last == tokenizer.endOfText { ids.removeLast() }
      if let bad = ids.first(where: { $0 >= tokenizer.vocabularySize }) {
        throw FileError(
          path,
          "document \(ordinal) has id \(bad), tokenizer \(tokenizer.name) has \(tokenizer.vocabularySize): it was "
            + "made with another tokenizer; build from the text")
      }
      ids = Array(ids.prefix(4096))
      let text = tokenizer.decode(ids)
      // A document cut in the middle of a word may end otherwise.
      let compared = ids.count < 4096 ? ids.count : ids.count - 16
      let isSame = [SpecialTokens.recognized, .asText].contains { special in
        tokenizer.encode(text, special: special).prefix(compared).elementsEqual(ids.prefix(compared))
      }
      if isSame { same += 1 } else if example == nil { example = "document \(ordinal)" }
    }
    guard same * 20 >= samples * 19 else {
      throw FileError(
        path,
        "is not proven to be of tokenizer \(tokenizer.name): of \(samples) documents, decoded and encoded again, "
          + "\(samples - same) have other ids (first \(example ?? "")); name the tokenizer it was made with, or build "
          + "from the text")
    }
    return samples
  }
}

/// Megatron-LM's index, version 1: element type, lengths and places of sequences, and which of them are documents.
private struct MegatronIndex {
  let width: Int
  private(set) var documents: [Range<Int>] = []

  init(_ path: String, dataBytes: Int) throws {
    let file = try MappedFile(path)
    let bytes = file.bytes
    func fail(_ reason: String) -> FileError { FileError(path, reason) }
    func word(_ offset: Int) -> Int {
      Int(truncatingIfNeeded: UInt64(littleEndian: bytes.loadUnaligned(fromByteOffset: offset, as: UInt64.self)))
    }
    guard bytes.count >= 34, bytes[..<9].elementsEqual("MMIDIDX\0\0".utf8), word(9) == 1 else {
      throw fail("is not an index of Megatron-LM, version 1")
    }
    switch bytes[17] {
    case 8: width = 2
    case 4: width = 4
    default: throw fail("has element type \(bytes[17]); ids of 16 bits (8) and 32 bits (4) are read")
    }
    let (sequences, marks) = (word(18), word(26))
    guard sequences >= 0, marks >= 1, sequences < bytes.count, marks < bytes.count,
      bytes.count >= 34 + sequences * 12 + marks * 8
    else { throw fail("is shorter than the \(sequences) sequences it claims: truncated") }
    var starts: [Int] = []
    var end = 0
    for sequence in 0..<sequences {
      let length = Int(Int32(littleEndian: bytes.loadUnaligned(fromByteOffset: 34 + sequence * 4, as: Int32.self)))
      let place = word(34 + sequences * 4 + sequence * 8)
      // Sequences lie end to end, so that a document is one range.
      guard length >= 0, place == end * width, place + length * width <= dataBytes else {
        throw fail("sequence \(sequence) does not lie behind the one before it, within the data")
      }
      starts.append(end)
      end += length
    }
    starts.append(end)
    guard end * width == dataBytes else { throw fail("describes \(end * width) bytes, the data has \(dataBytes)") }
    var previous = 0
    for mark in 0..<marks {
      let sequence = word(34 + sequences * 12 + mark * 8)
      guard previous <= sequence, sequence <= sequences else { throw fail("its documents are not in order") }
      if starts[previous] < starts[sequence] { documents.append(starts[previous]..<starts[sequence]) }
      previous = sequence
    }
    guard previous == sequences else { throw fail("its documents do not cover all sequences") }
  }
}

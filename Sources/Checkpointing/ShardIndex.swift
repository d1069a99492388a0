import Files

/// Where the slices of a shard lie in its file, so that a rank reads what it needs and nothing else.
///
/// In a manifest it is the frame that holds the header, and a line for each slice, in the order of the file: key, count of
/// elements, and its frames. Of a frame it says the compressed bytes and the first 16 digits of their SHA-256.
package struct ShardIndex: Codable, Sendable, Equatable {
  /// A zstd frame: a stretch of a slice.
  struct Frame: Sendable, Equatable {
    let bytes: Int
    let hash: String

    init(bytes: Int, hash: String) { (self.bytes, self.hash) = (bytes, hash) }

    /// Reads what ``text`` wrote; nil when it is something else.
    init?(_ text: some StringProtocol) {
      let parts = text.split(separator: ":")
      guard parts.count == 2, let bytes = Int(parts[0]), (1..<1 << 32).contains(bytes),
        parts[1].count == ShardIndex.digits
      else { return nil }
      (self.bytes, hash) = (bytes, String(parts[1]))
    }

    var text: String { "\(bytes):\(hash)" }
  }

  struct Slice: Sendable, Equatable {
    let key: ShardKey
    let count: Int
    let frames: [Frame]
  }

  /// Of the frame before the first slice.
  let header: Frame
  let slices: [Slice]

  init(header: Frame, slices: [Slice]) { (self.header, self.slices) = (header, slices) }

  /// Bytes of the whole file.
  var bytes: Int { slices.reduce(header.bytes) { $1.frames.reduce($0) { $0 + $1.bytes } } }

  /// Digits of a frame's hash.
  static let digits = 16

  /// Elements of every frame of a slice but its last.
  static var frameElements: Int { CheckpointShard.frameBytes / 4 }

  private enum CodingKeys: String, CodingKey { case header, slices }

  package func encode(to encoder: any Encoder) throws {
    var container = encoder.container(keyedBy: CodingKeys.self)
    try container.encode(header.text, forKey: .header)
    try container.encode(
      slices.map { slice in
        "\(slice.key) \(slice.count)" + slice.frames.map { " " + $0.text }.joined()
      }, forKey: .slices)
  }

  package init(from decoder: any Decoder) throws {
    let container = try decoder.container(keyedBy: CodingKeys.self)
    guard let header = Frame(try container.decode(String.self, forKey: .header)) else {
      throw DecodingError.dataCorruptedError(forKey: .header, in: container, debugDescription: "no frame of a header")
    }
    self.header = header
    slices = try container.decode([String].self, forKey: .slices).map { line in
      guard let slice = Self.slice(line) else {
        throw DecodingError.dataCorruptedError(
          forKey: .slices, in: container, debugDescription: "\(line) is no slice of a shard")
      }
      return slice
    }
  }

  /// Reads a line; nil when it is something else.
  private static func slice(_ line: String) -> Slice? {
    let words = line.split(separator: " ")
    guard words.count >= 2, let count = Int(words[1]), (0..<1 << 48).contains(count),
      let key = ShardKey(String(words[0]), count: count)
    else { return nil }
    let frames = words[2...].compactMap { Frame($0) }
    guard frames.count == words.count - 2, frames.count == (count + frameElements - 1) / frameElements else {
      return nil
    }
    return Slice(key: key, count: count, frames: frames)
  }
}

/// A token that is found by its spelling in a text, before anything is merged.
package struct AddedToken: Sendable {
  package let content: [UInt8]
  package let id: Int
  /// Whether it marks a place rather than being text: what a corpus says must not end a document.
  package var isSpecial = true
  /// Whether it is looked for in normalised text, its own spelling normalised too.
  package var isNormalized = false
}

/// Spellings of tokens, as a tree over their bytes: finds the longest that begins at a place.
struct AddedTokens: Sendable {
  /// Child of a node by (node << 8 | byte); the root is node 0.
  private var children: [Int: Int32] = [:]
  /// The token that ends at a node; −1 where none does.
  private var tokens: [Int64] = [-1]
  private var begins = [Bool](repeating: false, count: 256)

  var isEmpty: Bool { tokens.count == 1 }

  /// - Parameter spellings: of two that are equal the first counts
  init(_ spellings: [(bytes: [UInt8], id: UInt32)]) {
    for (bytes, id) in spellings where !bytes.isEmpty {
      begins[Int(bytes[0])] = true
      var node = 0
      for byte in bytes {
        let key = node << 8 | Int(byte)
        if let child = children[key] {
          node = Int(child)
        } else {
          children[key] = Int32(tokens.count)
          node = tokens.count
          tokens.append(-1)
        }
      }
      if tokens[node] < 0 { tokens[node] = Int64(id) }
    }
  }

  /// The longest token that begins at `start`.
  @inline(__always)
  private func match(_ text: UnsafeBufferPointer<UInt8>, at start: Int) -> (id: UInt32, end: Int)? {
    guard begins[Int(text[start])] else { return nil }
    var (node, end) = (0, start)
    var found: (id: UInt32, end: Int)?
    while end < text.count, let child = children[node << 8 | Int(text[end])] {
      node = Int(child)
      end += 1
      if tokens[node] >= 0 { found = (UInt32(tokens[node]), end) }
    }
    return found
  }

  /// Cuts `text` at these tokens, the leftmost first and the longest at its place.
  ///
  /// - Parameters:
  ///   - part: gets what lies between, with the place where it begins; nothing that is empty
  func split(
    _ text: UnsafeBufferPointer<UInt8>, part: (UnsafeBufferPointer<UInt8>, Int) -> Void, token: (UInt32) -> Void
  ) {
    var (start, i) = (0, 0)
    while i < text.count, !isEmpty {
      guard let (id, end) = match(text, at: i) else {
        i += 1
        continue
      }
      if i > start { part(UnsafeBufferPointer(rebasing: text[start..<i]), start) }
      token(id)
      (start, i) = (end, end)
    }
    if start < text.count { part(UnsafeBufferPointer(rebasing: text[start...]), start) }
  }
}

import Files
import Parallel
import Tokenizers

/// Turns documents into tokens, side by side.
struct DocumentTokens {
  let format: DocumentFormat
  let tokenizer: any Tokenizer
  let pool: ThreadPool

  private static let pieceBytes = 256 << 10

  /// Tokens of every document, its end included, and which of them count. Long texts are cut, so that all threads have
  /// work.
  func tokens(of documents: [Document]) throws -> [(tokens: [UInt32], runs: [TokenRun])] {
    var results = [(tokens: [UInt32], runs: [TokenRun])](repeating: ([], []), count: documents.count)
    var parts: [(document: Int, text: ArraySlice<UInt8>, counts: Bool, continues: Bool)] = []
    for (index, pieces) in try parse(documents).enumerated() {
      if case .tokens(let tokens) = documents[index] {
        results[index] = (tokens, [TokenRun(length: tokens.count, counts: true)])
      }
      if let begin = tokenizer.beginOfText, !pieces.isEmpty {
        results[index] = ([begin], [TokenRun(length: 1, counts: true)])
      }
      let first = parts.count
      for piece in pieces {
        for text in cut(piece.text[...]) { parts.append((index, text, piece.counts, parts.count > first)) }
      }
    }
    var encoded = [[UInt32]](repeating: [], count: parts.count)
    encoded.withUnsafeMutableBufferPointer { encoded in
      let out = encoded.baseAddress
      let special = format.specialTokens
      pool.run(parts.count) {
        out![$0] = tokenizer.encode(parts[$0].text, special: special, continuing: parts[$0].continues)
      }
    }
    for (part, tokens) in zip(parts, encoded) {
      // A template may spell the token that a text begins with.
      let begins = results[part.document].tokens
      if begins.count == 1, begins[0] == tokenizer.beginOfText, tokens.first == begins[0] {
        results[part.document] = ([], [])
      }
      results[part.document].tokens += tokens
      results[part.document].runs.append(TokenRun(length: tokens.count, counts: part.counts))
    }
    for index in results.indices where results[index].tokens.last != tokenizer.endOfText {
      results[index].tokens.append(tokenizer.endOfText)
      results[index].runs.append(TokenRun(length: 1, counts: true))
    }
    return results
  }

  /// The texts of documents that are not ids; records are parsed side by side.
  private func parse(_ documents: [Document]) throws -> [[TextPiece]] {
    var texts = [Result<[TextPiece], any Error>](repeating: .success([]), count: documents.count)
    texts.withUnsafeMutableBufferPointer { texts in
      let out = texts.baseAddress
      let format = format
      pool.run(documents.count) { index in
        switch documents[index] {
        case .text(let text): out![index] = .success([TextPiece(text: text, counts: true)])
        case .record(let line, let place): out![index] = Result { try format.pieces(of: line, place: place) }
        case .tokens: break
        }
      }
    }
    return try texts.map { try $0.get() }
  }

  /// `text` in parts of about 256 KB that encode as the whole does.
  private func cut(_ text: ArraySlice<UInt8>) -> [ArraySlice<UInt8>] {
    var parts: [ArraySlice<UInt8>] = []
    var start = text.startIndex
    while text.endIndex - start > 2 * Self.pieceBytes,
      let end = (start + Self.pieceBytes..<text.endIndex).first(where: {
        tokenizer.mayCut(between: text[$0 - 1], text[$0])
      })
    {
      parts.append(text[start..<end])
      start = end
    }
    if start < text.endIndex { parts.append(text[start...]) }
    return parts
  }
}

import Chat
import Files
import Foundation
import Tokenizers

/// How documents are found in a file.
package enum DocumentFormat: Sendable {
  /// Plain text: the whole file, or the parts between lines that are equal to `separator`.
  case text(separator: String?)
  /// JSON Lines: the string in `field`.
  case jsonField(String)
  /// JSON Lines of questions and answers, put into `template` at `{question}` and `{answer}`; the loss counts from
  /// where the answer begins when `answerOnly`.
  case questions(template: String, answerOnly: Bool)
  /// JSON Lines: a list in `field` of `{"text": …, "loss": true or false}`, end to end; what has no loss does not count.
  case pieces(String)
  /// JSON Lines: a list of messages in `field`, `{"role": …, "content": …}`, put into a model's chat template, whose special
  /// tokens are tokens; only the assistant's answers count.
  case conversations(field: String, template: ChatTemplate)
  /// Ids that another program made; they must be proven to be of the dataset's tokenizer.
  case tokens(TokenFormat)
}

/// One document, as it is found in its file.
enum Document: Sendable {
  case text([UInt8])
  /// A line of JSON, and where it stands, for errors.
  case record([UInt8], place: String)
  /// Ids, as they are.
  case tokens([UInt32])

  var byteCount: Int {
    switch self {
    case .text(let text), .record(let text, _): text.count
    case .tokens(let tokens): tokens.count * 4
    }
  }
}

/// Text that counts in the loss, or does not.
struct TextPiece: Sendable {
  let text: [UInt8]
  let counts: Bool
}

extension DocumentFormat {
  /// What spellings of special tokens in its texts are.
  var specialTokens: SpecialTokens { if case .conversations = self { .recognized } else { .asText } }

  /// The text in a line of JSON, in pieces that count in the loss or do not.
  func pieces(of record: [UInt8], place: String) throws -> [TextPiece] {
    guard let object = try? JSONSerialization.jsonObject(with: Data(record)) as? [String: Any] else {
      throw FileError(place, "is not a JSON object")
    }
    func string(_ field: String) throws -> String {
      guard let text = object[field] as? String else {
        let known = object.keys.sorted().joined(separator: ", ")
        throw FileError(place, "has no text in field \(field); its fields are \(known)")
      }
      return text
    }
    switch self {
    case .text, .tokens: return [TextPiece(text: record, counts: true)]
    case .jsonField(let field): return [TextPiece(text: Array(try string(field).utf8), counts: true)]
    case .pieces(let field):
      guard let list = object[field] as? [[String: Any]] else {
        throw FileError(place, "has no list of pieces in field \(field)")
      }
      return try list.map { piece in
        guard let text = piece["text"] as? String, let counts = piece["loss"] as? Bool else {
          throw FileError(place, "a piece in field \(field) is not {\"text\": …, \"loss\": true or false}")
        }
        return TextPiece(text: Array(text.utf8), counts: counts)
      }
    case .conversations(let field, let template):
      guard let list = object[field] as? [[String: Any]] else {
        throw FileError(place, "has no list of messages in field \(field)")
      }
      let messages = try list.map { message in
        guard let role = message["role"] as? String, let content = message["content"] as? String else {
          throw FileError(place, "a message in field \(field) is not {\"role\": …, \"content\": …}")
        }
        return ChatMessage(role: role, content: content)
      }
      do {
        return try template.pieces(messages).map { TextPiece(text: Array($0.text.utf8), counts: $0.counts) }
      } catch let error as TemplateError { throw FileError(place, "\(error)") }
    case .questions(let template, let answerOnly):
      let parts = template.components(separatedBy: "{answer}")
      guard parts.count == 2 else { throw FileError("--template", "must hold {answer} once: \(template)") }
      let question = parts[0].replacingOccurrences(of: "{question}", with: try string("question"))
      let answer = try string("answer") + parts[1]
      guard answerOnly else { return [TextPiece(text: Array((question + answer).utf8), counts: true)] }
      return [
        TextPiece(text: Array(question.utf8), counts: false), TextPiece(text: Array(answer.utf8), counts: true),
      ]
    }
  }
}

/// What gives the documents of one input in order.
protocol DocumentSource: AnyObject {
  /// Bytes of the input taken so far, after decompression.
  var bytesRead: Int { get }
  /// The next document; nil at the end. Empty ones are passed over.
  func next() throws -> Document?
}

/// The documents of a file of tokens.
final class TokenReader: DocumentSource {
  private let file: TokenFile
  private var ordinal = 0
  private(set) var bytesRead = 0

  init(_ file: TokenFile) { self.file = file }

  func next() throws -> Document? {
    guard ordinal < file.documents.count else { return nil }
    defer { ordinal += 1 }
    let tokens = file.tokens(ordinal)
    bytesRead += tokens.count * file.width
    return .tokens(tokens)
  }
}

/// Reads the documents of a text in order; `.gz` and `.zst` are decompressed on the way.
final class DocumentReader: DocumentSource {
  private let path: String
  private let format: DocumentFormat
  private let read: (UnsafeMutableRawBufferPointer) throws -> Int
  private let close: () throws -> Void
  private var buffer: [UInt8] = []
  private var chunk = [UInt8](repeating: 0, count: 1 << 20)
  private var position = 0
  private var line = 0
  private var isAtEnd = false
  private(set) var bytesRead = 0

  /// - Parameter path: `-` for standard input
  init(_ path: String, format: DocumentFormat) throws {
    let isPiped = path == DatasetInputs.pipe
    self.path = isPiped ? "standard input" : path
    self.format = format
    if !isPiped { try refusePointer(at: path) }
    if path.hasSuffix(".zst") {
      let reader = try ZstdReader(path)
      read = { try reader.read(into: $0) }
      close = {}
      return
    }
    var process: Process?
    let handle: FileHandle
    if path.hasSuffix(".gz") {
      let gzip = Process()
      gzip.executableURL = URL(fileURLWithPath: "/usr/bin/env")
      gzip.arguments = ["gzip", "-dc", "--", path]
      let pipe = Pipe()
      gzip.standardOutput = pipe
      do { try gzip.run() } catch { throw FileError(path, "gzip cannot be started: \(error)", kind: .system) }
      handle = pipe.fileHandleForReading
      process = gzip
    } else {
      guard let file = isPiped ? .standardInput : FileHandle(forReadingAtPath: path) else {
        throw FileError(path, "cannot be opened; is it there, and readable?", kind: .system)
      }
      handle = file
    }
    read = { out in
      let count = Foundation.read(handle.fileDescriptor, out.baseAddress, out.count)
      guard count >= 0 else { throw FileError.system(path, "cannot be read") }
      return count
    }
    close = { [process] in
      process?.waitUntilExit()
      if let process, process.terminationStatus != 0 {
        throw FileError(path, "gzip says it is damaged (status \(process.terminationStatus))")
      }
    }
  }

  /// The next line without its line feed; nil at the end.
  private func nextLine() throws -> ArraySlice<UInt8>? {
    var searched = position
    while true {
      if let end = buffer[searched...].firstIndex(of: UInt8(ascii: "\n")) {
        defer { position = end + 1 }
        line += 1
        return buffer[position..<end]
      }
      if isAtEnd {
        guard position < buffer.count else { return nil }
        defer { position = buffer.count }
        line += 1
        return buffer[position...]
      }
      searched = buffer.count - position
      buffer.removeFirst(position)
      position = 0
      try fill()
    }
  }

  private func fill() throws {
    let count = try chunk.withUnsafeMutableBytes { try read($0) }
    buffer += chunk[..<count]
    bytesRead += count
    if count == 0 {
      isAtEnd = true
      try close()
    }
  }

  func next() throws -> Document? {
    if case .text(let separator) = format {
      while let text = try nextText(separator) {
        if !text.isEmpty { return .text(text) }
      }
      return nil
    }
    while let line = try nextLine() {
      if line.allSatisfy({ $0 == 32 || $0 == 13 || $0 == 9 }) { continue }
      return .record(Array(line), place: "\(path):\(self.line)")
    }
    return nil
  }

  /// Refuses JSON that nobody said how to read: its syntax is not a text to train on.
  private func refuseRecords(_ text: ArraySlice<UInt8>) throws {
    guard let first = text.first(where: { !" \t\r\n".utf8.contains($0) }), "{[".utf8.contains(first) else { return }
    let line = text.drop { "\r\n".utf8.contains($0) }.prefix { $0 != UInt8(ascii: "\n") }
    if let record = try? JSONSerialization.jsonObject(with: Data(line)) as? [String: Any] {
      throw FileError(
        path,
        "is JSON Lines: \(Self.howToRead(record)) (its fields are \(record.keys.sorted().joined(separator: ", ")))")
    }
    guard path.contains(".json") else { return }
    throw FileError(path, "is JSON, but not JSON Lines, an object a line: `jq -c '.[]'` makes them of a list")
  }

  /// The options that read records such as this one.
  private static func howToRead(_ record: [String: Any]) -> String {
    if record["question"] is String, record["answer"] is String {
      return "--template 'Question: {question}\\nAnswer: {answer}\\n' makes texts of question and answer"
    }
    let texts = record.compactMapValues { $0 as? String }
    if let field = ["text", "content", "raw_content", "document", "body", "article"].first(where: { texts[$0] != nil })
    {
      return "--field \(field) is likely its text"
    }
    if let pieces = record.first(where: { ($0.value as? [[String: Any]])?.first?["text"] is String })?.key {
      return "--pieces \(pieces) is likely its text"
    }
    guard let longest = texts.max(by: { ($0.value.utf8.count, $1.key) < ($1.value.utf8.count, $0.key) }) else {
      return "--field names the field that holds the text"
    }
    return "--field \(longest.key) is the longest of its texts"
  }

  private func nextText(_ separator: String?) throws -> [UInt8]? {
    guard let separator else {
      while !isAtEnd { try fill() }
      guard position < buffer.count else { return nil }
      defer { position = buffer.count }
      try refuseRecords(buffer[position...])
      return Array(buffer[position...])
    }
    var text: [UInt8] = []
    var isFirst = true
    while let line = try nextLine() {
      if line.elementsEqual(separator.utf8) { return text }
      if !isFirst { text.append(UInt8(ascii: "\n")) }
      text += line
      isFirst = false
    }
    return isFirst ? nil : text
  }
}

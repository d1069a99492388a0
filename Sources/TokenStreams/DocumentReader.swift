import Files
import Foundation

/// How documents are found in a file.
package enum DocumentFormat: Sendable {
  /// Plain text: the whole file, or the parts between lines that are equal to `separator`.
  case text(separator: String?)
  /// JSON Lines: the string in `field`.
  case jsonField(String)
  /// JSON Lines of questions and answers, put into `template` at `{question}` and `{answer}`; the loss counts from
  /// where the answer begins when `answerOnly`.
  case questions(template: String, answerOnly: Bool)
}

/// One document: its text, and how many bytes of it do not count in the loss.
package struct Document: Sendable {
  package let text: [UInt8]
  package let maskedBytes: Int
}

/// Reads the documents of a file in order; `.gz` and `.zst` are decompressed on the way.
final class DocumentReader {
  private let path: String
  private let format: DocumentFormat
  private let read: (UnsafeMutableRawBufferPointer) throws -> Int
  private let close: () throws -> Void
  private var buffer: [UInt8] = []
  private var position = 0
  private var line = 0
  private var isAtEnd = false
  /// Bytes of the input taken so far, after decompression.
  private(set) var bytesRead = 0

  init(_ path: String, format: DocumentFormat) throws {
    self.path = path
    self.format = format
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
      guard let file = FileHandle(forReadingAtPath: path) else {
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
    let old = buffer.count
    buffer.append(contentsOf: repeatElement(0, count: 1 << 18))
    let count = try buffer.withUnsafeMutableBytes { bytes in
      try read(UnsafeMutableRawBufferPointer(rebasing: bytes[old...]))
    }
    buffer.removeLast(buffer.count - old - count)
    bytesRead += count
    if count == 0 {
      isAtEnd = true
      try close()
    }
  }

  /// The next document; nil at the end. Empty ones are passed over.
  func next() throws -> Document? {
    switch format {
    case .text(let separator):
      while true {
        guard let text = try nextText(separator) else { return nil }
        if !text.isEmpty { return Document(text: text, maskedBytes: 0) }
      }
    case .jsonField(let field):
      guard let object = try nextObject() else { return nil }
      return Document(text: Array(try string(field, of: object).utf8), maskedBytes: 0)
    case .questions(let template, let answerOnly):
      guard let object = try nextObject() else { return nil }
      let parts = template.components(separatedBy: "{answer}")
      guard parts.count == 2 else {
        throw FileError("--template", "must hold {answer} once: \(template)")
      }
      let question = parts[0].replacingOccurrences(
        of: "{question}", with: try string("question", of: object))
      let answer = try string("answer", of: object) + parts[1]
      return Document(
        text: Array((question + answer).utf8), maskedBytes: answerOnly ? question.utf8.count : 0)
    }
  }

  private func nextText(_ separator: String?) throws -> [UInt8]? {
    guard let separator else {
      while !isAtEnd { try fill() }
      guard position < buffer.count else { return nil }
      defer { position = buffer.count }
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

  private func nextObject() throws -> [String: Any]? {
    while let bytes = try nextLine() {
      if bytes.allSatisfy({ $0 == 32 || $0 == 13 || $0 == 9 }) { continue }
      guard let object = try? JSONSerialization.jsonObject(with: Data(bytes)) as? [String: Any] else {
        throw FileError("\(path):\(line)", "is not a JSON object")
      }
      return object
    }
    return nil
  }

  private func string(_ field: String, of object: [String: Any]) throws -> String {
    guard let text = object[field] as? String else {
      let known = object.keys.sorted().joined(separator: ", ")
      throw FileError("\(path):\(line)", "has no text in field \(field); its fields are \(known)")
    }
    return text
  }
}

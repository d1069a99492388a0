/// What a template is made of.
indirect enum TemplateNode {
  case text(String)
  case output(TemplateExpression)
  case condition([(test: TemplateExpression?, body: [TemplateNode])])
  case loop(names: [String], over: TemplateExpression, filter: TemplateExpression?, body: [TemplateNode])
  case assignment(name: String, member: String?, value: TemplateExpression)
}

indirect enum TemplateExpression {
  case literal(TemplateValue)
  case name(String)
  case list([TemplateExpression])
  case object([(TemplateExpression, TemplateExpression)])
  case member(TemplateExpression, String)
  case index(TemplateExpression, TemplateExpression)
  case slice(TemplateExpression, TemplateExpression?, TemplateExpression?, TemplateExpression?)
  case call(TemplateExpression, [TemplateExpression], [(String, TemplateExpression)])
  case filter(String, TemplateExpression, [TemplateExpression], [(String, TemplateExpression)])
  case test(String, TemplateExpression, negated: Bool)
  case unary(String, TemplateExpression)
  case binary(String, TemplateExpression, TemplateExpression)
  case choice(TemplateExpression, test: TemplateExpression, otherwise: TemplateExpression?)
}

/// A template that cannot be used, and why.
package struct TemplateError: Error, CustomStringConvertible {
  package let reason: String
  package var description: String { "chat template: \(reason)" }

  package init(_ reason: String) { self.reason = reason }
}

/// The parts of a template's text: what is printed, and the words of what is computed.
enum TemplateToken: Equatable {
  case text(String)
  case beginOutput, endOutput, beginStatement, endStatement
  case name(String)
  case string(String)
  case integer(Int)
  case number(Double)
  case symbol(String)
}

/// Cuts a template into tokens, with the white space that transformers leaves: `trim_blocks` and `lstrip_blocks`.
struct TemplateLexer {
  private let text: [Unicode.Scalar]
  private var position = 0
  private var tokens: [TemplateToken] = []

  static func tokens(_ source: String) throws(TemplateError) -> [TemplateToken] {
    var lexer = TemplateLexer(source)
    try lexer.run()
    return lexer.tokens
  }

  private init(_ source: String) {
    var scalars = Array(source.unicodeScalars)
    // Jinja leaves out the template's last line feed.
    if scalars.last == "\n" { scalars.removeLast() }
    text = scalars
  }

  private func starts(_ word: String, at place: Int) -> Bool {
    text[place...].starts(with: word.unicodeScalars)
  }

  private static func isSpace(_ scalar: Unicode.Scalar) -> Bool { [" ", "\t", "\n", "\r"].contains(scalar) }

  private mutating func run() throws(TemplateError) {
    var literal: [Unicode.Scalar] = []
    /// Whether white space before the next text goes.
    var strips = false
    while position < text.count {
      guard text[position] == "{", position + 1 < text.count, ["{", "%", "#"].contains(text[position + 1]) else {
        if strips, Self.isSpace(text[position]) {
          position += 1
          continue
        }
        strips = false
        literal.append(text[position])
        position += 1
        continue
      }
      let kind = text[position + 1]
      position += 2
      if position < text.count, text[position] == "-" {
        while let last = literal.last, Self.isSpace(last) { literal.removeLast() }
        position += 1
      } else if position < text.count, text[position] == "+" {
        position += 1
      } else if kind != "{" {
        // A tag alone on its line leaves no blanks before it.
        var kept = literal
        while let last = kept.last, last == " " || last == "\t" { kept.removeLast() }
        if kept.last == "\n" || (kept.isEmpty && (tokens.isEmpty || endsLine)) { literal = kept }
      }
      append(&literal)
      strips = try tag(kind)
    }
    append(&literal)
  }

  /// Whether what was printed so far ended with a line feed that a tag took.
  private var endsLine = false

  private mutating func append(_ literal: inout [Unicode.Scalar]) {
    if !literal.isEmpty { tokens.append(.text(String(String.UnicodeScalarView(literal)))) }
    literal = []
  }

  /// Reads a tag of this kind to its end; whether white space behind it goes.
  private mutating func tag(_ kind: Unicode.Scalar) throws(TemplateError) -> Bool {
    let close = kind == "{" ? "}}" : kind == "%" ? "%}" : "#}"
    if kind == "{" { tokens.append(.beginOutput) }
    if kind == "%" { tokens.append(.beginStatement) }
    endsLine = false
    while position < text.count {
      let strips = text[position] == "-" && starts(close, at: position + 1)
      if strips || starts(close, at: position) {
        position += strips ? 3 : 2
        if kind == "{" { tokens.append(.endOutput) }
        if kind == "%" { tokens.append(.endStatement) }
        if kind != "{", !strips, position < text.count, text[position] == "\n" {
          position += 1
          endsLine = true
        }
        return strips
      }
      if kind == "#" { position += 1 } else { try word() }
    }
    throw TemplateError("a tag is not closed by \(close)")
  }

  private mutating func word() throws(TemplateError) {
    let first = text[position]
    if Self.isSpace(first) {
      position += 1
    } else if first == "'" || first == "\"" {
      tokens.append(.string(try string(until: first)))
    } else if ("0"..."9").contains(first) {
      let start = position
      while position < text.count, ("0"..."9").contains(text[position]) { position += 1 }
      let isReal = position + 1 < text.count && text[position] == "." && ("0"..."9").contains(text[position + 1])
      if isReal {
        position += 1
        while position < text.count, ("0"..."9").contains(text[position]) { position += 1 }
      }
      let digits = String(String.UnicodeScalarView(text[start..<position]))
      if let value = Int(digits) {
        tokens.append(.integer(value))
      } else if let value = Double(digits) {
        tokens.append(.number(value))
      } else {
        throw TemplateError("\(digits) is no number")
      }
    } else if first == "_" || first.properties.isAlphabetic {
      let start = position
      while position < text.count,
        text[position] == "_" || text[position].properties.isAlphabetic || ("0"..."9").contains(text[position])
      {
        position += 1
      }
      tokens.append(.name(String(String.UnicodeScalarView(text[start..<position]))))
    } else {
      for symbol in ["==", "!=", "<=", ">=", "//", "**"] where starts(symbol, at: position) {
        tokens.append(.symbol(symbol))
        position += 2
        return
      }
      guard "+-*/%~|.,:()[]{}<>=".unicodeScalars.contains(first) else {
        throw TemplateError("the character \(first) has no meaning there")
      }
      tokens.append(.symbol(String(Character(first))))
      position += 1
    }
  }

  private mutating func string(until quote: Unicode.Scalar) throws(TemplateError) -> String {
    var out = String.UnicodeScalarView()
    position += 1
    while position < text.count {
      let scalar = text[position]
      position += 1
      if scalar == quote { return String(out) }
      guard scalar == "\\", position < text.count else {
        out.append(scalar)
        continue
      }
      let known: [Unicode.Scalar: Unicode.Scalar] = ["n": "\n", "t": "\t", "r": "\r", "\\": "\\", "'": "'", "\"": "\""]
      guard let meant = known[text[position]] else {
        throw TemplateError("the escape \\\(text[position]) is not supported")
      }
      out.append(meant)
      position += 1
    }
    throw TemplateError("a string is not closed")
  }
}

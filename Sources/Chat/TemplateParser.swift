/// Builds a template out of its tokens: the part of Jinja that models' chat templates use. The rest is refused by name.
struct TemplateParser {
  private let tokens: [TemplateToken]
  private var position = 0
  private var depth = 0
  private static let mostDepth = 100

  static func parse(_ source: String) throws(TemplateError) -> [TemplateNode] {
    var parser = TemplateParser(tokens: try TemplateLexer.tokens(source))
    let nodes = try parser.nodes(until: [])
    guard parser.position == parser.tokens.count else { throw TemplateError("a block ends that never began") }
    return nodes
  }

  private init(tokens: [TemplateToken]) { self.tokens = tokens }

  private var next: TemplateToken? { position < tokens.count ? tokens[position] : nil }

  private mutating func take(_ token: TemplateToken) -> Bool {
    guard next == token else { return false }
    position += 1
    return true
  }

  private mutating func expect(_ token: TemplateToken) throws(TemplateError) {
    guard take(token) else { throw TemplateError("expected \(token), found \(next.map { "\($0)" } ?? "its end")") }
  }

  private mutating func identifier() throws(TemplateError) -> String {
    guard case .name(let name) = next else {
      throw TemplateError("expected a name, found \(next.map { "\($0)" } ?? "its end")")
    }
    position += 1
    return name
  }

  private mutating func deeper<Result>(
    _ body: (inout TemplateParser) throws(TemplateError) -> Result
  ) throws(TemplateError) -> Result {
    depth += 1
    guard depth <= Self.mostDepth else { throw TemplateError("is nested more than \(Self.mostDepth) deep") }
    defer { depth -= 1 }
    return try body(&self)
  }

  // MARK: - Statements

  /// Nodes up to a statement that begins with one of `ends`, which stays.
  private mutating func nodes(until ends: Set<String>) throws(TemplateError) -> [TemplateNode] {
    try deeper { parser throws(TemplateError) in
      var nodes: [TemplateNode] = []
      while let token = parser.next {
        switch token {
        case .text(let text):
          parser.position += 1
          nodes.append(.text(text))
        case .beginOutput:
          parser.position += 1
          nodes.append(.output(try parser.expression()))
          try parser.expect(.endOutput)
        case .beginStatement:
          if parser.position + 1 < parser.tokens.count, case .name(let name) = parser.tokens[parser.position + 1],
            ends.contains(name)
          {
            return nodes
          }
          parser.position += 1
          if let node = try parser.statement() { nodes.append(node) }
        default: throw TemplateError("found \(token) outside of a tag")
        }
      }
      guard ends.isEmpty else { throw TemplateError("has no \(ends.sorted().joined(separator: " or "))") }
      return nodes
    }
  }

  private mutating func statement() throws(TemplateError) -> TemplateNode? {
    let name = try identifier()
    switch name {
    case "if": return try condition()
    case "for": return try loop()
    case "set":
      let name = try identifier()
      let member = take(.symbol(".")) ? try identifier() : nil
      guard take(.symbol("=")) else { throw TemplateError("set without = is not supported") }
      let value = try expression()
      try expect(.endStatement)
      return .assignment(name: name, member: member, value: value)
    // They mark what a training set counts, and print nothing.
    case "generation", "endgeneration":
      try expect(.endStatement)
      return nil
    default: throw TemplateError("the statement \(name) is not supported (if, for and set are)")
    }
  }

  private mutating func condition() throws(TemplateError) -> TemplateNode {
    var branches: [(test: TemplateExpression?, body: [TemplateNode])] = []
    var test: TemplateExpression? = try expression()
    while true {
      try expect(.endStatement)
      branches.append((test, try nodes(until: ["elif", "else", "endif"])))
      try expect(.beginStatement)
      switch try identifier() {
      case "elif" where test != nil: test = try expression()
      case "else" where test != nil: test = nil
      case "endif":
        try expect(.endStatement)
        return .condition(branches)
      default: throw TemplateError("an else is not the last branch")
      }
    }
  }

  private mutating func loop() throws(TemplateError) -> TemplateNode {
    var names = [try identifier()]
    while take(.symbol(",")) { names.append(try identifier()) }
    try expect(.name("in"))
    let values = try alternatives()
    let filter = take(.name("if")) ? try expression() : nil
    try expect(.endStatement)
    let body = try nodes(until: ["endfor", "else"])
    try expect(.beginStatement)
    guard try identifier() == "endfor" else { throw TemplateError("else of a for is not supported") }
    try expect(.endStatement)
    return .loop(names: names, over: values, filter: filter, body: body)
  }

  // MARK: - Expressions, the loosest first

  private mutating func expression() throws(TemplateError) -> TemplateExpression {
    try deeper { parser throws(TemplateError) in
      let value = try parser.alternatives()
      guard parser.take(.name("if")) else { return value }
      let test = try parser.alternatives()
      let otherwise = parser.take(.name("else")) ? try parser.expression() : nil
      return .choice(value, test: test, otherwise: otherwise)
    }
  }

  private mutating func alternatives() throws(TemplateError) -> TemplateExpression {
    var left = try conjunction()
    while take(.name("or")) { left = .binary("or", left, try conjunction()) }
    return left
  }

  private mutating func conjunction() throws(TemplateError) -> TemplateExpression {
    var left = try negation()
    while take(.name("and")) { left = .binary("and", left, try negation()) }
    return left
  }

  private mutating func negation() throws(TemplateError) -> TemplateExpression {
    guard take(.name("not")) else { return try comparison() }
    return try deeper { parser throws(TemplateError) in .unary("not", try parser.negation()) }
  }

  private mutating func comparison() throws(TemplateError) -> TemplateExpression {
    var left = try sum()
    while true {
      if case .symbol(let symbol) = next, ["==", "!=", "<", ">", "<=", ">="].contains(symbol) {
        position += 1
        left = .binary(symbol, left, try sum())
      } else if take(.name("in")) {
        left = .binary("in", left, try sum())
      } else if next == .name("not"), position + 1 < tokens.count, tokens[position + 1] == .name("in") {
        position += 2
        left = .unary("not", .binary("in", left, try sum()))
      } else if take(.name("is")) {
        let negated = take(.name("not"))
        left = .test(try identifier(), left, negated: negated)
      } else {
        return left
      }
    }
  }

  private mutating func sum() throws(TemplateError) -> TemplateExpression {
    var left = try product()
    while case .symbol(let symbol) = next, ["+", "-", "~"].contains(symbol) {
      position += 1
      left = .binary(symbol, left, try product())
    }
    return left
  }

  private mutating func product() throws(TemplateError) -> TemplateExpression {
    var left = try sign()
    while case .symbol(let symbol) = next, ["*", "/", "//", "%"].contains(symbol) {
      position += 1
      left = .binary(symbol, left, try sign())
    }
    return left
  }

  private mutating func sign() throws(TemplateError) -> TemplateExpression {
    guard take(.symbol("-")) else { return try filtered() }
    return try deeper { parser throws(TemplateError) in .unary("-", try parser.sign()) }
  }

  private mutating func filtered() throws(TemplateError) -> TemplateExpression {
    var value = try postfix(try primary())
    while take(.symbol("|")) {
      let name = try identifier()
      let arguments = take(.symbol("(")) ? try self.arguments() : ([], [])
      value = try postfix(.filter(name, value, arguments.0, arguments.1))
    }
    return value
  }

  private mutating func postfix(_ start: TemplateExpression) throws(TemplateError) -> TemplateExpression {
    var value = start
    while true {
      if take(.symbol(".")) {
        value = .member(value, try identifier())
      } else if take(.symbol("(")) {
        let (positional, named) = try arguments()
        value = .call(value, positional, named)
      } else if take(.symbol("[")) {
        value = try subscripted(value)
      } else {
        return value
      }
    }
  }

  private mutating func subscripted(_ value: TemplateExpression) throws(TemplateError) -> TemplateExpression {
    var parts: [TemplateExpression?] = [nil]
    var isSlice = false
    while !take(.symbol("]")) {
      if take(.symbol(":")) {
        isSlice = true
        parts.append(nil)
      } else {
        guard parts[parts.count - 1] == nil else { throw TemplateError("expected ] of an index") }
        parts[parts.count - 1] = try expression()
      }
    }
    if isSlice {
      guard parts.count <= 3 else { throw TemplateError("a slice has more than three parts") }
      return .slice(value, parts[0], parts[1], parts.count > 2 ? parts[2] : nil)
    }
    guard let index = parts[0] else { throw TemplateError("an index is empty") }
    return .index(value, index)
  }

  private mutating func arguments() throws(TemplateError) -> ([TemplateExpression], [(String, TemplateExpression)]) {
    var positional: [TemplateExpression] = []
    var named: [(String, TemplateExpression)] = []
    while !take(.symbol(")")) {
      if case .name(let name) = next, position + 1 < tokens.count, tokens[position + 1] == .symbol("=") {
        position += 2
        named.append((name, try expression()))
      } else {
        positional.append(try expression())
      }
      if next != .symbol(")") { try expect(.symbol(",")) }
    }
    return (positional, named)
  }

  private mutating func primary() throws(TemplateError) -> TemplateExpression {
    guard let token = next else { throw TemplateError("ends within an expression") }
    position += 1
    switch token {
    case .string(let text): return .literal(.string(text))
    case .integer(let value): return .literal(.integer(value))
    case .number(let value): return .literal(.number(value))
    case .name("true"), .name("True"): return .literal(.boolean(true))
    case .name("false"), .name("False"): return .literal(.boolean(false))
    case .name("none"), .name("None"): return .literal(.none)
    case .name(let name): return .name(name)
    case .symbol("("):
      let first = try expression()
      guard next == .symbol(",") else {
        try expect(.symbol(")"))
        return first
      }
      var values = [first]
      while take(.symbol(",")), next != .symbol(")") { values.append(try expression()) }
      try expect(.symbol(")"))
      return .list(values)
    case .symbol("["):
      var values: [TemplateExpression] = []
      while !take(.symbol("]")) {
        values.append(try expression())
        if next != .symbol("]") { try expect(.symbol(",")) }
      }
      return .list(values)
    case .symbol("{"):
      var members: [(TemplateExpression, TemplateExpression)] = []
      while !take(.symbol("}")) {
        let key = try expression()
        try expect(.symbol(":"))
        members.append((key, try expression()))
        if next != .symbol("}") { try expect(.symbol(",")) }
      }
      return .object(members)
    default: throw TemplateError("found \(token) where a value belongs")
    }
  }
}

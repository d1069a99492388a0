/// Runs a template. Whatever it says, it ends: steps, nesting and output are bounded.
struct TemplateInterpreter {
  private var scopes: [[String: TemplateValue]]
  private var output = ""
  private var steps = 0
  private static let mostSteps = 1_000_000
  private static let mostOutput = 16 << 20

  static func run(_ nodes: [TemplateNode], _ variables: [String: TemplateValue]) throws(TemplateError) -> String {
    var interpreter = TemplateInterpreter(scopes: [variables])
    try interpreter.run(nodes)
    return interpreter.output
  }

  private init(scopes: [[String: TemplateValue]]) { self.scopes = scopes }

  private mutating func step(_ count: Int = 1) throws(TemplateError) {
    steps += count
    guard steps <= Self.mostSteps else { throw TemplateError("does not end after \(Self.mostSteps) steps") }
  }

  /// A value that holds others, all of which count: nobody makes a text of 2^40 elements by putting a list twice into a list.
  private mutating func charged(_ value: TemplateValue) throws(TemplateError) -> TemplateValue {
    try step(value.weight(upTo: Self.mostSteps))
    return value
  }

  // MARK: - Statements

  private mutating func run(_ nodes: [TemplateNode]) throws(TemplateError) {
    for node in nodes {
      try step()
      switch node {
      case .text(let text): try write(text)
      case .output(let expression): try write(try value(expression).text)
      case .condition(let branches):
        for branch in branches {
          if let test = branch.test, try !value(test).isTrue { continue }
          try run(branch.body)
          break
        }
      case .loop(let names, let values, let filter, let body): try loop(names, values, filter, body)
      case .assignment(let name, let member, let expression):
        let assigned = try value(expression)
        guard let member else {
          scopes[scopes.count - 1][name] = assigned
          continue
        }
        guard case .namespace(let space) = lookUp(name) else {
          throw TemplateError("\(name) is no namespace to set members of")
        }
        space.members[member] = assigned
      }
    }
  }

  private mutating func write(_ text: String) throws(TemplateError) {
    output += text
    guard output.utf8.count <= Self.mostOutput else { throw TemplateError("writes more than \(Self.mostOutput) bytes") }
  }

  private mutating func loop(
    _ names: [String], _ over: TemplateExpression, _ filter: TemplateExpression?, _ body: [TemplateNode]
  ) throws(TemplateError) {
    func bound(_ item: TemplateValue) throws(TemplateError) -> [String: TemplateValue] {
      if names.count == 1 { return [names[0]: item] }
      guard case .list(let parts) = item, parts.count == names.count else {
        throw TemplateError("for \(names.joined(separator: ", ")): an element is not of so many parts")
      }
      return Dictionary(zip(names, parts), uniquingKeysWith: { $1 })
    }
    var items: [TemplateValue] = []
    for item in try elements(value(over)) {
      guard let filter else {
        items.append(item)
        continue
      }
      scopes.append(try bound(item))
      let isKept = try value(filter).isTrue
      scopes.removeLast()
      if isKept { items.append(item) }
    }
    for (index, item) in items.enumerated() {
      try step()
      var scope = try bound(item)
      scope["loop"] = .object([
        ("index", .integer(index + 1)), ("index0", .integer(index)), ("first", .boolean(index == 0)),
        ("last", .boolean(index == items.count - 1)), ("length", .integer(items.count)),
        ("revindex", .integer(items.count - index)), ("revindex0", .integer(items.count - index - 1)),
        ("previtem", index > 0 ? items[index - 1] : .undefined),
        ("nextitem", index + 1 < items.count ? items[index + 1] : .undefined),
      ])
      // What a round sets is gone after it, as in Jinja.
      scopes.append(scope)
      try run(body)
      scopes.removeLast()
    }
  }

  private func elements(_ value: TemplateValue) throws(TemplateError) -> [TemplateValue] {
    switch value {
    case .list(let values): return values
    case .object(let members): return members.map { .string($0.key) }
    case .string(let text): return text.unicodeScalars.map { .string(String(Character($0))) }
    case .undefined: return []
    default: throw TemplateError("goes through \(value.text), which has no elements")
    }
  }

  private func lookUp(_ name: String) -> TemplateValue {
    for scope in scopes.reversed() {
      if let value = scope[name] { return value }
    }
    return .undefined
  }

  // MARK: - Expressions

  private mutating func value(_ expression: TemplateExpression) throws(TemplateError) -> TemplateValue {
    try step()
    switch expression {
    case .literal(let value): return value
    case .name(let name): return lookUp(name)
    case .list(let parts):
      var values: [TemplateValue] = []
      for part in parts { values.append(try value(part)) }
      return try charged(.list(values))
    case .object(let parts):
      var members: [(key: String, value: TemplateValue)] = []
      for (key, part) in parts { members.append((try value(key).text, try value(part))) }
      return try charged(.object(members))
    case .member(let base, let name): return try member(value(base), name)
    case .index(let base, let index): return try element(value(base), value(index))
    case .slice(let base, let first, let last, let stride):
      return try slice(value(base), bound(first), bound(last), bound(stride))
    case .call(let function, let positional, let named): return try call(function, positional, named)
    case .filter(let name, let base, let positional, let named):
      return try filtered(value(base), name, values(positional), values(named))
    case .test(let name, let base, let negated): return .boolean(try test(value(base), name) != negated)
    case .unary("not", let base): return .boolean(try !value(base).isTrue)
    case .unary(_, let base):
      switch try value(base) {
      case .integer(let value): return .integer(0 &- value)
      case let value:
        guard let real = value.real else { throw TemplateError("- of \(value.text), which is no number") }
        return .number(-real)
      }
    case .binary("or", let a, let b):
      let left = try value(a)
      return left.isTrue ? left : try value(b)
    case .binary("and", let a, let b):
      let left = try value(a)
      return left.isTrue ? try value(b) : left
    case .binary(let symbol, let a, let b): return try combined(symbol, value(a), value(b))
    case .choice(let first, let test, let otherwise):
      if try value(test).isTrue { return try value(first) }
      return try otherwise.map { other throws(TemplateError) in try value(other) } ?? .undefined
    }
  }

  private mutating func values(_ expressions: [TemplateExpression]) throws(TemplateError) -> [TemplateValue] {
    var values: [TemplateValue] = []
    for expression in expressions { values.append(try value(expression)) }
    return values
  }

  private mutating func values(
    _ expressions: [(String, TemplateExpression)]
  ) throws(TemplateError) -> [String: TemplateValue] {
    var values: [String: TemplateValue] = [:]
    for (name, expression) in expressions { values[name] = try value(expression) }
    return values
  }

  private mutating func bound(_ expression: TemplateExpression?) throws(TemplateError) -> Int? {
    guard let expression else { return nil }
    switch try value(expression) {
    case .integer(let value): return value
    case .none: return nil
    case let value: throw TemplateError("the bound \(value.text) of a slice is no whole number")
    }
  }

  private func member(_ base: TemplateValue, _ name: String) throws(TemplateError) -> TemplateValue {
    if case .undefined = base { throw TemplateError("\(name) is asked of what is not defined") }
    return base.member(name)
  }

  private func element(_ base: TemplateValue, _ index: TemplateValue) throws(TemplateError) -> TemplateValue {
    switch (base, index) {
    case (.object, .string(let key)), (.namespace, .string(let key)): return base.member(key)
    case (.list(let values), .integer(let index)):
      let place = index < 0 ? values.count &+ index : index
      return values.indices.contains(place) ? values[place] : .undefined
    case (.string(let text), .integer(let index)):
      let scalars = Array(text.unicodeScalars)
      let place = index < 0 ? scalars.count &+ index : index
      return scalars.indices.contains(place) ? .string(String(Character(scalars[place]))) : .undefined
    case (.undefined, _): throw TemplateError("[\(index.text)] is asked of what is not defined")
    default: return .undefined
    }
  }

  private mutating func slice(
    _ base: TemplateValue, _ first: Int?, _ last: Int?, _ stride: Int?
  ) throws(TemplateError) -> TemplateValue {
    func cut<Element>(_ values: [Element]) throws(TemplateError) -> [Element] {
      let (count, by) = (values.count, stride ?? 1)
      guard by != 0, abs(by) <= 1 << 20 else { throw TemplateError("a slice's step is \(by)") }
      func place(_ bound: Int?, _ fallback: Int) -> Int {
        guard let bound else { return fallback }
        let index = bound < 0 ? bound &+ count : bound
        return by > 0 ? min(max(index, 0), count) : min(max(index, -1), count - 1)
      }
      let (start, end) = (place(first, by > 0 ? 0 : count - 1), place(last, by > 0 ? count : -1))
      return Swift.stride(from: start, to: end, by: by).map { values[$0] }
    }
    switch base {
    case .list(let values):
      try step(values.count)
      return .list(try cut(values))
    case .string(let text):
      try step(text.utf8.count / 64)
      return .string(String(String.UnicodeScalarView(try cut(Array(text.unicodeScalars)))))
    default: throw TemplateError("a slice of \(base.text), which has no elements")
    }
  }

  private mutating func combined(
    _ symbol: String, _ a: TemplateValue, _ b: TemplateValue
  ) throws(TemplateError) -> TemplateValue {
    switch symbol {
    case "==": return .boolean(a.equals(b))
    case "!=": return .boolean(!a.equals(b))
    case "in": return .boolean(try contains(b, a))
    case "~": return .string(try joined(a.text, b.text))
    default: break
    }
    switch (symbol, a, b) {
    case ("+", .string(let x), .string(let y)): return .string(try joined(x, y))
    case ("+", .list(let x), .list(let y)):
      return try charged(.list(x + y))
    case ("<", .string(let x), .string(let y)): return .boolean(x < y)
    case (">", .string(let x), .string(let y)): return .boolean(x > y)
    case (_, .integer(let x), .integer(let y)):
      switch symbol {
      case "+": return .integer(x &+ y)
      case "-": return .integer(x &- y)
      case "*": return .integer(x &* y)
      // Python rounds quotients down: its remainder has the divisor's sign.
      case "%" where y != 0 && y != -1: return .integer(x % y != 0 && (x < 0) != (y < 0) ? x % y + y : x % y)
      case "//" where y != 0 && y != -1: return .integer(x % y != 0 && (x < 0) != (y < 0) ? x / y - 1 : x / y)
      default: break
      }
    default: break
    }
    guard let x = a.real, let y = b.real else {
      throw TemplateError("\(symbol) of \(a.text) and \(b.text) is not supported")
    }
    switch symbol {
    case "<": return .boolean(x < y)
    case ">": return .boolean(x > y)
    case "<=": return .boolean(x <= y)
    case ">=": return .boolean(x >= y)
    case "+": return .number(x + y)
    case "-": return .number(x - y)
    case "*": return .number(x * y)
    case "/" where y != 0: return .number(x / y)
    default: throw TemplateError("\(symbol) of \(a.text) and \(b.text) is not supported")
    }
  }

  private mutating func joined(_ x: String, _ y: String) throws(TemplateError) -> String {
    let size = x.utf8.count + y.utf8.count
    guard size <= Self.mostOutput else { throw TemplateError("makes a text of more than \(Self.mostOutput) bytes") }
    try step(size / 64)
    return x + y
  }

  private func contains(_ whole: TemplateValue, _ part: TemplateValue) throws(TemplateError) -> Bool {
    switch (whole, part) {
    case (.list(let values), _): return values.contains { $0.equals(part) }
    case (.object(let members), .string(let key)): return members.contains { $0.key == key }
    case (.string(let text), .string(let piece)): return TemplateText.range(of: piece, in: text) != nil
    case (.undefined, _): return false
    default: throw TemplateError("in of \(whole.text) is not supported")
    }
  }

  // MARK: - Functions, methods, filters and tests

  private mutating func call(
    _ function: TemplateExpression, _ positional: [TemplateExpression], _ named: [(String, TemplateExpression)]
  ) throws(TemplateError) -> TemplateValue {
    let (arguments, options) = (try values(positional), try values(named))
    switch function {
    case .name("namespace"): return .namespace(.init(options))
    case .name("dict"): return .object(options.sorted { $0.key < $1.key }.map { ($0.key, $0.value) })
    case .name("raise_exception"): throw TemplateError("refuses these messages: \(arguments.first?.text ?? "")")
    case .name("range"):
      let bounds = arguments.compactMap { if case .integer(let value) = $0 { value } else { nil } }
      guard bounds.count == arguments.count, (1...2).contains(bounds.count) else {
        throw TemplateError("range takes one or two whole numbers")
      }
      let (first, last) = bounds.count == 1 ? (0, bounds[0]) : (bounds[0], bounds[1])
      let (length, overflow) = last.subtractingReportingOverflow(first)
      guard last <= first || !overflow && length <= 100_000 else {
        throw TemplateError("a range is too long")
      }
      return .list((first..<max(first, last)).map { .integer($0) })
    case .member(let base, let name): return try TemplateText.method(value(base), name, arguments)
    case .name(let name): throw TemplateError("the function \(name) is not supported")
    default: throw TemplateError("calls what is no function")
    }
  }

  private mutating func filtered(
    _ base: TemplateValue, _ name: String, _ arguments: [TemplateValue], _ options: [String: TemplateValue]
  ) throws(TemplateError) -> TemplateValue {
    switch name {
    case "trim": return .string(TemplateText.trimmed(base.text))
    case "length", "count": return .integer(try elements(base).count)
    case "tojson":
      guard options.keys.allSatisfy({ $0 == "ensure_ascii" }), arguments.isEmpty else {
        throw TemplateError("tojson with indent is not supported")
      }
      return .string(base.json)
    case "upper": return .string(base.text.uppercased())
    case "lower": return .string(base.text.lowercased())
    case "string", "safe": return .string(base.text)
    case "first": return try elements(base).first ?? .undefined
    case "last": return try elements(base).last ?? .undefined
    case "list": return .list(try elements(base))
    case "items": return try TemplateText.method(base, "items", [])
    case "join":
      let (parts, separator) = (try elements(base).map(\.text), arguments.first?.text ?? "")
      guard parts.reduce(0, { $0 + $1.utf8.count + separator.utf8.count }) <= Self.mostOutput else {
        throw TemplateError("join makes a text of more than \(Self.mostOutput) bytes")
      }
      return .string(parts.joined(separator: separator))
    case "default", "d":
      let fallback = arguments.first ?? .string("")
      if case .undefined = base { return fallback }
      let replacesFalse = arguments.count > 1 ? arguments[1].isTrue : options["boolean"]?.isTrue ?? false
      return replacesFalse && !base.isTrue ? fallback : base
    case "int":
      if case .string(let text) = base { return .integer(Int(text) ?? 0) }
      return .integer(base.real.flatMap { Int(exactly: $0.rounded(.towardZero)) } ?? 0)
    case "replace": return try TemplateText.method(base, "replace", arguments)
    default: throw TemplateError("the filter \(name) is not supported")
    }
  }

  private func test(_ base: TemplateValue, _ name: String) throws(TemplateError) -> Bool {
    switch (name, base) {
    case ("defined", .undefined): return false
    case ("defined", _): return true
    case ("undefined", .undefined): return true
    case ("undefined", _): return false
    case ("none", .none): return true
    case ("none", _): return false
    case ("string", .string): return true
    case ("string", _): return false
    case ("mapping", .object): return true
    case ("mapping", _): return false
    case ("iterable", .list), ("iterable", .object), ("iterable", .string), ("sequence", .list), ("sequence", .string):
      return true
    case ("iterable", _), ("sequence", _): return false
    case ("boolean", .boolean): return true
    case ("boolean", _): return false
    case ("true", .boolean(let value)): return value
    case ("true", _): return false
    case ("false", .boolean(let value)): return !value
    case ("false", _): return false
    case ("number", .integer), ("number", .number), ("integer", .integer): return true
    case ("number", _), ("integer", _): return false
    default: throw TemplateError("the test \(name) is not supported")
    }
  }
}

import CPUBackend
import Conversion
import Foundation
import Models
import NN
import Tensors
import TestSupport
import Testing

/// Students made from teachers.
@Suite struct ConversionTests {
  /// leftᵀ right, `[columns, columns]`.
  private func product(_ left: [Float], _ right: [Float], rows: Int, columns: Int) -> [Float] {
    (0..<columns * columns).map { index in
      (0..<rows).reduce(Float(0)) { $0 + left[$1 * columns + index / columns] * right[$1 * columns + index % columns] }
    }
  }

  /// A product of known rank is found exactly, and the loss of a smaller one is the share of what was left out.
  @Test func lowRankIsTheBestApproximation() {
    let (size, columns) = (12, 40)
    let (left, right) = (randomFloats(size * columns, seed: 1), randomFloats(size * columns, seed: 2))
    let whole = product(left, right, rows: size, columns: columns)
    var last = 0.0
    for rank in stride(from: size, to: 0, by: -3) {
      let fit = LowRank(left: left, right: right, size: size, columns: columns, rank: rank)
      let error = relativeError(product(fit.left, fit.right, rows: rank, columns: columns), whole)
      #expect(abs(error - fit.loss) < 1e-5, "rank \(rank): \(error), reported \(fit.loss)")
      #expect(fit.loss >= last)
      last = fit.loss
    }
    #expect(last > 0.5)
    // Three true dimensions need no more.
    let narrow = (0..<size).flatMap { row in left[row % 3 * columns..<(row % 3 + 1) * columns] }
    let fit = LowRank(left: narrow, right: right, size: size, columns: columns, rank: 3)
    #expect(fit.loss < 1e-5)
  }

  private func student(
    _ initialization: StudentInitialization, keySize: Int, expansion: Double, heads: Int = 4
  ) throws -> (Student, HybridLM, CPUBackend) {
    let backend = CPUBackend(threads: 1)
    let teacher = try HybridLM.load(goldenFolder + "/qwen2", backend: backend)
    let data = try Data(contentsOf: URL(fileURLWithPath: goldenFolder + "/jet/config.json"))
    var object = try #require(try JSONSerialization.jsonObject(with: data) as? [String: Any])
    var efficient = try #require(object["efficient_attention_config"] as? [String: [String: Any]])
    efficient["jet"]?["head_dim"] = keySize
    efficient["jet"]?["expand_v"] = expansion
    efficient["jet"]?["num_heads"] = heads
    object["efficient_attention_config"] = efficient
    let configuration = try ModelConfiguration(
      json: JSONSerialization.data(withJSONObject: object), path: "config.json")
    return (
      try Student(configuration, of: teacher, initialization: initialization, seed: 1, backend: backend), teacher,
      backend
    )
  }

  @Test func whatStaysIsCopiedExactly() throws {
    for initialization in StudentInitialization.allCases {
      let (student, teacher, _) = try student(initialization, keySize: 16, expansion: 2)
      student.complete()
      for parameter in student.model.store.parameters {
        guard let source = teacher.store[parameter.name], source.shape == parameter.shape,
          !(parameter.name.contains("layers.0.self_attn") || parameter.name.contains("layers.3.self_attn"))
        else { continue }
        #expect(parameter.value.toArray() == source.value.toArray(), "\(parameter.name)")
      }
      let isComplete = student.model.store.parameters.allSatisfy { $0.hasValue }
      #expect(isComplete)
    }
  }

  /// Heads expand by head: student head j reads the keys of the group that teacher head j reads. Where heads are wide
  /// enough nothing is lost.
  @Test(arguments: [(16, 2.0), (24, 1.0), (8, 2.0)]) func transferFollowsHeads(keySize: Int, expansion: Double) throws {
    let (student, teacher, _) = try student(.transfer, keySize: keySize, expansion: expansion)
    let losses = student.complete()
    #expect(losses.map(\.layer) == [0, 3])
    #expect(losses.allSatisfy { $0.droppedHeads.isEmpty } && losses.droppedHeads == nil)
    let size = teacher.configuration.headSize
    let hidden = teacher.configuration.hiddenSize
    for loss in losses {
      #expect((loss.scores > 1e-6) == (keySize < size) && loss.values < 1e-5, "\(loss)")
      func rows(_ model: HybridLM, _ name: String, _ head: Int, _ size: Int) -> [Float] {
        let all = model.store["model.layers.\(loss.layer).self_attn.\(name)_proj.weight"]!.value.toArray()
        return Array(all[head * size * hidden..<(head + 1) * size * hidden])
      }
      var squares = 0.0
      for head in 0..<4 {
        let form = product(
          rows(teacher, "q", head, size), rows(teacher, "k", head / 2, size), rows: size, columns: hidden)
        let made = product(
          rows(student.model, "q", head, keySize), rows(student.model, "k", head, keySize), rows: keySize,
          columns: hidden)
        squares += pow(relativeError(made, form), 2) / 4
      }
      #expect(abs(squares.squareRoot() - loss.scores) < 1e-5, "\(squares.squareRoot()), reported \(loss.scores)")
    }
  }

  /// A student with fewer heads says which of the teacher's found no place; one with more has a place for all.
  @Test(arguments: [(1, [1, 2, 3]), (2, [1, 3]), (3, [3]), (4, []), (8, [])])
  func droppedHeadsAreReported(heads: Int, dropped: [Int]) throws {
    let (student, teacher, _) = try student(.transfer, keySize: 16, expansion: 1, heads: heads)
    #expect(teacher.configuration.attentionHeads == 4)
    let losses = student.complete()
    #expect(losses.allSatisfy { $0.droppedHeads == dropped && $0.heads == 4 })
    let line = losses.droppedHeads
    #expect((line == nil) == dropped.isEmpty)
    if let line {
      #expect(line.hasPrefix("transfer keeps \(heads) of the teacher's 4 heads in 2 of 2 layers"), "\(line)")
    }
  }

  /// Norms of queries and keys (Qwen3's, and Gemma's of 1 + w): what the student's projections make of an input points where
  /// the teacher's normed query does, and over many inputs of independent channels is as long.
  @Test(arguments: ["yarn", "gemma-scale"], [LayerType.jet, .gatedLinearAttention])
  func normsOfQueriesAndKeysAreTakenOver(family: String, mixer: LayerType) throws {
    let backend = CPUBackend(threads: 1)
    let teacher = try HybridLM.load(goldenFolder + "/families/" + family, backend: backend)
    let (hidden, size) = (teacher.configuration.hiddenSize, teacher.configuration.headSize)
    let configuration = try teacher.configuration.changing("student") { architecture in
      architecture.layerTypes[0] = mixer
      architecture.setState(
        of: mixer, HeadShape(heads: architecture.attentionHeads, keySize: size, valueSize: size))
    }
    let student = try Student(configuration, of: teacher, initialization: .transfer, seed: 1, backend: backend)
    let losses = student.complete()
    #expect(losses.map(\.layer) == [0] && losses[0].scores < 1e-6 && losses[0].values < 1e-5)
    func values(_ model: HybridLM, _ name: String) -> [Float] { model.store["model.layers.0." + name]!.value.toArray() }
    func multipliers(_ name: String) -> [Float] {
      values(teacher, name).map { teacher.configuration.normsAddOne ? $0 + 1 : $0 }
    }
    let (input, norm) = (multipliers("input_layernorm.weight"), multipliers("self_attn.q_norm.weight"))
    let (w, made) = (values(teacher, "self_attn.q_proj.weight"), values(student.model, "self_attn.q_proj.weight"))
    for head in 0..<teacher.configuration.attentionHeads {
      func product(_ rows: [Float], _ x: [Float]) -> [Float] {
        (head * size..<(head + 1) * size).map { row in
          (0..<hidden).reduce(0) { $0 + rows[row * hidden + $1] * x[$1] }
        }
      }
      var (teachers, students) = (0.0, 0.0)
      for trial in 0..<400 {
        // Of unit variance, as what the input's norm multiplies is.
        let x = zip(randomFloats(hidden, seed: UInt64(trial)), input).map { $0 * Float(3).squareRoot() * $1 }
        let raw = product(w, x)
        let root = (raw.reduce(0) { $0 + $1 * $1 } / Float(size)).squareRoot()
        let query = zip(raw, norm).map { $0 / root * $1 }
        let found = product(made, x)
        let (a, b, both) = (dot(query, query), dot(found, found), dot(query, found))
        #expect(both / (a * b).squareRoot() > 1 - 1e-5)
        teachers += a.squareRoot()
        students += b.squareRoot()
      }
      #expect((0.8...1.25).contains(students / teachers), "head \(head): \(students / teachers)")
    }
  }

  private func dot(_ x: [Float], _ y: [Float]) -> Double { zip(x, y).reduce(0) { $0 + Double($1.0) * Double($1.1) } }
}

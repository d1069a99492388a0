import Foundation
import Models
import Ops
import Tensors
import TokenStreams
import Training

/// Mixes attention and linear path of every layer by a gate between 0 and 1, learns the gates by gradient under a pull
/// towards the budget, and keeps the layers whose gates ended highest.
struct LearnedGates: Strategy {
  let steps: Int
  let gradients: GateGradients

  private static let rate = 0.1
  private static let pull = 0.5

  func search(_ trace: SearchTrace) throws {
    let space = trace.space
    let budget = Double(space.full + space.sliding)
    // Gates are sigmoids of these; the start is the budget spread evenly.
    let start = min(max(budget / Double(space.layers), 0.05), 0.95)
    var values = [Double](repeating: log(start / (1 - start)), count: space.layers)
    var first = [Double](repeating: 0, count: space.layers)
    var second = first
    for step in 1...max(1, steps) {
      let gates = values.map { 1 / (1 + exp(-$0)) }
      let excess = gates.reduce(0, +) - budget
      var gradient = try gradients(gates, step: step)
      trace.extraTokens += gradients.tokensPerStep
      for layer in gradient.indices {
        gradient[layer] = (gradient[layer] + Self.pull * excess) * gates[layer] * (1 - gates[layer])
        // Adam.
        first[layer] = 0.9 * first[layer] + 0.1 * gradient[layer]
        second[layer] = 0.99 * second[layer] + 0.01 * gradient[layer] * gradient[layer]
        let (m, v) = (first[layer] / (1 - pow(0.9, Double(step))), second[layer] / (1 - pow(0.99, Double(step))))
        values[layer] -= Self.rate * m / (v.squareRoot() + 1e-8)
      }
    }
    let order = values.indices.sorted { a, b in values[a] != values[b] ? values[a] > values[b] : a < b }
    _ = try trace.scores([space.placement(best: order)])
  }
}

/// The gradient of the joint loss with respect to the gates of a supernet.
package struct GateGradients {
  let supernet: HybridLM
  let teacher: HybridLM?
  /// Batches of the objectives, whether they are compared with the teacher, and the weight of each mean loss.
  let parts: [(batches: [SequenceBatch], kl: Bool, weight: Double)]
  let world: any PathExchange
  let backend: any Backend
  /// Whether this rank wants the search to end early.
  package var wantsStop: () -> Bool

  package init(
    supernet: HybridLM, teacher: HybridLM?, parts: [(batches: [SequenceBatch], kl: Bool, weight: Double)],
    world: any PathExchange, backend: any Backend, wantsStop: @escaping () -> Bool = { false }
  ) {
    (self.supernet, self.teacher, self.parts, self.world, self.backend) = (supernet, teacher, parts, world, backend)
    self.wantsStop = wantsStop
  }

  /// A step reads a quarter of every objective's batches, at least one.
  private static let share = 4

  private func chosen(_ batches: [SequenceBatch], step: Int) -> [SequenceBatch] {
    let count = max(1, batches.count / Self.share)
    return (0..<count).map { batches[(step * count + $0) % batches.count] }
  }

  var tokensPerStep: Int { parts.reduce(0) { $0 + chosen($1.batches, step: 0).reduce(0) { $0 + $1.tokens.count } } }

  /// The gradient by layer, the same on all ranks at any number of them.
  ///
  /// - Throws: `Stopped` on all ranks, when one wants to stop
  package func callAsFunction(_ gates: [Double], step: Int) throws -> [Double] {
    var work: [(batch: SequenceBatch, kl: Bool, seed: Double)] = []
    for part in parts {
      let batches = chosen(part.batches, step: step)
      let labels = max(1, batches.reduce(0) { $0 + $1.countedLabels })
      work += batches.map { ($0, part.kl, part.weight / Double(labels)) }
    }
    let rows = (work.count + world.size - 1) / world.size
    var mine = [Double](repeating: 0, count: rows * gates.count)
    for (row, index) in stride(from: world.rank, to: work.count, by: world.size).enumerated() {
      let gradient = backward(gates, work[index].batch, kl: work[index].kl, seed: Float(work[index].seed))
      mine.replaceSubrange(row * gates.count..<(row + 1) * gates.count, with: gradient)
    }
    let width = mine.count + 1
    let all = try world.allGather(mine + [wantsStop() ? 1 : 0])
    if (1...world.size).contains(where: { all[$0 * width - 1] > 0 }) { throw Stopped() }
    // In the order of the batches, whoever computed them.
    return gates.indices.map { layer in
      work.indices.reduce(0) { sum, index in
        sum + all[index % world.size * width + index / world.size * gates.count + layer]
      }
    }
  }

  private func backward(_ gates: [Double], _ data: SequenceBatch, kl: Bool, seed: Float) -> [Double] {
    let batch = Batch(tokens: backend.tensor(data.tokens), segments: Segments(data.segments))
    // The gates of all layers, open and then closed, and their gradients go up and come down together.
    let count = gates.count
    let values = backend.tensor((gates + gates.map { 1 - $0 }).map { Float($0) }, [2 * count])
    let gradients = backend.zeros([2 * count])
    let ways = (0..<2 * count).map { index in
      var gate = values.rows(index..<index + 1)
      gate.slot = GradientSlot(shape: [1], backend: backend, home: gradients.rows(index..<index + 1))
      return gate
    }
    let (open, closed) = (Array(ways[..<count]), Array(ways[count...]))
    var head: TeacherHead?
    if kl, let teacher {
      head = backend.withoutRecording { TeacherHead(hidden: teacher(batch), weight: teacher.head) }
    }
    let labels = backend.tensor(data.labels)
    let (_, tape) = backend.recording {
      let hidden = mixed(batch, open, closed)
      return vocabularyLoss(
        hidden: hidden, weight: supernet.head, teacher: head, labels: labels, crossEntropySeed: kl ? 0 : seed,
        klSeed: kl ? seed : 0)
    }
    tape.backward()
    let found = gradients.toArray()
    return gates.indices.map { Double(found[$0]) - Double(found[count + $0]) }
  }

  /// The last hidden states, where every layer's attention counts by its open gate and its linear path by its closed one.
  package func mixed(_ batch: Batch, _ open: [Tensor], _ closed: [Tensor]) -> Tensor {
    var x = supernet.embed(batch)
    for (index, layer) in supernet.layers.enumerated() {
      let input = layer.mixerInput(x)
      // In two steps: Swift 6.3 crashes on a call of the mixer that a call returns.
      let (attention, linear) = (layer.mixer(as: .full), layer.mixer(as: .linear))
      let attended = attention(input, batch, cache: nil)
      let remembered = linear(input, batch, cache: nil)
      let both = add(scaleColumns(attended, by: open[index]), scaleColumns(remembered, by: closed[index]))
      x = layer.complete(x, mixed: both)
    }
    return supernet.finish(x)
  }
}

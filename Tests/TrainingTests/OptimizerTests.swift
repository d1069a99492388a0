import CPUBackend
import Foundation
import Models
import NN
import Optimizers
import Tensors
import TestSupport
import Testing
import Training

/// Schedules, AdamW, and which parameters a step updates.
extension TrainingTests {
  @Test func schedules() {
    let cosine = Schedule(shape: .cosine, peak: 1, floor: 0.1, warmupSteps: 10)
    #expect(abs(cosine.rate(step: 0, of: 110) - 0.1) < 1e-12 && cosine.rate(step: 9, of: 110) == 1)
    #expect(abs(cosine.rate(step: 60, of: 110) - 0.55) < 1e-12 && cosine.rate(step: 109, of: 110) < 0.101)
    let wsd = Schedule(shape: .wsd, peak: 1, floor: 0, warmupSteps: 0)
    #expect(wsd.rate(step: 79, of: 100) == 1 && abs(wsd.rate(step: 90, of: 100) - 0.5) < 1e-9)
  }

  /// AdamW against the textbook formulas in double precision, decay only where it belongs. In bfloat16 that is so of the
  /// masters, and the values of matrices are theirs, rounded.
  @Test(arguments: ComputePrecision.allCases) func adamWMatchesTheFormulas(precision: ComputePrecision) {
    let backend = CPUBackend(threads: 2)
    let store = ParameterStore()
    let scope = ParameterScope(store)
    let matrix = scope.scope("matrix").parameter("weight", [7, 33], .normal(1), kind: .matrix)
    let vector = scope.parameter("vector", [65], .normal(1))
    for parameter in [matrix, vector] {
      parameter.value = backend.tensor(parameter.initialValues(seed: 1), parameter.shape)
    }
    let arena = Arena(gathering: store, precision: precision, backend: backend) { _ in true }
    // Of the first block this rank owns a part that ends within the matrix.
    let slices =
      precision == .float32
      ? [0..<Arena.blockSize] : [0..<100, 100..<Arena.blockSize, Arena.blockSize..<2 * Arena.blockSize]
    let optimizer = AdamW(
      arena, slices: slices, settings: .init(beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weightDecay: 0.1))
    arena.begin()
    var expected = [matrix, vector].map { $0.initialValues(seed: 1).map(Double.init) }
    #expect(arena.blockCount == slices.count - (precision == .bfloat16 ? 1 : 0))
    var (m, v) = ([[Double]](repeating: [], count: 2), [[Double]](repeating: [], count: 2))
    for step in 1...5 {
      for (index, parameter) in [matrix, vector].enumerated() {
        let gradient = randomFloats(parameter.count, seed: UInt64(step * 2 + index))
        arena.beginBackward()
        parameter.value.slot!.accumulate(backend.tensor(gradient, parameter.shape))
        if m[index].isEmpty { (m[index], v[index]) = (gradient.map { _ in 0 }, gradient.map { _ in 0 }) }
        for i in gradient.indices {
          let g = Double(gradient[i]) * 0.5
          m[index][i] = 0.9 * m[index][i] + 0.1 * g
          v[index][i] = 0.95 * v[index][i] + 0.05 * g * g
          let update =
            m[index][i] / (1 - pow(0.9, Double(step)))
            / ((v[index][i] / (1 - pow(0.95, Double(step)))).squareRoot() + 1e-8)
          expected[index][i] -= 0.01 * update + (index == 0 ? 0.01 * 0.1 * expected[index][i] : 0)
        }
      }
      for slice in slices.indices {
        optimizer.update(slice: slice, updates: [step], learningRate: 0.01, gradientScale: 0.5)
      }
    }
    func masters(_ entry: Arena.Entry) -> [Float] {
      optimizer.parts(of: entry.range).flatMap { optimizer.master($0.range, $0.local).toArray() }
    }
    for (index, entry) in arena.entries.enumerated() {
      let parameter = entry.parameter
      let error = relativeError(masters(entry), expected[index].map(Float.init))
      print("adamW \(parameter.name) in \(precision): \(error)")
      #expect(error < 1e-6)
      let isLowered = precision == .bfloat16 && parameter.isMatrix
      #expect(parameter.value.dtype == (isLowered ? .bfloat16 : .float32))
      #expect(
        parameter.value.toArray()
          == masters(entry).map { isLowered ? Float(bitPattern: UInt32(bfloat16(rounding: $0)) << 16) : $0 })
    }
    // What a checkpoint holds goes to masters and copies.
    let restored = randomFloats(matrix.count, seed: 77)
    restored.withUnsafeBufferPointer { optimizer.set(arena.entries[0].range, to: $0) }
    #expect(masters(arena.entries[0]) == restored)
    #expect(
      matrix.value.toArray()
        == restored.map { precision == .bfloat16 ? Float(bitPattern: UInt32(bfloat16(rounding: $0)) << 16) : $0 })
  }

  /// A step leaves the paths of a supernet that it does not draw as if they were absent: values, moments and the count of
  /// updates that corrects their bias.
  @Test func pathsThatAreNotDrawnRest() throws {
    let backend = CPUBackend(threads: 1)
    func parameters() -> (arena: Arena, values: [Parameter]) {
      let store = ParameterStore()
      let values = ["left", "right"].map {
        ParameterScope(store).scope($0).parameter("weight", [3, 5], .normal(1), kind: .matrix)
      }
      for parameter in values {
        parameter.value = backend.tensor(parameter.initialValues(seed: 1), parameter.shape)
      }
      return (Arena(store, backend: backend) { _ in true }, values)
    }
    let settings = AdamW.Settings(beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weightDecay: 0.1)
    func gradient(_ step: Int) -> Tensor { backend.tensor(randomFloats(15, seed: UInt64(step)), [3, 5]) }
    // Both paths take turns; each must end as if the steps of the other had not been.
    let turns = parameters()
    let optimizer = AdamW(turns.arena, slices: [0..<Arena.blockSize], settings: settings) {
      $0.name.hasPrefix("left") ? 0 : 1
    }
    var counts = [0, 0]
    for step in 1...6 {
      let drawn = step % 3 == 0 ? 1 : 0
      turns.arena.beginBackward()
      turns.values[drawn].value.slot!.accumulate(gradient(step))
      turns.arena.endBackward()
      counts[drawn] += 1
      optimizer.update(
        slice: 0, updates: counts.indices.map { $0 == drawn ? counts[$0] : 0 }, learningRate: 0.01, gradientScale: 1)
    }
    for (path, steps) in [[1, 2, 4, 5], [3, 6]].enumerated() {
      let alone = parameters()
      let optimizer = AdamW(alone.arena, slices: [0..<Arena.blockSize], settings: settings)
      for (index, step) in steps.enumerated() {
        alone.arena.beginBackward()
        alone.values[path].value.slot!.accumulate(gradient(step))
        alone.arena.endBackward()
        optimizer.update(slice: 0, updates: [index + 1], learningRate: 0.01, gradientScale: 1)
      }
      #expect(turns.values[path].value.toArray() == alone.values[path].value.toArray())
    }

    // Of a real supernet: each path counts the steps that drew it, also after a resume.
    let model = HybridLM(try ModelConfiguration(path: repository + "/Jobs/models/demo-supernet.json"))
    let sampling = PathSampling(fullLayers: 1, budgetShare: 0.5)
    var updates = PathUpdates(of: model, sampling, seed: 7)
    for step in 0..<40 {
      let now = updates.count(step)
      let path = sampling.path(step: step, layers: model.layers.count, seed: 7)
      for parameter in model.store.parameters {
        let parts = parameter.name.split(separator: ".")
        let isDrawn =
          parts.count < 4 || !["self_attn", "linear_attn"].contains(parts[3])
          || (path.role(of: Int(parts[2])!) == .linear) == (parts[3] == "linear_attn")
        #expect((now[PathUpdates.group(of: parameter, in: model)] > 0) == isDrawn, "\(parameter.name) at step \(step)")
      }
      var resumed = PathUpdates(of: model, sampling, seed: 7)
      resumed.replay(0..<step)
      #expect(resumed.count(step) == now && now[0] == step + 1)
    }
  }
}

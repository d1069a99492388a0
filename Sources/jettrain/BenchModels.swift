import CUDABackend
import Models
import NN
import Tensors

extension Bench {
  /// Random values as models have them, on a card of the type that they have at rest. There they are drawn once and repeated:
  /// benches time steps. What is read as one array lies as one.
  static func fill(_ model: HybridLM, seed: UInt64, on backend: any Backend) {
    guard backend is CUDABackend else { return model.initialize(seed: seed, backend: backend) }
    var random = RandomStream(seed: seed, name: "pool")
    let pool = (0..<1_048_583).map { _ in random.gaussian() * 0.02 }
    let source = backend.tensor(pool, [pool.count])
    for parameter in model.store.parameters where !parameter.hasValue {
      guard parameter.isMatrix else {
        parameter.value = backend.tensor(parameter.initialValues(seed: seed), parameter.shape)
        continue
      }
      let neighbours = (parameter.pack?.parameters ?? [parameter]).filter { !$0.hasValue }
      let values = backend.empty([neighbours.reduce(0) { $0 + $1.count }], .bfloat16)
      for first in stride(from: 0, to: values.count, by: pool.count) {
        let end = min(first + pool.count, values.count)
        backend.copy(source.rows(0..<end - first), into: values.rows(first..<end))
      }
      var first = 0
      for parameter in neighbours {
        parameter.value = values.rows(first..<first + parameter.count).reshaped(parameter.shape)
        first += parameter.count
      }
    }
  }
}

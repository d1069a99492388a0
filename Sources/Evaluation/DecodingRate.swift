import Models
import NN
import Tensors
import Training

extension HybridLM {
  /// Tokens a second of greedy decoding of one sequence behind `context` tokens, whose caches are filled at random: the
  /// median over `steps`.
  package func decodingRate(after context: Int, steps: Int, backend: any Backend) -> Double {
    let generator = Generator(self, capacity: context + steps + 2, backend: backend)
    generator.assume(context)
    var token: [UInt32] = [0]
    var times: [Double] = []
    for step in 0..<steps + 2 {
      var clock = PhaseClock()
      // What random caches make of it may be anything.
      token = (try? generator.step(token, Sampling(), uniforms: [0])) ?? [0]
      clock.mark("write")
      if step >= 2 { times.append(clock.total) }
    }
    return 1 / times.sorted()[times.count / 2]
  }
}

import CPUBackend
import Evaluation
import Models
import NN
import Tensors
import TestSupport
import Testing

/// One token of every sequence a step.
@Suite struct DecodingTests {
  /// The step that is repeated gives what one pass over everything gives: sequences of different lengths, past the window of
  /// sliding attention, past the room that was asked for, and after some were dropped.
  @Test(arguments: [TestBackend.cpu(threads: 2), .reference], [3, 64])
  func stepsEqualReading(kind: TestBackend, chunk: Int) throws {
    let backend = kind.make()
    let model = try ModelTests.modelOfAllMixers(backend)
    let vocabulary = model.configuration.vocabularySize
    var texts = [3, 41, 1].map { count in (0..<count).map { UInt32(($0 * 31 + count) % vocabulary) } }
    let generator = Generator(model, sequences: 3, capacity: 10, backend: backend)
    _ = generator.read(texts, chunk: chunk)
    for step in 0..<40 {
      if step == 25 {
        generator.select([2, 0])
        texts = [texts[2], texts[0]]
      }
      let more = texts.map { UInt32(($0.count * 31 + 7) % vocabulary) }
      texts = zip(texts, more).map { $0 + [$1] }
      let chosen = try generator.step(more, Sampling(), uniforms: [Float](repeating: 0, count: texts.count))
      guard step % 8 == 0 || step == 39 else { continue }
      let logits = try #require(generator.logits).toArray()
      for (place, text) in texts.enumerated() {
        let whole = backend.withoutRecording {
          model.logits(
            model(
              Batch(
                tokens: backend.tensor(text.map { Int32($0) }), segments: Segments(count: 1, length: text.count)))
          ).toArray()
        }
        let own = Array(logits[place * vocabulary..<(place + 1) * vocabulary])
        let error = relativeError(own, Array(whole.suffix(vocabulary)))
        #expect(error < 1e-4, "step \(step), sequence \(place): \(error)")
        #expect(Sampling().token(of: own, uniform: 0).map { UInt32($0) } == chosen[place])
      }
    }
    // Reading goes on where steps ended.
    let rest = generator.read([[7, 8], [9]], chunk: chunk).toArray()
    let alone = Generator(model, backend: backend).read([texts[1] + [9]]).toArray()
    let error = relativeError(Array(rest.suffix(vocabulary)), alone)
    #expect(error < 1e-4, "reading after steps: \(error)")
  }

  /// Halving the range of logits, as kernels do, finds the token that sorting them finds: few and many ties, nuclei, counts.
  @Test func halvingFindsTheSameToken() throws {
    var random = RandomStream(seed: 3, name: "choices")
    var differing = 0
    for trial in 0..<300 {
      let size = 1 + Int(random.next() % 200)
      // Rounded to few values, as bfloat16 does.
      let logits = (0..<size).map { _ in (random.gaussian() * 4).rounded() / Float(1 + trial % 5) }
      let sampling = Sampling(
        temperature: [0.3, 1, 2][trial % 3], topK: trial % 4 == 0 ? 1 + Int(random.next() % 20) : 0,
        topP: trial % 2 == 0 ? Double(random.uniform()) : 1)
      let uniform = random.uniform()
      let token = try #require(sampling.token(of: logits, uniform: uniform))
      #expect(token == halved(sampling, logits, uniform), "\(sampling) of \(size)")
      differing += token == logits.indices.max { logits[$0] < logits[$1] } ? 0 : 1
    }
    #expect(differing > 30)
    #expect(
      Sampling().token(of: [1, .infinity], uniform: 0) == nil && Sampling().token(of: [2, .nan], uniform: 0) == nil)
  }

  /// Sampling.cu in Swift.
  private func halved(_ sampling: Sampling, _ logits: [Float], _ uniform: Float) -> Int {
    func order(_ x: Float) -> UInt32 {
      x == 0 ? 1 << 31 : x.bitPattern >> 31 == 1 ? ~x.bitPattern : x.bitPattern | 1 << 31
    }
    let orders = logits.map(order)
    let largest = logits.max()!
    let weights = logits.map { sampling.weight($0, below: largest) }
    func above(_ least: UInt32) -> (tokens: UInt64, mass: UInt64) {
      orders.indices.filter { orders[$0] >= least }.reduce(into: (0, 0)) { $0 = ($0.0 + 1, $0.1 + weights[$1]) }
    }
    func find(_ target: UInt64, counts: Bool) -> UInt32 {
      (0..<32).reversed().reduce(0) { found, bit in
        let m = above(found | 1 << bit)
        return (counts ? m.tokens : m.mass) >= target ? found | 1 << bit : found
      }
    }
    func share(_ found: UInt32) -> UInt64 { weights[orders.firstIndex(of: found)!] }
    var mass = above(0).mass
    if sampling.topK > 0, sampling.topK < logits.count {
      let found = find(UInt64(sampling.topK), counts: true)
      let more = above(found + 1)
      mass = more.mass + (UInt64(sampling.topK) - more.tokens) * share(found)
    }
    if sampling.topP < 1 {
      let least = max(1, UInt64(sampling.topP * Double(mass)))
      let found = find(least, counts: false)
      let more = above(found + 1).mass
      mass = more + (least - more + share(found) - 1) / share(found) * share(found)
    }
    let target = min(UInt64(Double(uniform) * Double(mass)), mass - 1)
    let found = find(target + 1, counts: false)
    let place = (target - above(found + 1).mass) / share(found)
    return orders.indices.filter { orders[$0] == found }[Int(place)]
  }
}

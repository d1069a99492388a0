import Models
import Tensors
import Training

/// How fast a model reads and writes text at a context, and what it remembers.
package struct Throughput: Sendable {
  package let context: Int
  package let batch: Int
  /// Tokens a second of reading one sequence of `context` tokens.
  package let prefill: Double
  /// Whether `prefill` comes from chunks at evenly spaced places rather than from the whole sequence.
  package let prefillIsSampled: Bool
  /// Tokens a second of all sequences, behind `context` tokens each.
  package let decode: Double
  /// What the caches of one sequence hold, in the types that they have here.
  package let cacheBytes: Int
  /// The same in numbers.
  package let cache: CacheElements
  /// Bytes that a decoding step moves (``HybridLM/bytesMoved(context:batch:activations:states:)``) over what memory gives in
  /// that time.
  package let bandwidthShare: Double

  /// Settings of a measurement.
  package struct Plan: Sendable {
    /// Tokens of a chunk of a prompt; nil: what suits the backend.
    package var chunk: Int?
    /// Longest sequence that is read as a whole to measure reading.
    package var wholePrefill = 16_384
    /// Chunks measured of a longer one.
    package var samples = 4
    /// Decoding steps; the median counts.
    package var steps = 16
    /// Of the states of recurrences.
    package var stateType = DType.float32

    package init() {}
  }

  /// Measures `model` at `context` tokens.
  ///
  /// - Parameter bandwidth: bytes a second that memory gives
  package init(
    _ model: HybridLM, context: Int, batch: Int, plan: Plan, bandwidth: Double, backend: any Backend
  ) {
    (self.context, self.batch) = (context, batch)
    prefillIsSampled = context > plan.wholePrefill
    prefill = Self.readingRate(model, context, plan, backend)
    backend.trim()

    let vocabulary = model.configuration.vocabularySize
    let writer = Generator(
      model, sequences: batch, capacity: context + plan.steps + 3, stateType: plan.stateType, backend: backend)
    writer.assume(context)
    var next = (0..<batch).map { UInt32($0 % vocabulary) }
    let uniforms = [Float](repeating: 0, count: batch)
    var times: [Double] = []
    // The first step compiles, the second is recorded.
    for step in 0..<plan.steps + 3 {
      var clock = PhaseClock()
      // What random caches make of it may be anything.
      next = (try? writer.step(next, Sampling(), uniforms: uniforms)) ?? next
      clock.mark("write")
      if step >= 3 { times.append(clock.total) }
    }
    let median = times.sorted()[times.count / 2]
    decode = Double(batch) / median
    cache = model.cacheElements(context: context)
    cacheBytes = cache.bytes(activations: writer.activations, states: plan.stateType)
    bandwidthShare =
      Double(
        model.bytesMoved(context: context, batch: batch, activations: writer.activations, states: plan.stateType))
      / median / bandwidth
  }

  /// Tokens a second of reading a sequence.
  private static func readingRate(
    _ model: HybridLM, _ context: Int, _ plan: Plan, _ backend: any Backend
  ) -> Double {
    let vocabulary = model.configuration.vocabularySize
    func tokens(_ count: Int) -> [UInt32] { (0..<count).map { UInt32(($0 &* 7919 &+ 13) % vocabulary) } }
    let chunk = min(plan.chunk ?? backend.promptTokens, context)
    let reader = Generator(model, capacity: context, stateType: plan.stateType, backend: backend)
    func seconds(_ count: Int) -> Double {
      var clock = PhaseClock()
      _ = reader.read([tokens(count)], chunk: chunk)
      backend.mark().wait()
      clock.mark("read")
      return clock.total
    }
    // The first pass compiles and chooses kernels.
    _ = seconds(chunk)
    reader.assume(0)
    guard context > plan.wholePrefill else { return Double(context) / seconds(context) }
    // Work grows evenly with the position, so that places in the middle of equal parts give the mean.
    var spent = 0.0
    for sample in 0..<plan.samples {
      reader.assume((2 * sample + 1) * (context - chunk) / (2 * plan.samples))
      spent += seconds(chunk)
    }
    return Double(chunk * plan.samples) / spent
  }
}

extension HybridLM {
  /// Bytes of weights that a decoding step reads: all matrices once, of embeddings that are not the head a row a token.
  package func weightBytesRead(batch: Int) -> Int {
    store.parameters.reduce(0) { sum, parameter in
      let bytes = parameter.count * parameter.value.dtype.size
      let isTable = parameter.name.hasSuffix("embed_tokens.weight") && !configuration.tiesEmbeddings
      return sum + (isTable ? min(bytes, batch * parameter.shape[1] * parameter.value.dtype.size) : bytes)
    }
  }

  /// Bytes that a decoding step must move: each weight and all that caches hold once, and states, which change, a second
  /// time.
  package func bytesMoved(context: Int, batch: Int, activations: DType, states: DType) -> Int {
    let cache = cacheElements(context: context)
    return weightBytesRead(batch: batch)
      + batch * (cache.activations * activations.size + 2 * cache.states * states.size)
  }

  /// ‖x − y‖ / ‖y‖ for the logits x of states in bfloat16 and y of states in float32, behind `prompt` tokens that were read and
  /// `steps` that were written, the same ones for both.
  package func errorOfNarrowStates(prompt: Int, steps: Int, backend: any Backend) throws -> Double {
    let vocabulary = configuration.vocabularySize
    func token(_ place: Int) -> UInt32 { UInt32((place &* 7919 &+ 13) % vocabulary) }
    func logits(_ type: DType) throws -> [Float] {
      let generator = Generator(self, capacity: prompt + steps + 1, stateType: type, backend: backend)
      _ = generator.read([(0..<prompt).map(token)])
      for step in 0..<steps { _ = try generator.step([token(prompt + step)], Sampling(), uniforms: [0]) }
      return generator.logits!.toArray()
    }
    let (narrow, wide) = (try logits(.bfloat16), try logits(.float32))
    var (difference, norm) = (0.0, 0.0)
    for (x, y) in zip(narrow, wide) {
      difference += Double(x - y) * Double(x - y)
      norm += Double(y) * Double(y)
    }
    return (difference / norm).squareRoot()
  }
}

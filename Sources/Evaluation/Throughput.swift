import Models
import NN
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
  /// What the caches of one sequence must hold, in float32 as here.
  package let cacheBytes: Int
  /// Bytes that a decoding step reads, each weight and cached value once, over what memory gives in that time.
  package let bandwidthShare: Double

  /// Settings of a measurement.
  package struct Plan: Sendable {
    /// Tokens of a chunk of a prompt.
    package var chunk = 512
    /// Longest sequence that is read as a whole to measure reading.
    package var wholePrefill = 16_384
    /// Chunks measured of a longer one.
    package var samples = 4
    /// Decoding steps; the median counts.
    package var steps = 16

    package init() {}
  }

  /// Measures `model` at `context` tokens.
  ///
  /// - Parameter bandwidth: bytes a second that memory gives
  package init(
    _ model: HybridLM, context: Int, batch: Int, plan: Plan, bandwidth: Double, backend: any Backend
  ) {
    self.context = context
    self.batch = batch
    cacheBytes = model.cacheBytes(context: context)
    let vocabulary = model.configuration.vocabularySize
    func tokens(_ count: Int) -> [UInt32] { (0..<count).map { UInt32(($0 &* 7919 &+ 13) % vocabulary) } }

    let chunk = min(plan.chunk, context)
    prefillIsSampled = context > plan.wholePrefill
    let reader = Generator(model, capacity: context, backend: backend)
    var clock = PhaseClock()
    if prefillIsSampled {
      // Work grows evenly with the position, so that places in the middle of equal parts give the mean.
      var spent = 0.0
      for sample in 0..<plan.samples {
        reader.assume((2 * sample + 1) * (context - chunk) / (2 * plan.samples))
        clock = PhaseClock()
        _ = reader.read([tokens(chunk)], chunk: chunk)
        clock.mark("read")
        spent += clock.total
      }
      prefill = Double(chunk * plan.samples) / spent
    } else {
      _ = reader.read([tokens(context)], chunk: chunk)
      clock.mark("read")
      prefill = Double(context) / clock.total
    }

    let writer = Generator(model, sequences: batch, capacity: context + plan.steps + 2, backend: backend)
    writer.assume(context)
    var next = (0..<batch).map { [UInt32($0 % vocabulary)] }
    var random = RandomStream(seed: 0, name: "throughput")
    var times: [Double] = []
    for step in 0..<plan.steps + 2 {
      clock = PhaseClock()
      let logits = writer.read(next)
      let values = logits.toArray()
      next = (0..<batch).map { sequence in
        [Sampling().choose(Array(values[sequence * vocabulary..<(sequence + 1) * vocabulary]), random: &random)]
      }
      clock.mark("write")
      if step >= 2 { times.append(clock.total) }
    }
    let median = times.sorted()[times.count / 2]
    decode = Double(batch) / median
    let bytes = model.weightBytesRead(batch: batch) + batch * cacheBytes
    bandwidthShare = Double(bytes) / median / bandwidth
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
}

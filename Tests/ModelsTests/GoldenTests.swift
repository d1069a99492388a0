import CPUBackend
import Models
import NN
import Ops
import Safetensors
import Tensors
import TestSupport
import Testing

/// Parity with the reference implementations' own outputs (Tests/Fixtures/golden/README.md).
@Suite struct GoldenTests {
  static let outputBound = 2e-5
  static let gradientBound = 1e-4

  private func check(_ name: String, _ x: [Float], _ reference: [Float], bound: Double) {
    let error = relativeError(x, reference)
    print("golden \(name): relative error \(error)")
    #expect(error <= bound, "\(name): \(error)")
  }

  @Test(arguments: ["jet", "qwen2"], [false, true])
  func modelMatchesReference(_ name: String, checkpointing: Bool) throws {
    let backend = CPUBackend(threads: 2)
    let folder = goldenFolder + "/" + name
    let model = try HybridLM.load(folder, backend: backend)
    let golden = try SafetensorsFile(path: folder + "/golden.safetensors")
    let ids = try golden.integers("input_ids")
    let labels = try golden.integers("labels")
    let shape = try #require(golden.entries["input_ids"]).shape
    let batch = Batch(
      tokens: backend.tensor(ids), segments: Segments(count: shape[0], length: shape[1]),
      slidingMask: .referenceEager)

    // The labels are already shifted: label t is what token t predicts.
    let targets = labels
    let counted = targets.count
    let arena = Arena(model.store, backend: backend) { _ in true }
    arena.beginBackward()
    let (losses, tape) = try backend.recording {
      var outputs: [Tensor] = []
      let hidden = model(batch, checkpointing: checkpointing) { outputs.append($1) }
      check("\(name) hidden.0", model.embed(batch).toArray(), try golden.floats("hidden.0"), bound: Self.outputBound)
      for (index, output) in outputs.dropLast().enumerated() {
        check(
          "\(name) hidden.\(index + 1)", output.toArray(), try golden.floats("hidden.\(index + 1)"),
          bound: Self.outputBound)
      }
      check(
        "\(name) hidden.\(outputs.count)", hidden.toArray(), try golden.floats("hidden.\(outputs.count)"),
        bound: Self.outputBound)
      let logits = backend.withoutRecording { model.logits(hidden) }
      check("\(name) logits", logits.toArray(), try golden.floats("logits"), bound: Self.outputBound)
      return vocabularyLoss(
        hidden: hidden, weight: model.head, labels: backend.tensor(targets),
        crossEntropySeed: 1 / Float(counted))
    }
    tape.backward()
    arena.endBackward()
    let loss = Float(losses.crossEntropy.hostSum() / Double(counted))
    check("\(name) loss", [loss], try golden.floats("loss"), bound: Self.outputBound)
    for entry in arena.entries {
      let gradient = arena.gradients.rows(entry.range).toArray()
      check(
        "\(name) grad.\(entry.parameter.name)", gradient,
        try golden.floats("grad." + entry.parameter.name), bound: Self.gradientBound)
    }
  }

  @Test(arguments: [1, 2]) func gatedDeltaRuleMatchesReference(threads: Int) throws {
    let backend = CPUBackend(threads: threads)
    let golden = try SafetensorsFile(path: goldenFolder + "/ops/gated_delta_rule.safetensors")
    let shape = try #require(golden.entries["v"]).shape
    let (B, T, H, V) = (shape[0], shape[1], shape[2], shape[3])
    let keySize = try #require(golden.entries["k"]).shape[3]
    func load(_ name: String, _ shape: [Int]) throws -> Tensor {
      backend.tensor(try golden.floats(name), shape)
    }
    let segments = Segments(count: B, length: T)
    let (q, k) = (try load("q", [B * T, H, keySize]), try load("k", [B * T, H, keySize]))
    let (v, g) = (try load("v", [B * T, H, V]), try load("g", [B * T, H]))
    let beta = try load("beta", [B * T, H])
    let initial = try load("initial_state", [B, H, keySize, V])
    let (o, final) = (backend.empty(v.shape), backend.empty(initial.shape))
    let saved = GatedDeltaRuleState(
      starts: backend.empty([GatedDeltaRuleState.chunkCount(segments), H, keySize, V]),
      corrected: backend.empty(v.shape))
    let scale = 1 / Float(keySize).squareRoot()
    backend.gatedDeltaRule(
      q: q, k: k, v: v, g: g, beta: beta, scale: scale, segments: segments, initial: initial, o: o,
      final: final, saved: saved)
    check("gated_delta_rule o", o.toArray(), try golden.floats("o"), bound: Self.outputBound)
    check(
      "gated_delta_rule final_state", final.toArray(), try golden.floats("final_state"),
      bound: Self.outputBound)
    let (dQ, dK, dV) = (backend.empty(q.shape), backend.empty(k.shape), backend.empty(v.shape))
    let (dG, dBeta, dInitial) = (
      backend.empty(g.shape), backend.empty(beta.shape), backend.empty(initial.shape)
    )
    backend.gatedDeltaRuleBackward(
      dO: try load("do", v.shape), dFinal: try load("dstate", initial.shape), q: q, k: k, v: v, g: g,
      beta: beta, scale: scale, segments: segments, saved: saved, dQ: dQ, dK: dK, dV: dV, dG: dG,
      dBeta: dBeta, dInitial: dInitial)
    for (name, gradient) in [
      ("dq", dQ), ("dk", dK), ("dv", dV), ("dg", dG), ("dbeta", dBeta), ("dinitial_state", dInitial),
    ] {
      check("gated_delta_rule \(name)", gradient.toArray(), try golden.floats(name), bound: Self.gradientBound)
    }
  }
}

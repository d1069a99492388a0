import Models
import NN
import Ops
import Safetensors
import Tensors
import TestSupport
import Testing

/// Parity with the reference implementations' own outputs (Tests/Fixtures/golden/README.md), on every backend.
@Suite struct GoldenTests {
  static let outputBound = 2e-5
  static let gradientBound = 1e-4

  private func check(_ name: String, _ x: [Float], _ reference: [Float], bound: Double) {
    let error = relativeError(x, reference)
    print("golden \(name): relative error \(error)")
    #expect(error <= bound, "\(name): \(error)")
  }

  @Test(
    arguments: ["jet", "qwen2", "mamba2-layer", "gdn-layer"],
    [
      (TestBackend.cpu(threads: 2), Recomputation.none), (.cpu(threads: 2), .cheap), (.cpu(threads: 2), .layer),
      (.reference, .none), (.singleReference, .layer), (.singleReference, .cheap),
    ])
  func modelMatchesReference(_ name: String, run: (backend: TestBackend, recomputation: Recomputation)) throws {
    try compare(goldenFolder + "/" + name, run.backend, run.recomputation)
  }

  /// Families that the shared goldens do not have: windows of Mistral, stretched angles, biases, a query scale.
  @Test(
    arguments: ["mistral", "linear", "yarn", "yarn-attention", "gemma-scale"],
    [TestBackend.cpu(threads: 2), .reference])
  func familyMatchesReference(_ name: String, backend: TestBackend) throws {
    try compare(goldenFolder + "/families/" + name, backend, .none)
  }

  /// Those of the workplace.
  @Test(
    .enabled(if: sharedFolder != nil, "there is no folder shared/golden beside the checkout"),
    arguments: ["jet", "qwen2", "llama", "llama3", "qwen3", "gemma3"], [TestBackend.cpu(threads: 2), .reference])
  func modelMatchesSharedReference(_ name: String, backend: TestBackend) throws {
    try compare(
      #require(sharedFolder) + "/golden/" + name, backend, .none)
  }

  private func compare(_ folder: String, _ kind: TestBackend, _ recomputation: Recomputation) throws {
    let name = "\(folder.split(separator: "/").suffix(3).joined(separator: "/")) on \(kind)"
    let backend = kind.make()
    let model = try HybridLM.load(folder, backend: backend)
    let golden = try SafetensorsFile(path: folder + "/golden.safetensors")
    let ids = try golden.integers("input_ids")
    let labels = try golden.integers("labels")
    let shape = try #require(golden.entries["input_ids"]).shape
    let batch = Batch(tokens: backend.tensor(ids), segments: Segments(count: shape[0], length: shape[1]))

    // The labels are already shifted: label t is what token t predicts; a negative one does not count.
    let targets = labels
    let counted = targets.filter { $0 >= 0 }.count
    let arena = Arena(model.store, backend: backend) { _ in true }
    arena.beginBackward()
    let (losses, tape) = try backend.recording {
      var outputs: [Tensor] = []
      let hidden = model(batch, recompute: LayerRecomputation(recomputation)) { outputs.append($1) }
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

  @Test(arguments: TestBackend.all) func gatedDeltaRuleMatchesReference(kind: TestBackend) throws {
    let backend = kind.make()
    let golden = try SafetensorsFile(path: goldenFolder + "/ops/gated_delta_rule.safetensors")
    let shape = try #require(golden.entries["v"]).shape
    let (B, T, H, V) = (shape[0], shape[1], shape[2], shape[3])
    let keySize = try #require(golden.entries["k"]).shape[3]
    func load(_ name: String, _ shape: [Int]) throws -> Tensor {
      backend.tensor(try golden.floats(name), shape)
    }
    let layout = Layout(Segments(count: B, length: T), on: backend)
    let (q, k) = (try load("q", [B * T, H, keySize]), try load("k", [B * T, H, keySize]))
    let (v, g) = (try load("v", [B * T, H, V]), try load("g", [B * T, H]))
    let beta = try load("beta", [B * T, H])
    let initial = try load("initial_state", [B, H, keySize, V])
    let (o, final) = (backend.empty(v.shape), backend.empty(initial.shape))
    let scale = 1 / Float(keySize).squareRoot()
    let saved = try #require(
      backend.gatedDeltaRule(
        q: q, k: k, v: v, g: g, beta: beta, scale: scale, layout: layout, initial: initial, o: o, final: final,
        saves: true))
    check("\(kind) gated_delta_rule o", o.toArray(), try golden.floats("o"), bound: Self.outputBound)
    check(
      "\(kind) gated_delta_rule final_state", final.toArray(), try golden.floats("final_state"),
      bound: Self.outputBound)
    let (dQ, dK, dV) = (backend.empty(q.shape), backend.empty(k.shape), backend.empty(v.shape))
    let (dG, dBeta, dInitial) = (
      backend.empty(g.shape), backend.empty(beta.shape), backend.empty(initial.shape)
    )
    backend.gatedDeltaRuleBackward(
      dO: try load("do", v.shape), dFinal: try load("dstate", initial.shape), q: q, k: k, v: v, g: g,
      beta: beta, scale: scale, layout: layout, saved: saved, dQ: dQ, dK: dK, dV: dV, dG: dG,
      dBeta: dBeta, dInitial: dInitial)
    for (name, gradient) in [
      ("dq", dQ), ("dk", dK), ("dv", dV), ("dg", dG), ("dbeta", dBeta), ("dinitial_state", dInitial),
    ] {
      check("\(kind) gated_delta_rule \(name)", gradient.toArray(), try golden.floats(name), bound: Self.gradientBound)
    }
  }

  /// The other recurrences: outputs, final states, and every gradient, also through the final state.
  @Test(arguments: ["gla", "retention", "scalar_gate", "delta_rule", "rwkv7_dplr"], TestBackend.all)
  func recurrenceMatchesReference(_ name: String, kind: TestBackend) throws {
    let backend = kind.make()
    let golden = try SafetensorsFile(path: goldenFolder + "/ops/\(name).safetensors")
    func load(_ key: String) throws -> Tensor {
      let shape = try #require(golden.entries[key]).shape
      // States keep their batch; everything else lies end to end.
      let isState = key.contains("state")
      return backend.tensor(try golden.floats(key), isState ? shape : [shape[0] * shape[1]] + shape[2...])
    }
    let shape = try #require(golden.entries["v"]).shape
    let layout = Layout(Segments(count: shape[0], length: shape[1]), on: backend)
    let (q, k, v) = (try load("q"), try load("k"), try load("v"))
    let (dO, dFinal, initial) = (try load("do"), try load("dstate"), try load("initial_state"))
    let scale = 1 / Float(q.shape[2]).squareRoot()
    let (o, final) = (backend.empty(v.shape), backend.empty(initial.shape))
    let (dQ, dK, dV) = (backend.empty(q.shape), backend.empty(k.shape), backend.empty(v.shape))
    let dInitial = backend.empty(initial.shape)
    var gradients = [("dq", dQ), ("dk", dK), ("dv", dV), ("dinitial_state", dInitial)]
    switch name {
    case "rwkv7_dplr":
      let (alpha, beta, g) = (try load("alpha"), try load("beta"), try load("gk"))
      let (dAlpha, dBeta, dG) = (backend.empty(k.shape), backend.empty(k.shape), backend.empty(k.shape))
      let saved = try #require(
        backend.diagonalPlusLowRank(
          q: q, k: k, v: v, alpha: alpha, beta: beta, g: g, scale: scale, layout: layout, initial: initial, o: o,
          final: final, saves: true))
      backend.diagonalPlusLowRankBackward(
        dO: dO, dFinal: dFinal, q: q, k: k, v: v, alpha: alpha, beta: beta, g: g, scale: scale, layout: layout,
        saved: saved, dQ: dQ, dK: dK, dV: dV, dAlpha: dAlpha, dBeta: dBeta, dG: dG, dInitial: dInitial)
      gradients += [("dalpha", dAlpha), ("dbeta", dBeta), ("dgk", dG)]
    case "delta_rule":
      let beta = try load("beta")
      let g = backend.zeros(beta.shape)
      let (dBeta, dG) = (backend.empty(beta.shape), backend.empty(beta.shape))
      let saved = try #require(
        backend.gatedDeltaRule(
          q: q, k: k, v: v, g: g, beta: beta, scale: scale, layout: layout, initial: initial, o: o, final: final,
          saves: true))
      backend.gatedDeltaRuleBackward(
        dO: dO, dFinal: dFinal, q: q, k: k, v: v, g: g, beta: beta, scale: scale, layout: layout, saved: saved,
        dQ: dQ, dK: dK, dV: dV, dG: dG, dBeta: dBeta, dInitial: dInitial)
      gradients.append(("dbeta", dBeta))
    default:
      let key = name == "gla" ? "gk" : "g"
      let g = try load(key)
      let dG = backend.empty(g.shape)
      let saved = try #require(
        backend.decayedAttention(
          q: q, k: k, v: v, g: g, scale: scale, layout: layout, initial: initial, o: o, final: final, saves: true))
      backend.decayedAttentionBackward(
        dO: dO, dFinal: dFinal, q: q, k: k, v: v, g: g, scale: scale, layout: layout, saved: saved, dQ: dQ,
        dK: dK, dV: dV, dG: dG, dInitial: dInitial)
      if golden.entries["d" + key] != nil { gradients.append(("d" + key, dG)) }
    }
    check("\(kind) \(name) o", o.toArray(), try golden.floats("o"), bound: Self.outputBound)
    check("\(name) final_state", final.toArray(), try golden.floats("final_state"), bound: Self.outputBound)
    for (key, gradient) in gradients {
      check("\(name) \(key)", gradient.toArray(), try golden.floats(key), bound: Self.gradientBound)
    }
  }
}

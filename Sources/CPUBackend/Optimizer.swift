import Tensors

extension CPUBackend {
  package func adamW(
    parameters: Tensor, gradients: Tensor, moment1: Tensor, moment2: Tensor, step: AdamWStep
  ) {
    let (w, g, m, v) = (parameters.floats, gradients.floats, moment1.floats, moment2.floats)
    let rootCorrection = step.correction2.squareRoot()
    forEachSlice(count: parameters.count) { offset, count in
      sweep(count) { i, n in
        let i = offset + i
        let gradient = g.lanes(i, n) * step.gradientScale
        let first = m.lanes(i, n) * step.beta1 + gradient * (1 - step.beta1)
        let second = v.lanes(i, n) * step.beta2 + gradient * gradient * (1 - step.beta2)
        m.store(first, i, n)
        v.store(second, i, n)
        let update = (first / step.correction1) / (second.squareRoot() / rootCorrection + step.epsilon)
        let old = w.lanes(i, n)
        let shrunk = old - old * (step.learningRate * step.weightDecay)
        w.store(shrunk - update * step.learningRate, i, n)
      }
    }
  }
}

import NN
import Tensors

extension Sampling {
  /// A token for these logits, drawn by the next number of `random`; of a temperature of 0 it takes none.
  package func choose(_ logits: [Float], random: inout RandomStream) -> UInt32 {
    guard let token = token(of: logits, uniform: temperature > 0 ? random.uniform() : 0) else {
      preconditionFailure("logits that are not finite")
    }
    return UInt32(token)
  }
}

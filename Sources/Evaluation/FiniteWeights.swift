import Models
import Tensors
import Training

extension HybridLM {
  /// Refuses weights that are not finite numbers, as a run that diverged or a damaged file leaves them. Reads all of them.
  ///
  /// - Parameter path: where the model came from
  /// - Throws: `JobError` with the first such parameter
  package func checkFinite(at path: String) throws {
    if let fault = notFinite { throw JobError(.data, "\(path): \(fault)") }
  }

  /// The first parameter with values that are not finite, in words; nil where there is none.
  var notFinite: String? {
    for parameter in store.parameters {
      let x = parameter.value
      var count = 0
      x.backend.read(x) { bytes in
        // All exponent bits set is infinite or no number.
        if x.dtype == .bfloat16 {
          for word in bytes.bindMemory(to: UInt16.self) where word & 0x7F80 == 0x7F80 { count += 1 }
        } else {
          for word in bytes.bindMemory(to: UInt32.self) where word & 0x7F80_0000 == 0x7F80_0000 { count += 1 }
        }
      }
      if count > 0 {
        return "\(count) of \(parameter.count) values of \(parameter.name) are not finite numbers: "
          + "the file is damaged, or the training that made it diverged"
      }
    }
    return nil
  }

  /// What to say of a result that is not finite.
  func unusable(_ what: String) -> JobError {
    JobError(
      .data, notFinite ?? "\(what) is not a finite number, though all weights are: they are too large to compute with")
  }
}

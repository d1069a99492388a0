import Models

extension StepEstimate {
  /// Matrix operations of the models in one micro-batch of `phase`: forward of student and teacher, and backward, each
  /// once, however much the phase recomputes to save memory. What the use of a machine is measured by.
  package static func modelOperations(
    of phase: Phase, student: ModelConfiguration, teacher: ModelConfiguration?
  ) -> Double {
    var phase = phase
    phase.recompute = .none
    return phases([phase], student: student, teacher: teacher, ranks: 1)[0].operationsPerMicroBatch
  }
}

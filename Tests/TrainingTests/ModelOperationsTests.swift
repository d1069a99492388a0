import Foundation
import Models
import TestSupport
import Testing
import Training

/// What the use of a machine (`mfu`) is measured by.
extension TrainingTests {
  /// Operations of the models a token, of every phase of every shipped job that trains: a change of the engine that
  /// counts other ones changes what `mfu` means, and must say so here. Recomputation is not among them.
  @Test func operationsOfShippedJobsAreFrozen() throws {
    #expect(FileManager.default.changeCurrentDirectoryPath(repository))
    var found: [String] = []
    for path in try shippedJobs() {
      let declared = try Job.declaredKind(of: path)
      guard let kind = JobKind(rawValue: declared) else { continue }
      var job = try Job(kind, path: path, overrides: [], ranks: 1)
      // What the demo's jobs begin from is trained first.
      job.plannedTeacher = job.plannedTeacher ?? "Jobs/models/demo-teacher.json"
      job.plannedStudent = job.plannedStudent ?? "Jobs/models/demo-hybrid.json"
      let (student, teacher) = try job.configurations()
      for phase in job.phases {
        let counts = LayerRecomputation.byCost.map { recompute in
          var phase = phase
          phase.recompute = recompute
          return StepEstimate.modelOperations(
            of: phase, student: student, teacher: phase.losses.needsTeacher ? teacher : nil)
        }
        #expect(Set(counts).count == 1, "recomputation counts")
        let perToken = counts[0] / Double(phase.microBatch * phase.context)
        let name = path.dropFirst((repository + "/Jobs/").count)
        found.append("\(name) \(phase.name) \(Int(perToken.rounded()))")
      }
    }
    let file = repository + "/Tests/Fixtures/model-operations.txt"
    let frozen = try String(contentsOfFile: file, encoding: .utf8).split(separator: "\n").map(String.init)
    #expect(found == frozen, "\(found.joined(separator: "\n"))")
  }

  private func shippedJobs() throws -> [String] {
    let jobs = repository + "/Jobs"
    let names = FileManager.default.enumerator(atPath: jobs)?.compactMap { $0 as? String } ?? []
    return names.filter { $0.hasSuffix(".yaml") && !$0.hasPrefix("mixes/") }.sorted().map { jobs + "/" + $0 }
  }
}

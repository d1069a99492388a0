import Foundation
import TestSupport
import Testing

/// `plan`: every shipped job where nothing is trained yet, and data that a run would refuse.
@Suite struct PlanTests {
  static let jobs: [String] = {
    let names = FileManager.default.enumerator(atPath: repository + "/Jobs")?.compactMap { $0 as? String } ?? []
    return names.filter { $0.hasSuffix(".yaml") && !$0.hasPrefix("mixes/") }.sorted()
  }()

  @Test func shippedJobsHaveATime() throws {
    #expect(Self.jobs.count > 12)
    let small = try SmallRun()
    try FileManager.default.createSymbolicLink(
      atPath: small.folder + "/Jobs", withDestinationPath: repository + "/Jobs")
    for job in Self.jobs {
      let (status, output) = try small.run(["plan", "--job", "Jobs/" + job])
      #expect(status == 0, "\(job): \(output)")
      let time = output.split(separator: "\n").first { $0.hasPrefix("time ") } ?? ""
      #expect(time.contains(#/^time (\d+(\.\d+)? years|\d+d\d\dh|\d+h\d\dm|\d+m\d\ds|\d+\.\ds)/#), "\(job): \(output)")
      #expect(output.contains("\nassumed: every rank has a machine such as this one ("), "\(job): \(output)")
    }
    let large = try small.run(["plan", "--job", "Jobs/jet-nemotron-2b/distill.yaml", "--rate", "100"]).output
    #expect(large.contains("time 15.8 years") && large.contains("is not there yet"), "\(large)")
  }

  @Test func dataThatARunWouldRefuseAreRefused() throws {
    let small = try SmallRun()
    func plan(_ set: String..., expecting status: Int32, saying text: String) throws {
      let (ended, output) = try small.run(
        ["plan", "--job", "distill.yaml", "--kind", "distill"] + set.flatMap { ["--set", $0] })
      #expect(ended == status && output.contains(text), "\(set): \(ended) \(output)")
    }
    try plan(expecting: 0, saying: "source qa: weight 1, 3 shards")
    try small.write("once.yaml", "sources: [{name: qa, weight: 1}]\nexhaustion: stop\n")
    try plan(expecting: 0, saying: "time ")
    try plan(
      "data.mix=./once.yaml", "phases.1.tokens=1M", expecting: 65, saying: "epochs would be read, mix once allows 1")
    // Of a model, a dataset and a tokenizer whose ids do not fit.
    for name in ["teacher", "hybrid"] {
      let text = try String(contentsOfFile: small.folder + "/\(name).json", encoding: .utf8)
      try small.write("\(name)-100.json", text.replacingOccurrences(of: "257", with: "100"))
    }
    let shapes = ["model.teacher=teacher-100.json", "model.student=hybrid-100.json"]
    try plan(shapes[0], shapes[1], expecting: 65, saying: "has ids up to 256, the model a vocabulary of 100")
    try small.write("two.yaml", "sources: [{name: qa, weight: 1}, {name: absent, weight: 1}]\n")
    try plan(
      shapes[0], shapes[1], "data.mix=./two.yaml", expecting: 65, saying: "has ids up to 256, the model a vocabulary")
    try plan("data.mix=./two.yaml", expecting: 0, saying: "assumed: the sources that are not there hold enough")
    try plan("model.student=hybrid-100.json", expecting: 65, saying: "rows of the vocabulary")
  }
}

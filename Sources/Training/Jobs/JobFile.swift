import Conversion
import Files
import Foundation
import Models
import TokenStreams

extension Job {
  /// Reads the job at `path`.
  ///
  /// - Parameters:
  ///   - overrides: `key.path=value` pairs, taken as YAML
  ///   - ranks: that will run it, for the batch to divide by
  package init(_ kind: JobKind, path: String, overrides: [String], ranks: Int) throws {
    var object = try Self.mapping(path)
    for override in overrides { try Self.apply(override, to: &object) }
    let faults = YAMLReader.Faults()
    let root = YAMLReader(object, path: "", faults: faults)
    self.kind = kind
    self.path = path
    text = try yamlText(object)
    name = root.string("name") ?? ((path as NSString).lastPathComponent as NSString).deletingPathExtension
    runFolder = root.string("run_dir") ?? "Checkpoints/" + name
    if name.isEmpty || name.contains("/") || name.hasPrefix(".") {
      root.fault("name", "'\(name)' names no run: letters, digits and hyphens, no path")
    }
    if let declared = root.string("kind"), declared != kind.rawValue {
      root.fault("kind", "this job file is for jettrain \(declared)")
    }

    let model = root.section("model")
    teacher = model.string("teacher")
    student = model.required("student", "a config.json to make a model from, or a model folder")
    initialization = model.choice("init", StudentInitialization.self) ?? .transfer
    let budget = model.integer("full_layers", from: 0)
    let slidingBudget = model.integer("sliding_layers", from: 0)
    let share = model.number("budget_share") ?? 0.75
    if share < 0 || share > 1 { model.fault("budget_share", "\(share) is not between 0 and 1") }
    if let configuration = try? modelConfiguration(of: student) {
      let isSupernet = configuration.supernetMixer != nil
      if isSupernet { model.demand("full_layers", "layers of full attention in the paths of this supernet") }
      if !isSupernet && budget != nil {
        model.fault("full_layers", "\(student) is not a supernet: its config.json has no supernet_mixer")
      }
      if slidingBudget ?? 0 > 0 && configuration.slidingWindow == nil {
        model.fault("sliding_layers", "\(student) has no efficient_attention_config.swa.window_size")
      }
    }
    supernet = budget.map {
      PathSampling(fullLayers: $0, slidingLayers: slidingBudget ?? 0, budgetShare: share)
    }
    plannedTeacher = model.string("teacher_config")
    plannedStudent = model.string("student_config")
    model.rejectUnknownKeys()

    let data = root.section("data")
    if let path = data.string("path") {
      let url = URL(fileURLWithPath: path)
      for key in ["root", "mix"] where data.isGiven(key) {
        data.fault(key, "stands beside data.path, which names a dataset: give one of them")
      }
      (dataRoot, mixName) = (folder(of: path.hasSuffix("/") ? String(path.dropLast()) : path), url.lastPathComponent)
      readsOneDataset = true
    } else {
      dataRoot = data.required("root", "the folder that holds the datasets; or data.path, one dataset")
      mixName = data.required("mix", "a name from Jobs/mixes, or a path")
    }
    mixFolder = data.string("mixes") ?? "Jobs/mixes"
    tokenizer = data.string("tokenizer") ?? "bytes"
    data.rejectUnknownKeys()

    let train = root.section("train")
    seed = UInt64(train.integer("seed", to: .max) ?? 1)
    device = train.string("device")
    // What is no list of phases was reported, and says nothing of train.
    let sections = root.isGiven("phases") ? root.sections("phases", fallback: train) : [train]
    let hasTeacher = teacher != nil || model.isMisplaced
    phases = (sections ?? []).enumerated().map { index, section in
      Phase(section, kind: kind, index: index, hasTeacher: hasTeacher, ranks: ranks)
    }
    if let sections {
      if sections.isEmpty { root.fault("phases", "the list is empty") }
      let phaseKeys = sections.reduce(into: Set<String>()) { $0.formUnion($1.keysAsked) }
      for section in sections where section !== train { section.rejectUnknownKeys() }
      if !sections.isEmpty { train.rejectUnknownKeys(known: phaseKeys) }
    }

    let validation = root.section("validation")
    validationEvery = validation.integer("every") ?? 0
    validationSequences = validation.integer("sequences", from: 1, to: 100_000) ?? 32
    validation.rejectUnknownKeys()
    let checkpoints = root.section("checkpoints")
    checkpointEvery = checkpoints.integer("every") ?? 0
    checkpointMinutes = checkpoints.number("minutes") ?? 30
    keepLast = checkpoints.integer("keep_last", from: 1) ?? 3
    keepEvery = checkpoints.integer("keep_every") ?? 0
    compressionLevel = Int32(checkpoints.integer("compression_level", from: -7, to: 19) ?? -1)
    onSaveFailure = checkpoints.choice("on_failure", SaveFailurePolicy.self) ?? .retry
    gathersCheckpoints = checkpoints.boolean("gather") ?? false
    checkpoints.rejectUnknownKeys()
    let spikeSection = root.section("spikes")
    spikes = SpikeGuard.Settings()
    spikes.policy = spikeSection.choice("policy", SpikeGuard.Policy.self) ?? .fail
    spikes.factor = spikeSection.number("factor") ?? 0
    spikes.limit = spikeSection.integer("limit", from: 1) ?? 5
    spikeSection.rejectUnknownKeys()
    let watchdog = root.section("watchdog")
    watchdogFloor = watchdog.number("floor") ?? 300
    replicaCheckEvery = watchdog.integer("replicas_every") ?? 100
    watchdog.rejectUnknownKeys()
    logEvery = root.integer("log_every", from: 1) ?? 10
    root.rejectUnknownKeys()
    guard faults.lines.isEmpty else {
      throw JobError(.usage, reasons: faults.lines.map { "\(path): \($0)" })
    }
  }

  /// The YAML mapping of a job file.
  package static func mapping(_ path: String) throws -> [String: Any] {
    guard FileManager.default.fileExists(atPath: path) else {
      throw JobError(.usage, "\(path): there is no such job file")
    }
    let text = String(decoding: try readFile(path), as: UTF8.self)
    let loaded: Any?
    do { loaded = try parseYAML(text) } catch {
      throw JobError(.usage, "\(path): is not YAML: \(error)")
    }
    guard let object = loaded as? [String: Any] else {
      throw JobError(.usage, "\(path): is not a YAML mapping")
    }
    return object
  }

  /// An override that gives `key` this text, whatever else YAML would take it for.
  package static func setting(_ key: String, to text: String) -> String {
    let quoted = text.replacingOccurrences(of: "'", with: "''")
    return "\(key)='\(quoted)'"
  }

  /// Sets `key.path=value`, the value taken as YAML.
  package static func apply(_ override: String, to object: inout [String: Any]) throws {
    let parts = override.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
    guard parts.count == 2, !parts[0].isEmpty else {
      throw JobError(.usage, "--set \(override): expected key.path=value")
    }
    let value = (try? parseYAML(String(parts[1]))) ?? String(parts[1])
    func set(_ keys: ArraySlice<Substring>, in object: inout [String: Any]) throws {
      guard let key = keys.first.map(String.init) else { return }
      if keys.count == 1 {
        object[key] = value
      } else if key == "phases", let index = keys.dropFirst().first.flatMap({ Int($0) }),
        var list = object[key] as? [[String: Any]], list.indices.contains(index)
      {
        try set(keys.dropFirst(2), in: &list[index])
        object[key] = list
      } else {
        guard var child = (object[key] ?? [String: Any]()) as? [String: Any] else {
          throw JobError(.usage, "--set \(override): \(key) is not a mapping")
        }
        try set(keys.dropFirst(), in: &child)
        object[key] = child
      }
    }
    try set(parts[0].split(separator: ".")[...], in: &object)
  }
}

extension Job {
  /// The `kind` that a job file declares.
  package static func declaredKind(of path: String) throws -> String {
    let known = "pretrain, distill, finetune or search"
    let kind = try mapping(path)["kind"]
    guard let kind, !(kind is NSNull) else { throw JobError(.usage, "\(path): kind: is missing: \(known)") }
    guard let name = kind as? String else { throw JobError(.usage, "\(path): kind: \(kind) is not one of \(known)") }
    return name
  }

  /// The shapes of student and teacher, from their folders or, where those do not exist yet, from the configurations
  /// that the job gives for planning.
  package func configurations() throws -> (student: ModelConfiguration, teacher: ModelConfiguration?) {
    (try studentConfiguration(), try teacher.map { try Self.configuration($0, plannedTeacher) })
  }

  /// The same of the student alone.
  package func studentConfiguration() throws -> ModelConfiguration {
    try Self.configuration(student, plannedStudent)
  }

  private static func configuration(_ path: String, _ planned: String?) throws -> ModelConfiguration {
    let exists = FileManager.default.fileExists(atPath: path)
    return try modelConfiguration(of: exists ? path : planned ?? path)
  }
}

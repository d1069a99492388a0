import Checkpointing
import Files
import Foundation
import Hashing
import MPI
import Models
import Tensors
import TokenStreams

/// What a run is made of before its first step: models, data, folder and identity, which all ranks have compared.
struct RunInputs {
  let models: ModelSetup
  /// Of the phases.
  let plans: [DataPlan]
  let run: RunFolder
  let sharing: FolderSharing
  /// What a checkpoint must have in common with this run, but for the plans.
  let identity: CheckpointManifest.Identity
  private let sampling: PathSampling?

  /// The run folder of `job`, for one session.
  static func folder(_ job: Job, world: Communicator) throws -> RunFolder {
    var run = RunFolder(job.runFolder)
    try run.refuseLinks()
    let session = String(UInt64.random(in: 0 ... .max), radix: 36)
    run.session = String(decoding: try world.broadcast(Array(session.utf8)), as: UTF8.self)
    return run
  }

  /// Keeps the folder to this run: the coordinator's, nil on other ranks. What other sessions left of their signs of life
  /// goes.
  static func lock(_ run: RunFolder, world: Communicator) throws -> FolderLock? {
    var lock: FolderLock?
    try agree(world) {
      guard world.isCoordinator else { return }
      do {
        try createFolder(run.path)
        lock = try FolderLock(
          run.path, signs: Watchdog.signs(ofRun: run.path, session: run.session),
          remedy: "wait for it, stop it, or choose another --run-dir")
      } catch let error as FileError where error.kind == .system {
        throw FileError(error.path, error.reason + "; choose another --run-dir", kind: .system)
      }
      Watchdog.removeOld(in: run.path, but: run.session)
    }
    return lock
  }

  /// Reads models and data, and agrees on them over the ranks.
  init(_ job: Job, run: RunFolder, world: Communicator, backend: any Backend) throws {
    let models = try ModelSetup(job, backend: backend)
    self.models = models
    sampling = job.supernet
    for phase in job.phases
    where !models.student.store.parameters.contains(where: { phase.trains($0, of: models.student) }) {
      throw JobError(.usage, "\(job.path): phase \(phase.name): freeze leaves nothing of \(job.student) to train")
    }
    plans = try job.dataPlans(
      student: models.student.configuration, teacher: models.teacher?.configuration, checksFiles: world.isCoordinator)
    // Hashing billions of weights once is enough.
    var hashes = Data()
    if world.isCoordinator {
      let frozen = ModelSetup.hash(models.student) { parameter in
        job.phases.allSatisfy { !$0.trains(parameter, of: models.student) }
      }
      let teacher = models.teacher.map { ModelSetup.hash($0) } ?? ""
      hashes = Data("\(frozen) \(teacher)".utf8)
    }
    let agreed = String(decoding: try world.broadcast(Array(hashes)), as: UTF8.self).split(
      separator: " ", omittingEmptySubsequences: false)
    self.run = run
    identity = CheckpointManifest.Identity(
      kind: job.kind.rawValue, model: sha256(models.student.configuration.json), frozen: String(agreed[0]),
      teacher: String(agreed[1]), plans: [])
    // A rank that is taken by mistake for one that does not see the folder is only slower.
    sharing = try FolderSharing(run, world: world, patience: job.gathersCheckpoints ? 1 : 10)
    guard sharing.ranksWithoutFolder.isEmpty || job.gathersCheckpoints else {
      throw JobError(
        .usage,
        "\(run.path): not seen by \(sharing.description): keep it on a file system that all hosts share, or set "
          + "checkpoints.gather: true")
    }
    let settings = job.settings.sorted { $0.key < $1.key }
    let everywhere = try world.allGather(Array(sha256("\(identity) \(settings) \(orders(at: nil))").utf8))
    guard Set(everywhere).count == 1 else {
      throw JobError(.data, "the ranks see different jobs, models or data: are the files the same on all hosts?")
    }
  }

  /// Identities of the phases' data as far as a run has come: changes of the mix that are still ahead do not count. nil is
  /// the end of the run.
  func orders(at position: Position?) -> [String] {
    plans.enumerated().map { index, plan in
      let phase = position?.phase ?? plans.count
      let hash = plan.hash(before: index < phase ? .max : index == phase ? position?.sequences ?? 0 : 0)
      return sampling.map { sha256("\(hash) \($0)") } ?? hash
    }
  }

  /// The same bits come only from the same matrix products: what to say when hosts have different ones.
  static func kernelWarning(of backend: any Backend, world: Communicator) throws -> String? {
    let all = try world.allGather(Array(backend.kernelIdentity.utf8)).map { String(decoding: $0, as: UTF8.self) }
    guard let other = all.indices.first(where: { all[$0] != all[0] }) else { return nil }
    return
      "WARNING: products use the kernels of \(all[0]) on rank 0 and of \(all[other]) on rank \(other); the result depends on "
      + "which rank does what. On CPUs set OPENBLAS_CORETYPE to the same on all hosts (mpirun -x OPENBLAS_CORETYPE)"
  }
}

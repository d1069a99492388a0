import Files
import Foundation

/// The folder of one run: its checkpoints, newest last, and the name of the latest.
package struct RunFolder: Sendable {
  package let path: String
  /// Part of the names of unfinished saves, the same on all ranks of one start: what a rank of an earlier start still
  /// writes, cut off from the others, lands in none of this one's.
  package var session = ""

  package init(_ path: String) { self.path = path }

  private static let prefix = "step-"
  private static let partialSuffix = ".partial"

  /// `step-00001000`
  package static func name(step: Int) -> String {
    let digits = String(step)
    return prefix + String(repeating: "0", count: max(0, 8 - digits.count)) + digits
  }

  /// Where the checkpoint of this step lies, or would.
  package func checkpoint(step: Int) -> String { path + "/" + Self.name(step: step) }

  /// Where a save gathers before it is one.
  package func partial(step: Int) -> String {
    checkpoint(step: step) + (session.isEmpty ? "" : "." + session) + Self.partialSuffix
  }

  /// Steps of all finished checkpoints, ascending.
  package var steps: [Int] {
    let names = (try? FileManager.default.contentsOfDirectory(atPath: path)) ?? []
    return names.compactMap { $0.hasPrefix(Self.prefix) ? Int($0.dropFirst(Self.prefix.count)) : nil }.sorted()
  }

  /// The step that `latest` names.
  package var latest: Int? {
    guard let data = FileManager.default.contents(atPath: path + "/latest") else { return nil }
    let name = String(decoding: data, as: UTF8.self).trimmingCharacters(in: .whitespacesAndNewlines)
    return name.hasPrefix(Self.prefix) ? Int(name.dropFirst(Self.prefix.count)) : nil
  }

  /// The log of the run.
  package var metrics: String { path + "/metrics.jsonl" }

  /// Files on their way between hosts, and the one by which ranks learn whether they see this folder.
  var outbox: String { path + "/.outbox-" + session }
  var inbox: String { path + "/.inbox-" + session }
  var token: String { path + "/.shared-" + session }

  /// Removes what a killed run left: saves that never finished, and files that never arrived.
  package func removePartials() throws {
    let names = (try? FileManager.default.contentsOfDirectory(atPath: path)) ?? []
    for name in names
    where name.hasPrefix(Self.prefix) && name.hasSuffix(Self.partialSuffix)
      || [".outbox-", ".inbox-", ".shared-"].contains(where: name.hasPrefix)
    {
      try? FileManager.default.removeItem(atPath: path + "/" + name)
    }
  }

  /// Refuses a folder, which may come from elsewhere, in which links stand where a run writes.
  package func refuseLinks() throws {
    func refuse(_ name: String) throws {
      if (try? FileManager.default.destinationOfSymbolicLink(atPath: path + "/" + name)) != nil {
        throw FileError(path + "/" + name, "is a link, and a run writes nothing outside its folder: remove it")
      }
    }
    for name in ["metrics.jsonl", "model", "logs", ".heartbeats", "latest", ".lock"] { try refuse(name) }
    // mpirun writes into folders of its own below the logs.
    for folder in ["logs", ".heartbeats"] {
      let names = FileManager.default.enumerator(atPath: path + "/" + folder)?.compactMap { $0 as? String } ?? []
      for name in names { try refuse(folder + "/" + name) }
    }
  }

  /// Gives a finished save its name and makes it the latest. From the renaming on the checkpoint is there, whatever fails.
  ///
  /// - Returns: what failed behind the renaming; nil when nothing did
  func commit(step: Int) throws -> (any Error)? {
    try flushFolder(partial(step: step))
    try renameFile(partial(step: step), to: checkpoint(step: step))
    do {
      try flushFolder(path)
      try FailPoint.reach(.beforeLatest, path: path + "/latest")
      try writeDurably(Data((Self.name(step: step) + "\n").utf8), to: path + "/latest")
      try FailPoint.reach(.afterLatest, path: path)
    } catch { return error }
    return nil
  }

  /// Renames a checkpoint to `step-N.damaged`, or what else `reason` says, or the first such name that is free.
  package func setAside(step: Int, as reason: String = "damaged") throws {
    var name = checkpoint(step: step) + "." + reason
    while FileManager.default.fileExists(atPath: name) { name += "-again" }
    try renameDurably(checkpoint(step: step), to: name)
  }

  /// Takes old checkpoints away but the last `keepLast`, every `keepEvery`-th step (0: none), and those of the steps
  /// `needed`: what the running program resumed from, and what it may have to roll back to.
  ///
  /// - Returns: folders to be deleted, at leisure: a start deletes what is left of them
  package func retain(keepLast: Int, keepEvery: Int, needed: [Int]) -> [String] {
    var doomed: [String] = []
    for step in steps.dropLast(keepLast) where !needed.contains(step) && !(keepEvery > 0 && step % keepEvery == 0) {
      // Renamed first, so that a kill in between leaves no half of a checkpoint; to a name that no save ever has.
      let name = checkpoint(step: step) + "." + String(UInt64.random(in: 0 ... .max), radix: 36) + Self.partialSuffix
      if rename(checkpoint(step: step), name) == 0 { doomed.append(name) }
    }
    return doomed
  }

  /// The checkpoint that `path` means: itself, or the latest of a run folder.
  package static func resolve(_ path: String) throws -> String {
    if FileManager.default.fileExists(atPath: path + "/" + CheckpointManifest.fileName) { return path }
    let folder = RunFolder(path)
    // What lies there, not what `latest` says: that is for people, and may not have been written.
    guard let step = folder.steps.last else {
      throw CheckpointError(path, "is neither a checkpoint nor a run folder that holds one")
    }
    return folder.checkpoint(step: step)
  }
}

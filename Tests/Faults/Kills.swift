import Checkpointing
import Foundation
import NN
import TestSupport

/// Identifiers of the ranks of a run, of this harness alone.
func ranks(of name: String, _ run: SmallRun) -> [Int32] {
  let names = (try? FileManager.default.contentsOfDirectory(atPath: "/proc")) ?? []
  return names.compactMap(Int32.init).filter { pid in
    guard let data = FileManager.default.contents(atPath: "/proc/\(pid)/cmdline"),
      let folder = try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/\(pid)/cwd"), folder == run.folder
    else { return false }
    let words = data.split(separator: 0).map { String(decoding: $0, as: UTF8.self) }
    return words.first?.hasSuffix("/jettrain") == true && words.contains(name) && !words.contains("launch")
  }.sorted()
}

/// Random kills of random ranks of one supervised run.
func kills(count: Int, seed: UInt64) throws -> Tally {
  var tally = Tally()
  let run = try SmallRun()
  let job = [
    "--set", "phases.0.tokens=\(512 * 400)", "--set", "phases.1.tokens=\(512 * 8 * count)", "--set",
    "checkpoints.every=4", "--set", "checkpoints.keep_last=3", "--set", "validation.every=0", "--set",
    "checkpoints.compression_level=19",
  ]
  let reference = try Reference(run, "reference", job: job)
  var random = RandomStream(seed: seed, name: "kills")
  let command =
    [jettrainProgram, "launch", "--ranks", "2", "--max-restarts", "\(10 * count)", "--crashes-at-a-step", "1000"]
    + ["--backoff", "0.01", "--mpirun=--oversubscribe", "--mpirun=--bind-to", "--mpirun=none", "--"]
    + ["distill", "--job", "distill.yaml", "--run-dir", "killed"] + job
  let (process, errors) = try run.start(command)
  let drain = Thread { _ = errors.fileHandleForReading.readDataToEndOfFile() }
  drain.start()
  var (done, duringSave, duringStart, lost) = (0, 0, 0, 0)
  let folder = run.folder + "/killed"
  func isSaving() -> Bool {
    ((try? FileManager.default.contentsOfDirectory(atPath: folder)) ?? []).contains { $0.hasSuffix(".partial") }
  }
  var lastCommitted = 0
  while process.isRunning, done < count {
    usleep(UInt32(200_000 + random.next() % 900_000))
    // Every third kill waits for a save.
    if done % 3 == 0 {
      for _ in 0..<4000 where process.isRunning && !isSaving() { usleep(500) }
    }
    let alive = ranks(of: "killed", run)
    guard let victim = alive.isEmpty ? nil : alive[Int(random.next() % UInt64(alive.count))] else { continue }
    let saving = isSaving()
    let committed = RunFolder(folder).steps.last ?? 0
    if committed < lastCommitted { lost += 1 }
    lastCommitted = committed
    guard kill(victim, SIGKILL) == 0 else { continue }
    done += 1
    if saving { duringSave += 1 }
    if alive.count < 2 { duringStart += 1 }
    usleep(150_000)
  }
  process.waitUntilExit()
  print(
    "kills: \(done), of them \(duringSave) during a save, \(duringStart) while starting; exit \(process.terminationStatus)"
  )
  tally.check(process.terminationStatus == 0, "the supervised run ended with \(process.terminationStatus)")
  tally.check(lost == 0, "\(lost) committed checkpoints were lost")
  tally.check(try reference.equals("killed"), "weights or losses differ from those of the undisturbed run")
  tally.check(done >= count, "the run ended after \(done) kills")
  if let report = try? String(contentsOfFile: folder + "/logs/report.txt", encoding: .utf8) {
    print(report.prefix { $0 != "\n" })
  }
  return tally
}

import Foundation

/// Keeps a folder to one program: a run folder, or a dataset that is being built. Whoever comes second is refused with
/// host, process and time of the first.
///
/// The kernel holds the lock (`flock`), and lets go of it when the process ends, however it ends, on another host too where
/// the file system passes locks on. Where it does not, the content decides: a process of this host is looked for, one of
/// another host must show that it lives by a change of its signs of life.
package final class FolderLock {
  /// Who holds a folder.
  struct Holder: Codable {
    let host: String
    let process: Int32
    /// When the process began, in clock ticks since its host did: another process may have its number by now.
    let began: String
    /// A name of the host's start.
    let boot: String
    let since: String
    /// Where the holder shows that it lives: a file that changes.
    let signs: String
  }

  /// Of the lock in the folder.
  package static let fileName = ".lock"
  /// Seconds that a lock is waited for: the process of a job that ended a moment ago may still be ending.
  private static let patience = 5.0
  /// Seconds in which a holder on another host shows itself.
  private static let signSeconds = 3.0

  private let path: String
  private let descriptor: Int32
  /// Whose lock this was until its program ended without giving it back; nil where it was free.
  package private(set) var takenOver: String?

  /// Takes the lock of `folder`, which must exist.
  ///
  /// - Parameters:
  ///   - name: of the lock, where a folder has several
  ///   - signs: a file that changes every second while the holder lives, where there is one
  ///   - remedy: what to do instead, for the message
  /// - Throws: `FileError` of the holder when another program has it
  package init(_ folder: String, name: String = fileName, signs: String = "", remedy: String) throws {
    path = folder + "/" + name
    descriptor = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0o666)
    guard descriptor >= 0 else { throw FileError.system(path, "cannot be opened") }
    do { try take(folder, signs: signs, remedy: remedy) } catch {
      close(descriptor)
      throw error
    }
  }

  private func take(_ folder: String, signs: String, remedy: String) throws {
    let end = ContinuousClock.now + .seconds(Self.patience)
    var isLocked = flock(descriptor, LOCK_EX | LOCK_NB) == 0
    while !isLocked, errno == EWOULDBLOCK || errno == EINTR, ContinuousClock.now < end {
      usleep(20_000)
      isLocked = flock(descriptor, LOCK_EX | LOCK_NB) == 0
    }
    let isHeld = !isLocked && errno == EWOULDBLOCK
    let holder = content
    let who = holder.map { "host \($0.host), process \($0.process), since \($0.since)" }
    if isHeld || holder.map(Self.isAlive) ?? false {
      throw FileError(folder, "is in use by \(who ?? "another program"): \(remedy)")
    }
    takenOver = who
    let now = ISO8601DateFormatter().string(from: Date())
    let own = Holder(
      host: ProcessInfo.processInfo.hostName, process: getpid(), began: Self.began(getpid()) ?? "", boot: Self.boot,
      since: now, signs: signs)
    // A full disk does not keep a run from starting: the kernel's lock holds without its content.
    let text = (try? JSONEncoder().encode(own)) ?? Data()
    ftruncate(descriptor, 0)
    _ = text.withUnsafeBytes { pwrite(descriptor, $0.baseAddress, $0.count, 0) }
  }

  /// Takes the file away, where nobody will want the folder again.
  package func remove() { unlink(path) }

  deinit {
    ftruncate(descriptor, 0)
    close(descriptor)
  }

  private var content: Holder? {
    var bytes = [UInt8](repeating: 0, count: 4096)
    let count = pread(descriptor, &bytes, bytes.count, 0)
    return count > 0 ? try? JSONDecoder().decode(Holder.self, from: Data(bytes[..<count])) : nil
  }

  /// Whether a holder that left its name still lives, as far as can be told without the kernel's lock.
  private static func isAlive(_ holder: Holder) -> Bool {
    if holder.host == ProcessInfo.processInfo.hostName {
      return holder.boot == boot && holder.process != getpid() && began(holder.process) == holder.began
    }
    guard !holder.signs.isEmpty, let first = FileManager.default.contents(atPath: holder.signs) else { return false }
    let end = ContinuousClock.now + .seconds(signSeconds)
    while ContinuousClock.now < end {
      usleep(200_000)
      if let now = FileManager.default.contents(atPath: holder.signs), now != first { return true }
    }
    return false
  }

  private static let boot =
    ((try? String(contentsOfFile: "/proc/sys/kernel/random/boot_id", encoding: .utf8)) ?? "")
    .trimmingCharacters(in: .whitespacesAndNewlines)

  /// When a process of this host began; nil where there is none.
  private static func began(_ process: Int32) -> String? {
    guard let data = FileManager.default.contents(atPath: "/proc/\(process)/stat") else { return nil }
    // Behind the name in parentheses, the 20th word.
    let words = String(decoding: data, as: UTF8.self).split(separator: ")").last?.split(separator: " ") ?? []
    return words.count > 19 && words[0] != "Z" ? String(words[19]) : nil
  }
}

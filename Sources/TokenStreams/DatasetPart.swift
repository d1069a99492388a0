import Files
import Foundation
import Tokenizers

/// One of several builds that make a dataset together, on as many hosts: whole inputs, one behind the other, of about as
/// many bytes as the other parts'.
package struct DatasetPart: Sendable, Equatable {
  /// Counted from 1.
  package let number: Int
  package let count: Int

  /// Parts of one dataset.
  package static let most = 4096

  /// - Parameter text: such as `3/8`
  package init?(_ text: String) {
    let numbers = text.split(separator: "/", omittingEmptySubsequences: false).map { Int($0) }
    guard numbers.count == 2, let number = numbers[0], let count = numbers[1], (1...Self.most).contains(count),
      (1...count).contains(number)
    else { return nil }
    (self.number, self.count) = (number, count)
  }

  /// How its files are called.
  var name: String { "\(number)-of-\(count)" }

  /// Its inputs among all, by their sizes; at least one where there are as many inputs as parts.
  func range(of sizes: [Int]) -> Range<Int> {
    let share = Double(max(1, sizes.reduce(0, +))) / Double(count)
    var (bounds, sum) = ([0], 0.0)
    for (index, size) in sizes.enumerated() {
      sum += Double(size)
      let rest = (inputs: sizes.count - index - 1, parts: count - bounds.count)
      if rest.parts > 0, rest.inputs == rest.parts || (rest.inputs > rest.parts && sum >= share * Double(bounds.count))
      {
        bounds.append(index + 1)
      }
    }
    bounds += [Int](repeating: sizes.count, count: count + 1 - bounds.count)
    return bounds[number - 1]..<bounds[number]
  }

  /// The place of its `ordinal`-th shard among those of all parts. How many the others have nobody knows yet, so they take
  /// turns.
  func place(of ordinal: Int) -> Int { ordinal * count + number - 1 }
}

/// Files beside the shards of a dataset that is being built. A build in parts has one of each kind a part.
enum BuildFile {
  /// How far a build has come.
  static func progress(_ part: DatasetPart?) -> String { part.map { "building-\($0.name).json" } ?? "building.json" }
  /// What a part that is done consists of, until all are joined.
  static func record(_ part: DatasetPart) -> String { "part-\(part.name).json" }
  static func lock(_ part: DatasetPart?) -> String {
    part.map { FolderLock.fileName + "-" + $0.name } ?? FolderLock.fileName
  }

  static func isLock(_ name: String) -> Bool { name.hasPrefix(FolderLock.fileName) }

  /// The part that a name of the kinds above belongs to.
  static func part(of name: String) -> DatasetPart? {
    for kind in ["building-", "part-"] where name.hasPrefix(kind) && name.hasSuffix(".json") {
      return DatasetPart(name.dropFirst(kind.count).dropLast(5).replacingOccurrences(of: "-of-", with: "/"))
    }
    return nil
  }
}

/// A part that is done.
struct PartRecord: Codable {
  let number: Int
  let count: Int
  /// Of the recipe: parts of a dataset are built alike.
  let identity: String
  /// All inputs of the dataset and their sizes, those of other parts included.
  let inputs: [String]
  /// As if its shards were all.
  let manifest: Manifest

  /// Reads the record of `part` in `folder`.
  init(_ part: DatasetPart, in folder: String) throws {
    let path = folder + "/" + BuildFile.record(part)
    guard let record = try? JSONDecoder().decode(PartRecord.self, from: readFile(path)),
      (record.number, record.count) == (part.number, part.count)
    else { throw FileError(path, "is not the record of part \(part.number) of \(part.count)") }
    try record.manifest.check(path)
    self = record
  }

  init(_ part: DatasetPart, identity: String, inputs: [String], manifest: Manifest) {
    (number, count) = (part.number, part.count)
    (self.identity, self.inputs, self.manifest) = (identity, inputs, manifest)
  }
}

/// Joins the parts of the dataset in `folder`, once all of them are there, belong together and are whole: every shard is read
/// and compared with what its part says of it.
///
/// - Parameter report: is told every fault of a shard
/// - Throws: `FileError`; nothing has changed then
package func joinParts(in folder: String, report: (FileError) -> Void) throws -> Manifest {
  let names = (try? FileManager.default.contentsOfDirectory(atPath: folder)) ?? []
  func fail(_ reason: String) -> FileError { FileError(folder, reason) }
  guard !names.contains(Manifest.fileName) else { throw fail("is joined already, or was never in parts") }
  let counts = Set(names.compactMap { BuildFile.part(of: $0)?.count })
  guard let count = counts.first else {
    throw fail("holds no parts of a dataset: `jettrain tokens build --part 1/2` makes the first of two")
  }
  guard counts.count == 1 else {
    throw fail(
      "holds parts of \(counts.sorted().map { "\($0)" }.joined(separator: " and of ")): remove those of one kind")
  }
  let lock = try FolderLock(folder, remedy: "wait for it")
  let parts = (1...count).compactMap { DatasetPart("\($0)/\(count)") }
  let missing = parts.filter { !names.contains(BuildFile.record($0)) }
  guard missing.isEmpty else {
    let begun = missing.filter { names.contains(BuildFile.progress($0)) }
    throw fail(
      "lacks \(listed(missing)) of \(count)"
        + (begun.isEmpty ? "" : ", of which \(listed(begun)) \(begun.count == 1 ? "has" : "have") begun")
        + ": build them, or copy them here with their shards")
  }
  let records = try parts.map { try PartRecord($0, in: folder) }
  for record in records where record.identity != records[0].identity || !record.manifest.isAlike(records[0].manifest) {
    throw fail(
      "part \(record.number) was built with other settings, inputs or another tokenizer than part 1: build it anew")
  }
  for record in records where record.inputs != records[0].inputs {
    let changed = zip(record.inputs, records[0].inputs).first { $0 != $1 }
    throw fail(
      "part \(record.number) saw other inputs than part 1"
        + (changed.map { " (\($0) where part 1 saw \($1))" } ?? "") + ": build one of them anew")
  }
  let manifest = records[0].manifest.having(records.flatMap(\.manifest.shards))
  guard !manifest.shards.isEmpty else { throw fail("the inputs hold no documents") }
  let faults = try Dataset(folder, manifest: manifest).verify(report)
  guard faults == 0 else {
    throw fail(
      "\(faults) of its shards \(faults == 1 ? "is" : "are") not as built: build the parts that hold them anew")
  }
  try manifest.write(to: folder)
  // From here on it is a dataset; what follows is tidiness.
  for name in names where BuildFile.part(of: name) != nil || BuildFile.isLock(name) {
    try? FileManager.default.removeItem(atPath: folder + "/" + name)
  }
  lock.remove()
  return manifest
}

/// Parts by their numbers: `part 3`, `parts 1, 4`.
private func listed(_ parts: [DatasetPart]) -> String {
  let numbers = parts.prefix(12).map { "\($0.number)" }.joined(separator: ", ")
  return (parts.count == 1 ? "part " : "parts ") + numbers + (parts.count > 12 ? " and \(parts.count - 12) more" : "")
}

import Files
import Foundation
import Hashing
import Parallel
import Tokenizers

/// What a dataset is made from.
package struct DatasetRecipe: Sendable {
  package var name: String
  package var standsInFor: String?
  package var inputs: [String]
  package var format: DocumentFormat
  package var codec: TokenCodec
  /// A shard ends with the document that reaches this many tokens.
  package var shardTokens: Int
  package var level: Int32

  package init(
    name: String, standsInFor: String?, inputs: [String], format: DocumentFormat, codec: TokenCodec,
    shardTokens: Int, level: Int32
  ) {
    self.name = name
    self.standsInFor = standsInFor
    self.inputs = inputs
    self.format = format
    self.codec = codec
    self.shardTokens = shardTokens
    self.level = level
  }

  /// Two builds of equal identity give equal shards.
  var identity: String {
    sha256("\(name)|\(standsInFor ?? "")|\(inputs)|\(format)|\(codec)|\(shardTokens)|\(level)")
  }
}

/// Turns text into a dataset of token shards, or a part of one. A build that was interrupted goes on after its last whole
/// shard.
package struct DatasetBuilder {
  private let recipe: DatasetRecipe
  private let tokenizer: any Tokenizer
  private let folder: String
  private let part: DatasetPart?
  private let pool: ThreadPool

  /// How far a build has come; beside the shards until the manifest, or the record of a part, replaces it.
  private struct Progress: Codable {
    let identity: String
    let tokenizerHash: String
    var shards: [ShardRecord]
    var documents: Int
    /// Sizes and times of the inputs; a build of before they were kept does not know.
    var inputs: [String]?
    /// Of the documents so far, where they are piped in and nothing else can tell that they are the same.
    var digest: String?
  }

  private static let batchBytes = 8 << 20

  /// - Parameter part: what to build of the dataset; nil is all of it
  package init(
    _ recipe: DatasetRecipe, tokenizer: any Tokenizer, folder: String, part: DatasetPart? = nil, pool: ThreadPool
  ) {
    self.recipe = recipe
    self.tokenizer = tokenizer
    self.folder = folder
    self.part = part
    self.pool = pool
  }

  /// Builds the dataset and returns its manifest; of a part, what it holds.
  ///
  /// - Parameter report: Called with the tokens so far and the share of the input that has been read, where that is known.
  package func run(report: (_ tokens: Int, _ share: Double?) -> Void) throws -> Manifest {
    let inputs = try DatasetInputs(recipe.inputs, format: recipe.format, tokenizer: tokenizer)
    if let part, inputs.paths.count < part.count {
      throw FileError(
        recipe.inputs.joined(separator: " "),
        "there are \(inputs.paths.count) inputs for \(part.count) parts, and a part is of whole ones: split them, or build "
          + "fewer parts")
    }
    try checkFolder()
    try createFolder(folder)
    let lock = try FolderLock(
      folder, name: BuildFile.lock(part), remedy: "wait for it, stop it, or build into another folder")
    defer { lock.remove() }
    // It may have been finished while this one waited.
    try checkFolder()
    if let part, exists(BuildFile.record(part)) { return try finished(part, inputs) }
    var progress = try begin(inputs)
    let codebook = try prepareCodebook(inputs)
    let range = part?.range(of: inputs.sizes) ?? inputs.paths.indices
    try write(inputs, range, codebook.codebook, codebook.begun, &progress, report)
    guard part != nil || !progress.shards.isEmpty else { throw FileError(folder, "the inputs hold no documents") }
    report(progress.shards.reduce(0) { $0 + $1.tokens }, 1)
    let manifest = Manifest(
      name: recipe.name, standsInFor: recipe.standsInFor, tokenizer: tokenizer.name,
      tokenizerHash: tokenizer.hash, vocabulary: tokenizer.vocabularySize, endOfText: tokenizer.endOfText,
      beginOfText: tokenizer.beginOfText, codec: recipe.codec,
      codebookHash: try sha256(file: folder + "/" + Dataset.codebookName),
      shards: progress.shards)
    if let part {
      let record = PartRecord(part, identity: recipe.identity, inputs: inputs.names, manifest: manifest)
      let encoder = JSONEncoder()
      encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes, .prettyPrinted]
      try writeDurably(encoder.encode(record), to: folder + "/" + BuildFile.record(part))
    } else {
      try manifest.write(to: folder)
    }
    try? FileManager.default.removeItem(atPath: progressPath)
    return manifest
  }

  private var progressPath: String { folder + "/" + BuildFile.progress(part) }

  private func exists(_ name: String) -> Bool { FileManager.default.fileExists(atPath: folder + "/" + name) }

  /// A part that was built before.
  private func finished(_ part: DatasetPart, _ inputs: DatasetInputs) throws -> Manifest {
    let record = try PartRecord(part, in: folder)
    guard record.identity == recipe.identity, record.inputs == inputs.names,
      record.manifest.tokenizerHash == tokenizer.hash
    else {
      throw FileError(
        folder,
        "holds part \(part.number) of \(part.count) of other inputs or settings; remove it or build into another folder"
      )
    }
    return record.manifest
  }

  /// Where the build stands: at its beginning, or where it was interrupted.
  private func begin(_ inputs: DatasetInputs) throws -> Progress {
    let fresh = Progress(
      identity: recipe.identity, tokenizerHash: tokenizer.hash, shards: [], documents: 0, inputs: inputs.states,
      digest: inputs.isPiped ? "" : nil)
    guard FileManager.default.fileExists(atPath: progressPath) else { return fresh }
    guard let old = try? JSONDecoder().decode(Progress.self, from: readFile(progressPath)),
      old.identity == fresh.identity, old.tokenizerHash == fresh.tokenizerHash
    else {
      throw FileError(folder, "holds an unfinished build of other inputs or settings; remove it or finish it")
    }
    guard old.inputs == nil || old.inputs == fresh.inputs else {
      let changed = zip(inputs.paths, zip(old.inputs!, inputs.states)).first { $1.0 != $1.1 }?.0
      throw FileError(
        folder,
        "holds an unfinished build, and \(changed ?? "the list of its inputs") has changed since; remove the folder and "
          + "build anew")
    }
    return old
  }

  /// Reads the inputs `range` and writes the shards that `progress` lacks.
  ///
  /// - Parameter begun: the first input, where some documents of it were read
  private func write(
    _ inputs: DatasetInputs, _ range: Range<Int>, _ codebook: Codebook, _ begun: BegunInput?,
    _ progress: inout Progress, _ report: (_ tokens: Int, _ share: Double?) -> Void
  ) throws {
    let documentTokens = DocumentTokens(format: recipe.format, tokenizer: tokenizer, pool: pool)
    let total = inputs.sizes[range].reduce(0, +)
    let resumed = (documents: progress.documents, digest: progress.digest)
    var writer: ShardWriter?
    var consumed = 0
    var digest = ""
    var finishedTokens = progress.shards.reduce(0) { $0 + $1.tokens }
    func finishShard(_ shard: ShardWriter) throws {
      var record = try shard.finish()
      record.ordinal = part?.place(of: progress.shards.count)
      progress.shards.append(record)
      progress.documents += record.documents
      if inputs.isPiped { progress.digest = digest }
      finishedTokens += record.tokens
      try writeDurably(JSONEncoder().encode(progress), to: progressPath)
      writer = nil
    }
    for index in range {
      let path = inputs.paths[index]
      var first = index == 0 ? begun?.documents : nil
      let reader = try first == nil ? inputs.open(path) : begun!.reader
      while true {
        let documents = try first ?? Self.batch(reader)
        first = nil
        if documents.isEmpty { break }
        let known = min(documents.count, max(0, resumed.documents - consumed))
        consumed += documents.count
        if inputs.isPiped {
          for document in documents[..<known] { digest = document.digest(after: digest) }
          if consumed - documents.count < resumed.documents, consumed >= resumed.documents, digest != resumed.digest {
            throw unlike(resumed.documents)
          }
        }
        let fresh = Array(documents[known...])
        for (document, (tokens, runs)) in zip(fresh, try documentTokens.tokens(of: fresh)) {
          let shard = try writer ?? makeWriter(ordinal: progress.shards.count, codebook: codebook)
          writer = shard
          try shard.append(tokens, runs: runs)
          if inputs.isPiped { digest = document.digest(after: digest) }
          if shard.tokenCount >= recipe.shardTokens { try finishShard(shard) }
        }
        // Of a compressed input one cannot know; it counts as a whole at its end.
        let isPlain = !path.hasSuffix(".gz") && !path.hasSuffix(".zst")
        let done =
          inputs.sizes[range.lowerBound..<index].reduce(0, +)
          + (isPlain ? min(reader.bytesRead, inputs.sizes[index]) : 0)
        let tokens = finishedTokens + (writer?.tokenCount ?? 0)
        report(tokens, inputs.isPiped ? nil : Double(done) / Double(max(1, total)))
      }
    }
    if inputs.isPiped, consumed < resumed.documents { throw unlike(resumed.documents) }
    if let writer { try finishShard(writer) }
  }

  /// What was piped in before and is not again.
  private func unlike(_ documents: Int) -> FileError {
    FileError(
      folder,
      "holds an unfinished build of \(documents) documents from standard input, and other ones come now; remove the folder "
        + "and build anew")
  }

  /// Refuses a folder that holds a dataset, or anything but the beginning of this one.
  private func checkFolder() throws {
    let names = try? FileManager.default.contentsOfDirectory(atPath: folder).filter { !BuildFile.isLock($0) }
    guard let names, !names.isEmpty else { return }
    guard !names.contains(Manifest.fileName) else {
      throw FileError(folder, "already holds a dataset; datasets never change: choose another folder or remove it")
    }
    let counts = Set(names.compactMap { BuildFile.part(of: $0)?.count })
    if let other = counts.first(where: { $0 != part?.count }) {
      throw FileError(
        folder,
        "holds parts of a build in \(other): go on with --part i/\(other), join them with `jettrain tokens join`, or remove them"
      )
    }
    guard part == nil || !names.contains(BuildFile.progress(nil)) else {
      throw FileError(folder, "holds an unfinished build that is not in parts; finish it, or remove it")
    }
    guard
      !counts.isEmpty || names.contains(BuildFile.progress(nil))
        || names.contains(where: { $0.hasPrefix(Dataset.codebookName) })
    else {
      throw FileError(folder, "holds other files, \(names.min() ?? "") among them; a dataset has a folder of its own")
    }
  }

  private static func batch(_ reader: any DocumentSource) throws -> [Document] {
    var documents: [Document] = []
    var bytes = 0
    while bytes < batchBytes, let document = try reader.next() {
      bytes += document.byteCount
      documents.append(document)
    }
    return documents
  }

  private func makeWriter(ordinal: Int, codebook: Codebook) throws -> ShardWriter {
    let place = part?.place(of: ordinal) ?? ordinal
    let digits = String(place)
    let name = recipe.name + "-" + String(repeating: "0", count: max(0, 5 - digits.count)) + digits
    let header = ShardHeader(
      codec: recipe.codec, tokenizer: tokenizer.hash, vocabulary: tokenizer.vocabularySize,
      endOfText: tokenizer.endOfText, dataset: recipe.name, ordinal: place)
    return try ShardWriter(
      folder + "/" + name + ".jtk.zst", header: header, codebook: codebook, level: recipe.level, pool: pool)
  }

  /// An input of which documents were read that are still to be written: what is piped in cannot be read twice.
  private typealias BegunInput = (reader: any DocumentSource, documents: [Document])

  /// Ranks by frequency in the first documents; kept for a build that goes on, and the same for all parts.
  private func prepareCodebook(_ inputs: DatasetInputs) throws -> (codebook: Codebook, begun: BegunInput?) {
    // Parts begin side by side.
    let lock = try part.map { _ in try FolderLock(folder, remedy: "wait for it") }
    defer { withExtendedLifetime(lock) {} }
    let path = folder + "/" + Dataset.codebookName
    if FileManager.default.fileExists(atPath: path) {
      let bytes = try Zstd.decompress(readFile(path), limit: 4 * tokenizer.vocabularySize, path: path)
      let ids = bytes.withUnsafeBytes { Array($0.bindMemory(to: UInt32.self)).map(UInt32.init(littleEndian:)) }
      if ids.count == tokenizer.vocabularySize, let codebook = Codebook(ids: ids) { return (codebook, nil) }
      throw FileError(path, "is damaged; remove \(folder) and build again")
    }
    let reader = try inputs.open(inputs.paths[0])
    let documents = try Self.batch(reader)
    let sample = try DocumentTokens(format: recipe.format, tokenizer: tokenizer, pool: pool).tokens(
      of: documents.map { document in
        if case .text(let text) = document { return .text(Array(text.prefix(Self.batchBytes))) }
        return document
      })
    let codebook = Codebook(sample: sample.flatMap(\.tokens), vocabulary: tokenizer.vocabularySize)
    let bytes = codebook.ids.map(\.littleEndian).withUnsafeBytes { Zstd.compress($0, level: 19) }
    try writeDurably(Data(bytes), to: path)
    return (codebook, (reader, documents))
  }
}

extension Document {
  /// A hash of the documents up to this one.
  fileprivate func digest(after previous: String) -> String {
    switch self {
    case .text(let text), .record(let text, _): sha256(Data(previous.utf8) + text)
    case .tokens(let tokens): sha256(Data(previous.utf8) + tokens.withUnsafeBytes { Data($0) })
    }
  }
}

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
  fileprivate var identity: String {
    sha256("\(name)|\(standsInFor ?? "")|\(inputs)|\(format)|\(codec)|\(shardTokens)|\(level)")
  }
}

/// Turns text into a dataset of token shards. A build that was interrupted goes on after its last whole shard.
package struct DatasetBuilder {
  private let recipe: DatasetRecipe
  private let tokenizer: any Tokenizer
  private let folder: String
  private let pool: ThreadPool

  /// How far a build has come; beside the shards until the manifest replaces it.
  private struct Progress: Codable {
    let identity: String
    let tokenizerHash: String
    var shards: [ShardRecord]
    var documents: Int
    /// Sizes and times of the inputs; a build of before they were kept does not know.
    var inputs: [String]?
  }

  private static let progressName = "building.json"
  private static let batchBytes = 8 << 20
  private static let pieceBytes = 256 << 10

  package init(_ recipe: DatasetRecipe, tokenizer: any Tokenizer, folder: String, pool: ThreadPool) {
    self.recipe = recipe
    self.tokenizer = tokenizer
    self.folder = folder
    self.pool = pool
  }

  /// Builds the dataset and returns its manifest.
  ///
  /// - Parameter report: Called with the tokens so far and the share of the input that has been read.
  package func run(report: (_ tokens: Int, _ share: Double) -> Void) throws -> Manifest {
    let inputs = try recipe.inputs.flatMap(files)
    guard !inputs.isEmpty else { throw FileError(recipe.inputs.joined(separator: " "), "no input files") }
    let progressPath = folder + "/" + Self.progressName
    try checkFolder()
    try createFolder(folder)
    let lock = try FolderLock(folder, remedy: "wait for it, stop it, or build into another folder")
    defer { lock.remove() }
    // It may have been finished while this one waited.
    try checkFolder()
    var progress = Progress(
      identity: recipe.identity, tokenizerHash: tokenizer.hash, shards: [], documents: 0,
      inputs: try inputs.map(Self.state))
    if FileManager.default.fileExists(atPath: progressPath) {
      guard let old = try? JSONDecoder().decode(Progress.self, from: readFile(progressPath)),
        old.identity == progress.identity, old.tokenizerHash == progress.tokenizerHash
      else {
        throw FileError(folder, "holds an unfinished build of other inputs or settings; remove it or finish it")
      }
      guard old.inputs == nil || old.inputs == progress.inputs else {
        let changed = zip(inputs, zip(old.inputs!, progress.inputs!)).first { $1.0 != $1.1 }?.0
        throw FileError(
          folder,
          "holds an unfinished build, and \(changed ?? "the list of its inputs") has changed since; remove the folder and "
            + "build anew")
      }
      progress = old
    }
    let codebook = try prepareCodebook(inputs)
    let sizes = inputs.map { (try? FileManager.default.attributesOfItem(atPath: $0)[.size] as? Int) ?? 0 }
    let total = max(1, sizes.reduce(0, +))

    var writer: ShardWriter?
    var consumed = 0
    var finishedTokens = progress.shards.reduce(0) { $0 + $1.tokens }
    func finishShard(_ shard: ShardWriter) throws {
      let record = try shard.finish()
      progress.shards.append(record)
      progress.documents += record.documents
      finishedTokens += record.tokens
      try writeDurably(JSONEncoder().encode(progress), to: progressPath)
      writer = nil
    }
    let skipped = progress.documents
    for (ordinal, input) in inputs.enumerated() {
      let reader = try open(input)
      while true {
        let documents = try Self.batch(reader)
        if documents.isEmpty { break }
        let fresh = Array(documents.dropFirst(max(0, skipped - consumed)))
        consumed += documents.count
        for (tokens, runs) in try tokenize(fresh) {
          let shard: ShardWriter
          if let writer {
            shard = writer
          } else {
            shard = try makeWriter(ordinal: progress.shards.count, codebook: codebook)
            writer = shard
          }
          try shard.append(tokens, runs: runs)
          if shard.tokenCount >= recipe.shardTokens { try finishShard(shard) }
        }
        // Of a compressed input one cannot know; it counts as a whole at its end.
        let isPlain = !input.hasSuffix(".gz") && !input.hasSuffix(".zst")
        let done = sizes[..<ordinal].reduce(0, +) + (isPlain ? min(reader.bytesRead, sizes[ordinal]) : 0)
        report(finishedTokens + (writer?.tokenCount ?? 0), Double(done) / Double(total))
      }
    }
    if let writer { try finishShard(writer) }
    guard !progress.shards.isEmpty else { throw FileError(folder, "the inputs hold no documents") }
    report(finishedTokens, 1)
    let manifest = Manifest(
      name: recipe.name, standsInFor: recipe.standsInFor, tokenizer: tokenizer.name,
      tokenizerHash: tokenizer.hash, vocabulary: tokenizer.vocabularySize, endOfText: tokenizer.endOfText,
      beginOfText: tokenizer.beginOfText, codec: recipe.codec,
      codebookHash: try sha256(file: folder + "/" + Dataset.codebookName),
      shards: progress.shards)
    try manifest.write(to: folder)
    try? FileManager.default.removeItem(atPath: progressPath)
    return manifest
  }

  /// Refuses a folder that holds a dataset, or anything but the beginning of one.
  private func checkFolder() throws {
    let names = try? FileManager.default.contentsOfDirectory(atPath: folder).filter { $0 != FolderLock.fileName }
    guard let names, !names.isEmpty else { return }
    guard !names.contains(Manifest.fileName) else {
      throw FileError(folder, "already holds a dataset; datasets never change: choose another folder or remove it")
    }
    guard names.contains(Self.progressName) || names.contains(Dataset.codebookName) else {
      throw FileError(folder, "holds other files, \(names.min() ?? "") among them; a dataset has a folder of its own")
    }
  }

  /// The documents of one input; ids are proven to be of the tokenizer first.
  private func open(_ path: String) throws -> any DocumentSource {
    if path.hasSuffix(".parquet") {
      throw FileError(
        path,
        "parquet is not read (there is no well-kept Swift library for it): write JSON Lines first, for example with "
          + "DuckDB: COPY (SELECT text FROM '\(path)') TO 'text.jsonl'")
    }
    guard case .tokens(let format) = recipe.format else { return try DocumentReader(path, format: recipe.format) }
    let file = try TokenFile(path, format: format, endOfText: tokenizer.endOfText)
    _ = try file.prove(tokenizer)
    return TokenReader(file)
  }

  /// What tells that an input was changed.
  private static func state(_ path: String) throws -> String {
    var status = stat()
    guard stat(path, &status) == 0 else { throw FileError.system(path, "cannot be read") }
    return "\(path) \(status.st_size) \(status.st_mtim.tv_sec).\(status.st_mtim.tv_nsec)"
  }

  /// The files below `path`, or `path` itself.
  private func files(_ path: String) throws -> [String] {
    var isFolder: ObjCBool = false
    guard FileManager.default.fileExists(atPath: path, isDirectory: &isFolder) else {
      throw FileError(path, "there is no such input", kind: .system)
    }
    guard isFolder.boolValue else { return [path] }
    let names = FileManager.default.enumerator(atPath: path)?.compactMap { $0 as? String } ?? []
    return names.sorted().map { path + "/" + $0 }.filter {
      var isFolder: ObjCBool = false
      return FileManager.default.fileExists(atPath: $0, isDirectory: &isFolder) && !isFolder.boolValue
        && holdsDocuments($0)
    }
  }

  /// Whether a file found in a folder is one to read, not an index beside it.
  private func holdsDocuments(_ path: String) -> Bool {
    if case .tokens(let format) = recipe.format { return format.matches(path) }
    return true
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

  /// Tokens of every document, its end included, and which of them count. Long texts are cut, so that all threads have
  /// work.
  private func tokenize(_ documents: [Document]) throws -> [(tokens: [UInt32], runs: [TokenRun])] {
    var results = [(tokens: [UInt32], runs: [TokenRun])](repeating: ([], []), count: documents.count)
    var parts: [(document: Int, text: ArraySlice<UInt8>, counts: Bool, continues: Bool)] = []
    for (index, pieces) in try parse(documents).enumerated() {
      if case .tokens(let tokens) = documents[index] {
        results[index] = (tokens, [TokenRun(length: tokens.count, counts: true)])
      }
      if let begin = tokenizer.beginOfText, !pieces.isEmpty {
        results[index] = ([begin], [TokenRun(length: 1, counts: true)])
      }
      let first = parts.count
      for piece in pieces {
        for text in cut(piece.text[...]) { parts.append((index, text, piece.counts, parts.count > first)) }
      }
    }
    var encoded = [[UInt32]](repeating: [], count: parts.count)
    encoded.withUnsafeMutableBufferPointer { encoded in
      let out = encoded.baseAddress
      let special = recipe.format.specialTokens
      pool.run(parts.count) {
        out![$0] = tokenizer.encode(parts[$0].text, special: special, continuing: parts[$0].continues)
      }
    }
    for (part, tokens) in zip(parts, encoded) {
      // A template may spell the token that a text begins with.
      let begins = results[part.document].tokens
      if begins.count == 1, begins[0] == tokenizer.beginOfText, tokens.first == begins[0] {
        results[part.document] = ([], [])
      }
      results[part.document].tokens += tokens
      results[part.document].runs.append(TokenRun(length: tokens.count, counts: part.counts))
    }
    for index in results.indices where results[index].tokens.last != tokenizer.endOfText {
      results[index].tokens.append(tokenizer.endOfText)
      results[index].runs.append(TokenRun(length: 1, counts: true))
    }
    return results
  }

  /// The texts of documents that are not ids; records are parsed side by side.
  private func parse(_ documents: [Document]) throws -> [[TextPiece]] {
    var texts = [Result<[TextPiece], any Error>](repeating: .success([]), count: documents.count)
    texts.withUnsafeMutableBufferPointer { texts in
      let out = texts.baseAddress
      let format = recipe.format
      pool.run(documents.count) { index in
        switch documents[index] {
        case .text(let text): out![index] = .success([TextPiece(text: text, counts: true)])
        case .record(let line, let place): out![index] = Result { try format.pieces(of: line, place: place) }
        case .tokens: break
        }
      }
    }
    return try texts.map { try $0.get() }
  }

  /// `text` in parts of about 256 KB that encode as the whole does.
  private func cut(_ text: ArraySlice<UInt8>) -> [ArraySlice<UInt8>] {
    var parts: [ArraySlice<UInt8>] = []
    var start = text.startIndex
    while text.endIndex - start > 2 * Self.pieceBytes,
      let end = (start + Self.pieceBytes..<text.endIndex).first(where: {
        tokenizer.mayCut(between: text[$0 - 1], text[$0])
      })
    {
      parts.append(text[start..<end])
      start = end
    }
    if start < text.endIndex { parts.append(text[start...]) }
    return parts
  }

  private func makeWriter(ordinal: Int, codebook: Codebook) throws -> ShardWriter {
    let digits = String(ordinal)
    let name = recipe.name + "-" + String(repeating: "0", count: max(0, 5 - digits.count)) + digits
    let header = ShardHeader(
      codec: recipe.codec, tokenizer: tokenizer.hash, vocabulary: tokenizer.vocabularySize,
      endOfText: tokenizer.endOfText, dataset: recipe.name, ordinal: ordinal)
    return try ShardWriter(
      folder + "/" + name + ".jtk.zst", header: header, codebook: codebook, level: recipe.level, pool: pool)
  }

  /// Ranks by frequency in the first documents; kept for a build that goes on.
  private func prepareCodebook(_ inputs: [String]) throws -> Codebook {
    let path = folder + "/" + Dataset.codebookName
    if FileManager.default.fileExists(atPath: path) {
      let bytes = try Zstd.decompress(readFile(path), limit: 4 * tokenizer.vocabularySize, path: path)
      let ids = bytes.withUnsafeBytes { Array($0.bindMemory(to: UInt32.self)).map(UInt32.init(littleEndian:)) }
      if ids.count == tokenizer.vocabularySize, let codebook = Codebook(ids: ids) { return codebook }
      throw FileError(path, "is damaged; remove \(folder) and build again")
    }
    let reader = try open(inputs[0])
    let documents = try Self.batch(reader).map { document in
      if case .text(let text) = document { return Document.text(Array(text.prefix(Self.batchBytes))) }
      return document
    }
    let sample = try tokenize(documents).flatMap(\.tokens)
    let codebook = Codebook(sample: sample, vocabulary: tokenizer.vocabularySize)
    let bytes = codebook.ids.map(\.littleEndian).withUnsafeBytes { Zstd.compress($0, level: 19) }
    try writeDurably(Data(bytes), to: path)
    return codebook
  }
}

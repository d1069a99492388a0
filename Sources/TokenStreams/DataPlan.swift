import Files
import Foundation
import Hashing

/// Which sequence stands where: a pure function of the plan and the global sequence index.
///
/// Indices come in blocks. In each block a source has a quota, the difference of rounded-down running totals, so
/// that the shares are exact over time; the heaviest source takes what rounding leaves. Places within a block, and
/// sequences within an epoch of a source, are permuted with keys hashed from seed, source and epoch.
///
/// A plan may follow another one of the same data, from the end of a block on: every source goes on where it stood, so that
/// no sequence is read twice or left out.
package final class DataPlan {
  /// One source of the plan.
  package struct Source {
    package let name: String
    package let weight: Int
    package let stream: TokenStream
    package let validation: TokenStream
    /// Whether both are parts of the same shard.
    var isDivided = false
  }

  package let mix: Mix
  /// Heaviest first.
  package let sources: [Source]
  package let context: Int
  package let seed: UInt64
  /// Identity of the order: everything that decides which tokens come when.
  package let hash: String
  private let blockSize: Int
  private let totalWeight: Int
  /// The plan before this one, the first index of this one, and what had been read of each source then.
  private let previous: DataPlan?
  private let origin: Int
  private let read: [Int]
  private var permutations: [String: Permutation] = [:]

  /// - Parameters:
  ///   - root: folder that holds the datasets, one folder a source
  ///   - label: what this stretch of data is for; different labels give different orders
  ///   - trains: whether training data is asked for; without, a dataset may consist of held-out shards alone
  ///   - previous: the plan that this one follows, and the first index that it may take over; it does at the end of the
  ///     block
  ///   - cache: holds the open shards, of all plans of a run together
  ///   - checksFiles: whether to look at every shard; of many ranks one does. A shard is compared again when it is opened
  package init(
    mix: Mix, root: String, context: Int, seed: UInt64, label: String, trains: Bool = true,
    after previous: (plan: DataPlan, index: Int)? = nil, cache: ShardCache = ShardCache(),
    checksFiles: Bool = true
  ) throws {
    self.mix = mix
    self.context = context
    var hash = "mix \(mix.name) context \(context) holdout \(mix.validationShards) \(mix.exhaustion) label \(label)"
    self.seed = Self.key("\(seed) \(label)")
    sources = try mix.sources.enumerated().sorted { ($1.element.weight, $0.offset) < ($0.element.weight, $1.offset) }
      .map { _, source in
        let dataset = try Dataset(root + "/" + source.name, cache: cache)
        if checksFiles { try dataset.checkFiles() }
        let count = dataset.manifest.shards.count
        if count == 1, mix.validationShards == 1 {
          return try Self.divided(dataset, source, context: context, trains: trains)
        }
        guard count > mix.validationShards || !trains else {
          throw FileError(
            dataset.folder,
            "has \(count == 1 ? "1 shard" : "\(count) shards"), of which mix \(mix.name) holds out \(mix.validationShards): "
              + "build it with smaller --shard-tokens")
        }
        let stream = TokenStream(dataset, shards: 0..<max(0, count - mix.validationShards), context: context)
        guard stream.sequenceCount > 0 || !trains else {
          throw FileError(dataset.folder, "has no whole sequence of \(context) tokens to train on")
        }
        return Source(
          name: source.name, weight: source.weight, stream: stream,
          validation: TokenStream(dataset, shards: max(0, count - mix.validationShards)..<count, context: context))
      }
    for source in sources {
      if source.isDivided { hash += " divided" }
      hash += " source \(source.name) \(source.weight) \(source.stream.dataset.manifest.fingerprint)"
    }
    self.hash = sha256(hash + " seed \(seed)")
    totalWeight = sources.reduce(0) { $0 + $1.weight }
    blockSize = max(1024, 2 * sources.count * sources.count)
    self.previous = previous?.plan
    origin = previous.map { $0.plan.endOfBlock(at: $0.index) } ?? 0
    read = try sources.map { [origin] source in try previous?.plan.count(of: source, before: origin) ?? 0 }
    let all = sources + (previous?.plan.sources ?? [])
    let manifests = all.map(\.stream.dataset.manifest)
    guard Set(manifests.map { "\($0.tokenizerHash) \($0.vocabulary)" }).count == 1 else {
      throw FileError(root, "the sources of mix \(mix.name) were built with different tokenizers")
    }
  }

  /// What to tell whoever wrote the mixes.
  package var warnings: [String] { mix.warnings + (previous?.warnings ?? []) }

  /// A source of one shard: its last sequences are held out, a sixteenth of them and at least 32, but no more than a quarter.
  private static func divided(
    _ dataset: Dataset, _ source: Mix.Source, context: Int, trains: Bool
  ) throws -> Source {
    let tokens = dataset.manifest.tokens
    let all = max(0, (tokens - 1) / context)
    let heldOut = min(max(all / 16, 32), all / 4)
    guard heldOut > 0 else {
      guard trains else {
        let whole = TokenStream(dataset, shards: 0..<1, context: context)
        return Source(name: source.name, weight: source.weight, stream: whole, validation: whole)
      }
      throw FileError(
        dataset.folder,
        "has \(tokens) tokens, too few to train on and hold some out: at least 4 sequences of \(context) tokens; add text, or "
          + "lower train.context")
    }
    let cut = tokens - heldOut * context - 1
    return Source(
      name: source.name, weight: source.weight,
      stream: TokenStream(dataset, shards: 0..<1, part: 0..<cut, context: context),
      validation: TokenStream(dataset, shards: 0..<1, part: cut..<tokens, context: context), isDivided: true)
  }

  /// The datasets' tokenizer hash and vocabulary, the same for all sources.
  package var manifest: Manifest { sources[0].stream.dataset.manifest }

  private static func key(_ text: String) -> UInt64 {
    sha256(text).prefix(16).reduce(0) { $0 << 4 | UInt64($1.hexDigitValue!) }
  }

  /// Sequences of source `s` in the blocks before `block`.
  private func total(_ s: Int, before block: Int) -> Int {
    if s == 0 { return block * blockSize - (1..<sources.count).reduce(0) { $0 + total($1, before: block) } }
    let product = (block * blockSize).multipliedFullWidth(by: sources[s].weight)
    return totalWeight.dividingFullWidth((product.high, product.low)).quotient
  }

  /// The end of the block that `index` is within; itself, where a block begins.
  private func endOfBlock(at index: Int) -> Int {
    origin + (index - origin + blockSize - 1) / blockSize * blockSize
  }

  /// Sequences of a source that come before `index`, the end of a block.
  private func count(of source: Source, before index: Int) throws -> Int {
    guard let s = sources.firstIndex(where: { $0.name == source.name }) else {
      return try previous?.count(of: source, before: origin) ?? 0
    }
    guard sources[s].stream.sequenceCount == source.stream.sequenceCount,
      sources[s].stream.dataset.manifest.fingerprint == source.stream.dataset.manifest.fingerprint
    else {
      throw FileError(
        source.stream.dataset.folder, "other shards are held out than in the mix before: keep validation_shards")
    }
    return read[s] + total(s, before: (index - origin) / blockSize)
  }

  /// The plan that `index` belongs to.
  package func part(of index: Int) -> DataPlan {
    if let previous, index < origin { return previous.part(of: index) }
    return self
  }

  /// Identity of the order of all that comes before `index`: plans that begin later do not count.
  package func hash(before index: Int) -> String {
    guard let previous else { return hash }
    return index > origin
      ? sha256("\(previous.hash(before: origin)) from \(origin) \(hash)") : previous.hash(before: index)
  }

  private func permutation(_ name: String, _ count: Int) -> Permutation {
    if let known = permutations[name] { return known }
    if permutations.count > 64 { permutations.removeAll() }
    let fresh = Permutation(count: count, key: Self.key("\(seed) \(name)"))
    permutations[name] = fresh
    return fresh
  }

  /// Where a global sequence index leads: a source, an epoch of it, and a sequence there.
  package func locate(_ index: Int) -> (source: Source, epoch: Int, sequence: Int) {
    if let previous, index < origin { return previous.locate(index) }
    let block = (index - origin) / blockSize
    let name = origin == 0 ? "block \(block)" : "from \(origin) block \(block)"
    var place = permutation(name, blockSize)[(index - origin) % blockSize]
    for s in sources.indices {
      let before = total(s, before: block)
      let quota = total(s, before: block + 1) - before
      if place < quota {
        let ordinal = read[s] + before + place
        let count = sources[s].stream.sequenceCount
        let epoch = ordinal / count
        let order = permutation("source \(sources[s].name) epoch \(epoch)", count)
        return (sources[s], epoch, order[ordinal % count])
      }
      place -= quota
    }
    preconditionFailure("quotas of block \(block) do not fill it")
  }

  /// Refuses, before the first step, a plan that would run out of data.
  package func checkSupply(sequences: Int) throws {
    if let previous { try previous.checkSupply(sequences: min(sequences, origin)) }
    let blocks = (max(0, sequences - origin) + blockSize - 1) / blockSize
    for (s, source) in sources.enumerated() {
      let epochs = Double(read[s] + total(s, before: blocks)) / Double(source.stream.sequenceCount)
      let limit = mix.exhaustion == .stop ? 1.0 : mix.maxEpochs.map(Double.init) ?? .infinity
      guard epochs <= limit else {
        throw FileError(
          source.stream.dataset.folder,
          "\(String(format: "%.1f", epochs)) epochs would be read, mix \(mix.name) allows \(Int(limit)): "
            + "add data, lower its weight or the token budget, or allow more with max_epochs")
      }
    }
  }

  /// The most bytes that codebooks and open shards of `mix` take in a run; of datasets that are not in `root` yet, the
  /// limit of the open shards.
  package static func readerBytes(mix: Mix, root: String) -> Int {
    var (total, codebooks) = (0, 0)
    for source in mix.sources {
      guard let manifest = try? Manifest(folder: root + "/" + source.name) else { return ShardCache.defaultLimit }
      codebooks += 8 * manifest.vocabulary
      for shard in manifest.shards {
        // A question and its answer are two runs.
        total += ShardReader.memoryBytes(
          documents: shard.documents, runs: 2 * shard.documents, tokens: shard.tokens)
      }
    }
    return min(total, ShardCache.defaultLimit) + codebooks
  }

  /// The sequences of these global indices.
  package func read(_ indices: Range<Int>) throws -> SequenceBatch {
    var batch = SequenceBatch()
    for index in indices {
      let place = locate(index)
      try place.source.stream.read(place.sequence, into: &batch)
    }
    return batch
  }

  /// `count` held-out sequences, every source by its weight and evenly spread over its held-out shards.
  package func validation(count: Int) -> [(source: Int, sequence: Int)] {
    sources.indices.flatMap { s -> [(source: Int, sequence: Int)] in
      let available = sources[s].validation.sequenceCount
      let wanted = max(1, count * sources[s].weight / totalWeight)
      let used = min(wanted, available)
      return (0..<used).map { (s, $0 * available / used) }
    }
  }
}

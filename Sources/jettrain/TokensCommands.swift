import ArgumentParser
import Evaluation
import Files
import Foundation
import NN
import Parallel
import Reporting
import Search
import TokenStreams
import Tokenizers
import Training

extension TokenCodec: ExpressibleByArgument {}
extension TokenFormat: ExpressibleByArgument {}
extension QuestionMaker.Split: ExpressibleByArgument {}

struct Tokens: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Token streams: build, inspect and verify them, and see which sequences a step reads.",
    subcommands: [
      Build.self, Join.self, Encode.self, Inspect.self, Verify.self, MakeQuestions.self, Plan.self,
    ])

  struct Build: ParsableCommand {
    static let configuration = CommandConfiguration(
      abstract: "Turn text into a dataset of zstd-compressed token shards.",
      discussion:
        "Inputs are files or folders of text or JSON Lines, also .gz and .zst, or ids (--tokens), which are proven to be "
        + "of the tokenizer; - is what another program pipes in. An interrupted build goes on. Several hosts share one "
        + "with --part 1/8 to 8/8, whose parts `jettrain tokens join` makes one dataset.")

    @Argument(help: "Files or folders; or - for standard input.") var inputs: [String]
    @Option(
      help: ArgumentHelp(
        "Build part i of n, of whole inputs, and leave the others to other hosts: the same command but for i.",
        valueName: "i/n"), transform: Self.part)
    var part: DatasetPart?
    @Option(help: "Folder of the new dataset; its last part is the dataset's name.") var output: String
    @Option(help: "The tokenizer: bytes, or a folder or tokenizer.json.") var tokenizer = "bytes"
    @Option(help: "Inputs are ids that another program made: megatron, llmc, nanogpt or datatrove.")
    var tokens: TokenFormat?
    @Option(help: "JSON Lines: the field that holds the text.") var field: String?
    @Option(
      help: ArgumentHelp(
        "JSON Lines: the field that holds a list of pieces, {\"text\": …, \"loss\": true or false}.", valueName: "field"
      ))
    var pieces: String?
    @Option(help: "JSON Lines of question and answer: the text around {question} and {answer}.") var template: String?
    @Option(
      help: ArgumentHelp(
        "JSON Lines: the field that holds a list of messages, which are put into the tokenizer's chat template; only the "
          + "assistant's answers count.", valueName: "field"))
    var chat: String?
    @Flag(help: "With --template: only the answer counts in the loss.") var answerOnly = false
    @Option(help: "Text: a line equal to this ends a document.") var separator: String?
    @Option(
      help: "A shard ends with the document that reaches this many tokens.", transform: Whole.from(1, to: 1 << 40))
    var shardTokens = 100_000_000
    @Option(help: "rank (small) or u32 (what zstd -dc shows is the ids).") var codec = TokenCodec.rank
    @Option(help: "Compression level of zstd, 1 to 19.", transform: Whole.from(1, to: 19)) var level = 3
    @Option(help: "The dataset that this small one stands in for.") var standsInFor: String?
    @OptionGroup var cores: ThreadsOption

    func run() {
      withoutWorld {
        try refusePlace(output, "--output")
        let path = tokenizer
        let tokenizer = try makeTokenizer(path)
        guard [field != nil, pieces != nil, template != nil, tokens != nil, chat != nil].count(where: { $0 }) <= 1
        else {
          throw JobError(.usage, "--field, --pieces, --template, --chat and --tokens exclude each other")
        }
        if inputs.contains("-"), inputs.count > 1 || part != nil || tokens != nil {
          throw JobError(
            .usage,
            "- is standard input: it goes with no other input, no --part, and no --tokens, whose files have indices")
        }
        let format: DocumentFormat =
          if let tokens { .tokens(tokens) } else if let chat {
            .conversations(field: chat, template: try chatTemplate(ofTokenizer: path))
          } else if let template {
            .questions(template: template.replacingOccurrences(of: "\\n", with: "\n"), answerOnly: answerOnly)
          } else if let field { .jsonField(field) } else if let pieces { .pieces(pieces) } else {
            .text(separator: separator)
          }
        let recipe = DatasetRecipe(
          name: URL(fileURLWithPath: output).lastPathComponent, standsInFor: standsInFor, inputs: inputs,
          format: format, codec: codec, shardTokens: shardTokens, level: Int32(level))
        let progress = ProgressLine()
        var clock = PhaseClock()
        let builder = DatasetBuilder(
          recipe, tokenizer: tokenizer, folder: output, part: part,
          pool: ThreadPool(threads: cores.count()))
        let manifest = try builder.run { tokens, share in
          clock.mark("build")
          progress.update(
            Self.progress(of: output, share) + "\(Format.count(Double(tokens))) tokens  "
              + "\(Format.count(Double(tokens) / clock.total)) tok/s")
        }
        guard let part else {
          progress.print("\(output): \(Tokens.describe(manifest))")
          return progress.print("next: \(Tokens.whatToDo(with: output, tokenizer: path))")
        }
        progress.print(
          "\(output): part \(part.number) of \(part.count), \(Format.counted(manifest.tokens, "token")) in "
            + "\(Format.counted(manifest.documents, "document")), \(Format.counted(manifest.shards.count, "shard"))")
        progress.print("next: when all \(part.count) parts are there, jettrain tokens join \(output)")
      }
    }

    private static func part(_ text: String) throws -> DatasetPart {
      guard let part = DatasetPart(text) else {
        throw NumberError(
          description: "expected a part and how many there are, such as 3/8, at most \(DatasetPart.most)")
      }
      return part
    }

    /// What stands before the counts: a bar on a terminal, in a file whose line it is; what is piped in has no share.
    private static func progress(of output: String, _ share: Double?) -> String {
      guard let share else { return "\(output): " }
      let done = Int(share * 20)
      let bar = String(repeating: "█", count: done) + String(repeating: "░", count: 20 - done) + " "
      return "\(isatty(2) == 1 ? bar : "\(output): ")\(Int(share * 100))%  "
    }
  }

  struct Join: ParsableCommand {
    static let configuration = CommandConfiguration(
      abstract:
        "Make one dataset of the parts that `tokens build --part` built, once every shard was read and compared.")
    @Argument(help: "Folder that holds all parts.") var folder: String

    func run() {
      withoutWorld {
        let manifest = try joinParts(in: folder) { fault in
          FileHandle.standardError.write(Data("jettrain: \(fault)\n".utf8))
        }
        print("\(folder): \(Tokens.describe(manifest))")
        print("next: \(Tokens.whatToDo(with: folder, tokenizer: manifest.tokenizer))")
      }
    }
  }

  fileprivate static func describe(_ manifest: Manifest) -> String {
    "\(Format.counted(manifest.tokens, "token")) in \(Format.counted(manifest.documents, "document")), "
      + "\(Format.counted(manifest.shards.count, "shard")), fingerprint \(manifest.fingerprint.prefix(16))"
  }

  fileprivate static func whatToDo(with dataset: String, tokenizer: String) -> String {
    let isNamed = tokenizer != "bytes"
    return
      "jettrain tokens inspect \(dataset)\(isNamed ? " --tokenizer \(tokenizer)" : "") --text 200; "
      + "jettrain distill --data \(dataset), or data: {path: \(dataset)} in a job"
      + (isNamed ? " (with data.tokenizer: \(tokenizer))" : "")
  }

  struct Encode: ParsableCommand {
    static let configuration = CommandConfiguration(
      abstract: "Print the token ids of a text, a line for each record of it.")
    @Argument(help: "A file; standard input when it is missing.") var file: String?
    @Option(help: "The tokenizer: bytes, or a folder or tokenizer.json.") var tokenizer = "bytes"
    @Flag(help: "Records are lines.") var lines = false
    @Flag(help: "Records end with a zero byte.") var null = false
    @Flag(help: "The spelling of a special token is that token, not text.") var special = false

    func run() {
      withoutWorld {
        let tokenizer = try makeTokenizer(tokenizer)
        let text = Array(try file.map(readFile) ?? FileHandle.standardInput.readDataToEndOfFile())
        let end: UInt8? = null ? 0 : lines ? UInt8(ascii: "\n") : nil
        var records = end.map { text.split(separator: $0, omittingEmptySubsequences: false) } ?? [text[...]]
        if records.count > 1, records.last?.isEmpty == true { records.removeLast() }
        var out = ""
        for record in records {
          let ids = tokenizer.encode(record, special: special ? .recognized : .asText)
          out += ids.map(String.init).joined(separator: " ") + "\n"
          if out.utf8.count > 1 << 20 {
            FileHandle.standardOutput.write(Data(out.utf8))
            out = ""
          }
        }
        FileHandle.standardOutput.write(Data(out.utf8))
      }
    }
  }

  struct Inspect: ParsableCommand {
    static let configuration = CommandConfiguration(abstract: "Show what a dataset holds.")
    @Argument(help: "Folder of a dataset.") var folder: String
    @Option(help: "Also show this many first tokens as text.", transform: Whole.from(0, to: Most.context)) var text = 0
    @Option(help: "With --text: the tokenizer, where its name in the manifest is not enough.") var tokenizer: String?

    func run() {
      withoutWorld {
        if let tokenizer { _ = try makeTokenizer(tokenizer) }
        let dataset = try Dataset(folder)
        let m = dataset.manifest
        print("name         \(m.name)")
        if let other = m.standsInFor { print("stands in    for \(other)") }
        print(
          "tokenizer    \(m.tokenizer) (\(m.tokenizerHash.prefix(16))), \(m.vocabulary) ids, end of text \(m.endOfText)"
            + (m.beginOfText.map { ", before every text \($0)" } ?? "")
        )
        print("codec        \(m.codec.rawValue)")
        let bytes = m.shards.reduce(0) { $0 + $1.bytes }
        print(
          "tokens       \(m.tokens) in \(Format.counted(m.documents, "document")), "
            + String(format: "%.2f bits per token", Double(bytes) * 8 / Double(max(1, m.tokens))))
        print("fingerprint  \(m.fingerprint)")
        let rows = m.shards.map { [$0.file, "\($0.tokens)", "\($0.documents)", Format.bytes(Double($0.bytes))] }
        print(Format.table([["shard", "tokens", "documents", "size"]] + rows))
        if text > 0 {
          let tokenizer = try makeTokenizer(tokenizer ?? m.tokenizer)
          guard tokenizer.hash == m.tokenizerHash else {
            throw JobError(.data, "tokenizer \(tokenizer.name) is not the one that \(folder) was built with")
          }
          var tokens: [UInt32] = []
          let shard = try dataset.shard(0)
          try shard.read(0..<min(text, shard.tokenCount), into: &tokens)
          print(String(decoding: tokenizer.decode(tokens), as: UTF8.self))
        }
      }
    }
  }

  struct Verify: ParsableCommand {
    static let configuration = CommandConfiguration(
      abstract: "Check every shard of a dataset: presence, size, SHA-256, and that all frames decode.")
    @Argument(help: "Folders of datasets.") var folders: [String]

    func run() {
      withoutWorld {
        var bad = 0
        for folder in folders {
          let dataset = try Dataset(folder)
          let faults = dataset.verify { FileHandle.standardError.write(Data("jettrain: \($0)\n".utf8)) }
          print("\(folder): \(Format.counted(dataset.manifest.shards.count, "shard")), \(faults) damaged")
          bad += faults
        }
        if bad > 0 { Foundation.exit(ExitStatus.badData) }
      }
    }
  }

  struct MakeQuestions: ParsableCommand {
    static let configuration = CommandConfiguration(
      commandName: "make-questions",
      abstract: "Write seeded questions with answers as JSON Lines.",
      discussion:
        "Arithmetic word problems and look-ups, or with --task texts of facts and questions about them: recall, needle, "
        + "phone-book, roll-call. Of those `tokens build --pieces pieces` makes a dataset in which the answers alone count."
    )
    @Option(help: "How many.", transform: Whole.from(1, to: 100_000_000)) var count = 1000
    @Option(help: "recall, needle, phone-book or roll-call.") var task: RetrievalTask?
    @OptionGroup var retrieval: RetrievalOptions
    @Option(help: "The same seed gives the same questions.") var seed: UInt64 = 1
    @Option(
      help: "training or held-out: only questions of that part, none twice; a question is in the same part at any seed."
    )
    var split: QuestionMaker.Split?
    @Option(help: "File to write.") var output: String

    func run() {
      withoutWorld {
        guard !FileManager.default.fileExists(atPath: output) else {
          throw JobError(.usage, "--output \(output): exists already; remove it, or name another file")
        }
        var lines = Data()
        if let task {
          guard split == nil || task.isRollCall else {
            throw JobError(.usage, "--split is for questions without --task, and for roll calls")
          }
          let settings = retrieval.settings
          try settings.check(task)
          var random = RandomStream(seed: seed, name: "questions.\(task.rawValue)")
          for _ in 0..<count {
            let example = RetrievalExample(task, settings, split: split, random: &random)
            let last = example.lastQuestion
            var line: [String: Any] = ["pieces": example.pieces.map { ["text": $0.text, "loss": $0.isAnswer] }]
            if task.isRollCall {
              line.merge(["context": last.context, "answer": last.answer]) { $1 }
            } else {
              line.merge(["question": example.question, "answer": example.answer]) { $1 }
            }
            lines += try jsonLine(line)
          }
        } else {
          var maker = QuestionMaker(seed: seed, split: split)
          for _ in 0..<count {
            let (question, answer) = maker.next()
            lines += try jsonLine(["question": question, "answer": answer])
          }
        }
        try createFolder(Files.folder(of: output))
        try writeDurably(lines, to: output)
      }
    }
  }

  struct Plan: ParsableCommand {
    static let configuration = CommandConfiguration(
      abstract: "Show which sequences the steps of a job read.")
    @Option(help: "The job file.") var job: String
    @Option(help: "pretrain, distill or finetune.") var kind = "distill"
    @Option(help: "Steps a:b, counted from 0.") var range = "0:4"
    @Option(name: .customLong("set"), help: "Override a key of the job.") var overrides: [String] = []

    func run() {
      withoutWorld {
        guard let kind = JobKind(rawValue: kind) else { throw JobError(.usage, "--kind \(kind): unknown") }
        let job = try Job(kind, path: job, overrides: overrides, ranks: 1)
        let bounds = range.split(separator: ":").compactMap { Int($0) }
        guard bounds.count == 2, 0 <= bounds[0], bounds[0] <= bounds[1], bounds[1] <= job.totalSteps else {
          throw JobError(.usage, "--range \(range): expected a:b within 0:\(job.totalSteps)")
        }
        let plans = try job.phases.indices.map { try job.dataPlan(ofPhase: $0) }
        for step in bounds[0]..<bounds[1] {
          let (index, local) = job.locate(step)
          let phase = job.phases[index]
          for sequence in phase.sequences(before: local)..<phase.sequences(before: local + 1) {
            let place = plans[index].locate(sequence)
            print(
              "step \(step) \(phase.name) sequence \(sequence): \(place.source.name) "
                + "epoch \(place.epoch) #\(place.sequence)")
          }
        }
      }
    }
  }
}

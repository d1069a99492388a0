import ArgumentParser
import Chat
import Evaluation
import Files
import Foundation
import Models
import Reporting
import Tensors
import Tokenizers
import Training

struct Generate: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Continue texts, several side by side, with recurrent states and key-value caches.")
  @Argument(help: "A model folder, run folder or checkpoint.") var model: String
  @Option(help: "A text to continue; may be given several times.") var prompt: [String] = []
  @Option(help: "A file of texts to continue, one a line.") var prompts: String?
  @Option(help: "Most tokens to make of each.", transform: Whole.from(1, to: Most.context)) var maxTokens = 128
  @Option(help: "End where this text would begin; may be given several times.") var stop: [String] = []
  @Flag(help: "Do not end at the end-of-text tokens of the model.") var ignoreEnd = false
  @Option(help: "0 takes the most likely token.", transform: Real.from(0, to: 1000)) var temperature = 0.0
  @Option(help: "Choose among this many tokens; 0: all.", transform: Whole.from(0)) var topK = 0
  @Option(help: "Choose among the likeliest tokens of this mass.", transform: Real.above(0, to: 1)) var topP = 1.0
  @Option(help: "The same seed gives the same texts.") var seed: UInt64 = 1
  @Option(help: "The tokenizer; default: the model's, else bytes.") var tokenizer: String?
  @Flag(help: "In the prompt, the spelling of a special token is that token.") var special = false
  @Flag(help: "Prompts are questions to an instructed model: they are put into its chat template.") var chat = false
  @Option(help: "With --chat: what the conversation begins with, as its system message.") var system: String?
  @Option(
    help: "Tokens of a prompt in one pass; default: 512, on a card 8192 of all prompts together.",
    transform: Whole.from(1, to: Most.context)) var chunk: Int?
  @Flag(help: "Print a JSON line for each text.") var json = false
  @OptionGroup var device: DeviceOption

  func run() {
    withoutWorld {
      let texts =
        try prompt
        + (prompts.map { path in
          String(decoding: try readFile(path), as: UTF8.self).split(separator: "\n").map(String.init)
        } ?? [])
      guard !texts.isEmpty, texts.allSatisfy({ !$0.isEmpty }) else {
        throw JobError(.usage, "--prompt or --prompts must give texts that are not empty")
      }
      let backend = try device.backend()
      var clock = PhaseClock()
      let model = try loadModel(model, backend: backend)
      let tokenizer = try makeTokenizer(tokenizer, of: self.model)
      try Vocabulary(of: tokenizer).check(fits: model.configuration)
      guard chat || system == nil else { throw JobError(.usage, "--system goes with --chat") }
      let spelled = try chat ? inTemplate(texts) : texts
      let ids = spelled.map { tokenizer.encodeDocument($0.utf8, special: special || chat ? .recognized : .asText) }
      let settings = ContinuationSettings(
        sampling: Sampling(temperature: temperature, topK: topK, topP: topP), maxTokens: maxTokens,
        stopTokens: ignoreEnd ? [] : endTokens(of: self.model, tokenizer), stopStrings: stop, seed: seed, chunk: chunk)
      let generator = Generator(model, sequences: ids.count, backend: backend)
      clock.mark("load")
      let streams = ids.count == 1 && !json
      let results = try generator.continuations(
        ids, settings, tokenizer: tokenizer,
        show: { _, text in if streams { FileHandle.standardOutput.write(Data(text.utf8)) } },
        afterPrefill: { clock.mark("prefill") })
      clock.mark("decode")
      for (text, result) in zip(texts, results) {
        if json {
          FileHandle.standardOutput.write(
            try jsonLine([
              "prompt": text, "text": result.text, "tokens": result.tokens.count, "stopped": result.endedByStop,
            ]))
        } else {
          FileHandle.standardOutput.write(Data(((streams ? "" : text + result.text) + "\n").utf8))
        }
      }
      let (read, made) = (ids.reduce(0) { $0 + $1.count }, results.reduce(0) { $0 + $1.tokens.count })
      func rate(_ tokens: Int, _ phase: String) -> String {
        String(format: "%.1f", Double(tokens) / max(clock.seconds[phase] ?? 0, 1e-9))
      }
      FileHandle.standardError.write(
        Data(
          ("loaded in \(String(format: "%.2f", clock.seconds["load"] ?? 0)) s; read \(Format.counted(read, "token")) at "
            + "\(rate(read, "prefill"))/s, made \(made) at \(rate(made, "decode"))/s; caches "
            + "\(Format.bytes(Double(generator.cacheBytes))), peak memory \(Format.bytes(Double(Machine.peakMemory)))\n")
            .utf8))
    }
  }

  /// The texts as a user's messages, in the template of the model, up to where its answer begins.
  private func inTemplate(_ texts: [String]) throws -> [String] {
    guard let template = try chatTemplate(of: model) else {
      throw JobError(
        .data, "\(model): has no chat template (chat_template.jinja, or in tokenizer_config.json); leave out --chat")
    }
    let first = system.map { [ChatMessage(role: "system", content: $0)] } ?? []
    return try texts.map { try template.text(first + [ChatMessage(role: "user", content: $0)], asksForAnswer: true) }
  }
}

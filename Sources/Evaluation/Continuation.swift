import NN
import Tensors
import Tokenizers

/// How texts are continued.
package struct ContinuationSettings: Sendable {
  package var sampling: Sampling
  package var maxTokens: Int
  /// Tokens that end a text.
  package var stopTokens: Set<UInt32>
  /// Texts that end a text, themselves left out.
  package var stopStrings: [String]
  package var seed: UInt64
  /// Tokens of a prompt in one pass; nil: what suits the backend.
  package var chunk: Int?

  package init(
    sampling: Sampling = Sampling(), maxTokens: Int = 128, stopTokens: Set<UInt32> = [], stopStrings: [String] = [],
    seed: UInt64 = 1, chunk: Int? = nil
  ) {
    self.sampling = sampling
    self.maxTokens = maxTokens
    self.stopTokens = stopTokens
    self.stopStrings = stopStrings
    self.seed = seed
    self.chunk = chunk
  }
}

/// A text that comes token by token: whole characters, nothing that may be the beginning of a stop string.
package struct TextStream {
  private var decoder: StreamingDecoder
  private let stops: [String]
  private var held = ""
  package private(set) var text = ""
  package private(set) var isStopped = false

  package init(_ tokenizer: any Tokenizer, stops: [String]) {
    decoder = StreamingDecoder(tokenizer)
    self.stops = stops.filter { !$0.isEmpty }
  }

  /// The text that may be shown after this token.
  package mutating func push(_ token: UInt32) -> String { take(decoder.push(token), isLast: false) }

  /// The rest, when no more tokens come.
  package mutating func finish() -> String { isStopped ? "" : take(decoder.finish(), isLast: true) }

  private mutating func take(_ more: String, isLast: Bool) -> String {
    guard !isStopped else { return "" }
    held += more
    var shown: String
    // Of several stop strings the one that begins first.
    if let end = stops.compactMap({ held.firstRange(of: $0)?.lowerBound }).min() {
      shown = String(held[..<end])
      held = ""
      isStopped = true
    } else {
      let kept = isLast ? 0 : Self.mayBegin(stops, at: held)
      shown = String(held.unicodeScalars.dropLast(kept))
      held = String(String.UnicodeScalarView(held.unicodeScalars.suffix(kept)))
    }
    text += shown
    return shown
  }

  /// Scalars at the end of `text` with which a stop string could begin.
  private static func mayBegin(_ stops: [String], at text: String) -> Int {
    let scalars = Array(text.unicodeScalars)
    return stops.map { stop in
      let pattern = Array(stop.unicodeScalars)
      return stride(from: min(pattern.count - 1, scalars.count), to: 0, by: -1).first {
        scalars.suffix($0).elementsEqual(pattern.prefix($0))
      } ?? 0
    }.max() ?? 0
  }
}

extension Generator {
  /// What became of one prompt.
  package struct Continuation: Sendable {
    package var text = ""
    package var tokens: [UInt32] = []
    package var endedByStop = false
  }

  /// Continues every prompt; sequences that end leave the batch.
  ///
  /// - Parameters:
  ///   - prompts: at least one token each; the generator must be new, with as many sequences
  ///   - show: called with the prompt's index and text to be shown, as it comes
  ///   - afterPrefill: called after the prompts were read
  /// - Throws: `JobError` where the model's output is not finite
  package func continuations(
    _ prompts: [[UInt32]], _ settings: ContinuationSettings, tokenizer: any Tokenizer,
    show: (Int, String) -> Void = { _, _ in }, afterPrefill: () -> Void = {}
  ) throws -> [Continuation] {
    var results = [Continuation](repeating: Continuation(), count: prompts.count)
    var streams = prompts.map { _ in TextStream(tokenizer, stops: settings.stopStrings) }
    // Each sequence has a stream of its own, so that its text does not depend on the others.
    var randoms = prompts.indices.map { RandomStream(seed: settings.seed, name: "generate.\($0)") }
    var active = Array(prompts.indices)
    func uniforms() -> [Float] {
      active.map { settings.sampling.temperature > 0 ? randoms[$0].uniform() : 0 }
    }
    let logits = read(prompts, chunk: settings.chunk)
    afterPrefill()
    var chosen = try choose(from: logits, settings.sampling, uniforms: uniforms())
    while true {
      var kept: [Int] = []
      for (place, index) in active.enumerated() {
        let token = chosen[place]
        if settings.stopTokens.contains(token) {
          results[index].endedByStop = true
        } else {
          results[index].tokens.append(token)
          show(index, streams[index].push(token))
          results[index].endedByStop = streams[index].isStopped
        }
        if !results[index].endedByStop && results[index].tokens.count < settings.maxTokens {
          kept.append(place)
        } else {
          show(index, streams[index].finish())
          results[index].text = streams[index].text
        }
      }
      if kept.isEmpty { break }
      if kept.count < active.count { select(kept) }
      active = kept.map { active[$0] }
      chosen = try step(kept.map { chosen[$0] }, settings.sampling, uniforms: uniforms())
    }
    return results
  }
}

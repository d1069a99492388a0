import ArgumentParser
import Evaluation
import Search
import Tokenizers
import Training

extension RetrievalTask: ExpressibleByArgument {}
extension AnswerMatch: ExpressibleByArgument {}

/// What models are judged by in a search.
struct ObjectiveOptions: ParsableArguments {
  @Option(
    help: ArgumentHelp(
      "kl (needs --teacher), loss, recall, needle, phone-book, roll-call, answer-loss=FILE, accuracy=FILE or accuracy=TASK; a weight "
        + "may follow, as in kl:2. May be given several times.", valueName: "objective"))
  var objective: [String] = []
  @Option(help: "The teacher.") var teacher: String?
  @OptionGroup var heldOut: HeldOut
  @OptionGroup var retrieval: RetrievalOptions
  @Option(help: "accuracy=FILE: whether the generated answer contains or equals a right one, word by word.")
  var match = AnswerMatch.contains
  @Option(help: "The tokenizer of answers; default: the model's, else bytes.") var tokenizer: String?

  @Option(help: "Draws questions and retrieval texts, and what a search does by chance: the same seed gives the same.")
  var seed = ObjectiveSettings.standardSeed

  /// - Parameter fallback: what is measured where no objective is named
  /// - Throws: where the tokenizer that is named cannot be read, whether an objective needs it or not
  func settings(fallback: [String] = ["kl"]) throws -> ObjectiveSettings {
    if let tokenizer { _ = try makeTokenizer(tokenizer) }
    var settings = ObjectiveSettings()
    settings.names = objective.isEmpty ? fallback : objective
    settings.heldOut = heldOut.folder
    settings.sequences = heldOut.sequences
    settings.retrieval = retrieval.settings
    settings.match = match
    settings.tokenizer = tokenizer
    settings.seed = seed
    return settings
  }
}

/// Held-out text to measure on: a mix, or one dataset.
struct HeldOut: ParsableArguments {
  @Option(help: "Held-out text: folder of a dataset, or with --mix the folder that holds the mix's datasets.")
  var data: String?
  @Option(help: "A mix: a name from Jobs/mixes, or a path.") var mix: String?
  @Option(help: "Tokens of a held-out sequence.", transform: Whole.from(1, to: Most.context)) var context = 256
  @Option(
    help: "Held-out sequences, questions and retrieval texts to read.", transform: Whole.from(1, to: Most.sequences))
  var sequences = 64

  var folder: HeldOutFolder? { data.map { HeldOutFolder(data: $0, mix: mix, context: context) } }
}

/// Lengths and counts of the synthetic retrieval tasks.
struct RetrievalOptions: ParsableArguments {
  @Option(help: "Retrieval: facts told in a text.", transform: Whole.from(1, to: Most.sequences)) var items = 16
  @Option(
    help: "Retrieval: questions in a text; each fact is asked for before one is again.",
    transform: Whole.from(1, to: Most.sequences)) var queries = 8
  @Option(help: "Retrieval: words of hay around needles.", transform: Whole.from(1, to: Most.context)) var words = 200

  @Option(help: "Recall: different keys to draw from, 676 at most.", transform: Whole.from(1, to: 676)) var keys = 52

  @Option(
    help: "Roll call: letters at least, where lists are to differ in length; default: --items.",
    transform: Whole.from(1, to: Most.sequences))
  var fewestItems: Int?

  var settings: RetrievalSettings {
    RetrievalSettings(items: items, queries: queries, words: words, keys: keys, fewest: fewestItems)
  }
}

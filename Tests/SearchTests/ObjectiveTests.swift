import CPUBackend
import Evaluation
import Foundation
import Models
import NN
import Ops
import Search
import Tensors
import TestSupport
import Testing
import TokenStreams
import Tokenizers
import Training

/// What placements are judged by, against what it says it is.
@Suite struct ObjectiveTests {
  private let backend = CPUBackend(threads: 2)

  /// A small supernet with a window and weights away from their initial values.
  private func supernet(mixer: String = "gla") throws -> HybridLM {
    let json = """
      {"model_type": "jet_nemotron", "vocab_size": 320, "hidden_size": 32, "intermediate_size": 64,
       "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": true,
       "layer_types": ["attn", "attn", "attn"], "supernet_mixer": "\(mixer)",
       "efficient_attention_config": {"swa": {"window_size": 5}, "\(mixer)": {"num_heads": 2, "head_dim": 8}}}
      """
    let model = HybridLM(try ModelConfiguration(json: Data(json.utf8), path: "supernet"))
    for parameter in model.store.parameters {
      let noise = randomFloats(parameter.count, seed: UInt64(parameter.count) + 1)
      parameter.value = backend.tensor(
        zip(parameter.initialValues(seed: 3), noise).map { $0 + $1 * 0.15 }, parameter.shape)
    }
    return model
  }

  /// Every answer was told before it was asked for, and the same seed gives the same text.
  @Test(arguments: RetrievalTask.allCases) func answersFollowFromTheText(_ task: RetrievalTask) {
    let settings = RetrievalSettings(items: 6, queries: 10, words: 60)
    var random = RandomStream(seed: 4, name: "test")
    var again = RandomStream(seed: 4, name: "test")
    for _ in 0..<20 {
      let example = RetrievalExample(task, settings, random: &random)
      #expect(example == RetrievalExample(task, settings, random: &again))
      let answers = example.pieces.indices.filter { example.pieces[$0].isAnswer }
      #expect(answers.count == 10)
      for index in answers {
        let (asked, answer) = (example.pieces[index - 1].text, example.pieces[index].text)
        if task.isRollCall {
          #expect(answer == Self.calledAnswer(to: asked, roll: example.question), "\(asked) of \(example.question)")
        } else {
          #expect(example.question.contains(asked + answer), "\(asked + answer) in \(example.question)")
        }
      }
      #expect(example.question + example.answer == example.pieces.map(\.text).joined())
      if task == .needle { #expect(example.question.split(separator: " ").count >= 60) }
    }
  }

  /// What answers a question of a roll call: a sum, or whether a letter is there in capitals.
  private static func calledAnswer(to asked: String, roll: String) -> String? {
    let digits = asked.dropLast().split(separator: "+").compactMap { Int($0) }
    if asked.hasSuffix("=") { return digits.count == 2 ? "\(digits[0] + digits[1])\n" : nil }
    if roll.contains(asked.uppercased()) { return "1\n" }
    return roll.contains(asked) ? "0\n" : nil
  }

  /// The share of right answers is what greedy generation gives, answer by answer.
  @Test func accuracyIsThatOfGeneration() throws {
    let model = try supernet()
    model.path = SupernetPath(full: [1], sliding: [2])
    let tokenizer = try makeTokenizer("bytes")
    var random = RandomStream(seed: 2, name: "texts")
    var (right, batches): (Int, [SequenceBatch]) = (0, [])
    for _ in 0..<40 {
      let prompt = (0..<1 + Int(random.next() % 12)).map { _ in UInt32(random.next() % 256) }
      // Half of the answers are what the model says, the others end in something else.
      let generator = Generator(model, backend: backend)
      let said = try generator.continuations([prompt], ContinuationSettings(maxTokens: 3), tokenizer: tokenizer)[0]
        .tokens
      let isRight = random.next() % 2 == 0
      let answer = isRight ? said : said.dropLast() + [(said[2] + 1) % 256]
      right += isRight ? 1 : 0
      var batch = SequenceBatch()
      let all = (prompt + answer).map { Int32($0) }
      batch.tokens = Array(all.dropLast())
      batch.labels = [Int32](repeating: -1, count: prompt.count - 1) + all[prompt.count...]
      batch.segments = [0..<batch.tokens.count]
      batches.append(batch)
    }
    let text = EvaluationText(batches: batches, vocabulary: Vocabulary(of: tokenizer))
    let accuracy = try AnswerAccuracy(model, text, backend: backend)
    #expect(accuracy.answers == 40 && accuracy.right == right && right > 5 && right < 35)
  }

  @Test(arguments: [
    // text, right answer, whether it contains it, whether it is it
    ("It is  Paris.", " paris", true, false), (" PARIS\n", "Paris", true, true),
    ("\n\nParis!\nor Rome", "Paris", true, true),
    (" 15", "5", false, false), ("51", "5", false, false), (" 5.", "5", true, true), ("$5.00", "5", true, true),
    ("about 1,000 men", "1000", true, false), ("-5", "5", false, false), ("-5", "-5.0", true, true),
    ("8-5", "5", true, false),
    ("x5", "5", false, false), ("5kg", "5", false, false), ("1/2", "2", false, false), ("at 3:30", "30", false, false),
    ("0.5", "5", false, false), ("12,5", "12", true, false), ("the dik-dik", "Dik dik", true, false),
    ("don’t", "Don't", true, true), ("Parisian", "Paris", false, false), ("Rome\nParis", "Paris", false, false),
    ("北京是首都", "北京", true, false), ("→", "→", true, true), ("", "5", false, false),
    // Of a rationale the final number decides.
    ("so 3 * 6 = 18.\n#### 18", "16 - 3 = 13\n#### 18", true, true), ("18\n#### 17\n#### 18", "#### 18", false, false),
    ("She makes 18 dollars", "9 * 2 = 18\n#### 18", true, true), ("18 of 20", "#### 18", false, false),
    ("He runs 1,000 m", "#### 1000", true, true), ("it costs $1000.00", "#### 1,000", true, true),
    ("nothing", "#### 3", false, false), ("180", "#### 18", false, false),
  ])
  func answersMatchWordByWord(text: String, answer: String, contains: Bool, equals: Bool) {
    #expect(AnswerMatch.contains.accepts(text, answers: ["no", answer]) == contains)
    #expect(AnswerMatch.equals.accepts(text, answers: [answer]) == equals)
  }

  private func temporaryFile(_ lines: [String]) throws -> String {
    let path = FileManager.default.temporaryDirectory.appendingPathComponent("questions-\(UUID()).jsonl").path
    try Data(lines.joined(separator: "\n").utf8).write(to: URL(fileURLWithPath: path))
    return path
  }

  /// A file that is sorted by subject gives questions of all subjects, the same for the same seed, and more of them hold
  /// the fewer.
  @Test func questionsAreDrawnBySeed() throws {
    let path = try temporaryFile(
      (0..<400).map { #"{"question": "subject \#($0 / 100) number \#($0)?", "answer": "\#($0)"}"# } + ["", " "])
    defer { try? FileManager.default.removeItem(atPath: path) }
    let some = try Question.draw(40, from: path, seed: 1)
    let subjects = Dictionary(grouping: some) { $0.prompt.split(separator: " ")[2] }
    #expect(some.count == 40 && subjects.count == 4 && subjects.values.allSatisfy { $0.count >= 4 }, "\(subjects.keys)")
    #expect(try Question.draw(40, from: path, seed: 1) == some)
    #expect(try Question.draw(40, from: path, seed: 2) != some)
    #expect(try Array(Question.draw(100, from: path, seed: 1)[..<40]) == some)
    #expect(try Set(Question.draw(1000, from: path, seed: 1).map(\.prompt)).count == 400)
  }

  @Test func questionsOfAllKindsAreReadAndBadOnesNamed() throws {
    let good = try temporaryFile([
      #"{"query": "Which?", "choices": ["a", "b"], "gold": 1}"#,
      #"{"context": "I don't care about", "continuation": "signs"}"#,
      #"{"context": "Question: Who?\nAnswer:", "answer": "Ann", "aliases": ["Anna", "A."]}"#,
      #"{"question": "2 + 2?", "answer": "2 + 2 = 4\n#### 4"}"#,
    ])
    defer { try? FileManager.default.removeItem(atPath: good) }
    let read = try Question.draw(9, from: good, seed: 3).sorted { $0.prompt < $1.prompt }
    #expect(read.map(\.answers) == [[" signs"], [" 2 + 2 = 4\n#### 4"], [" Ann", " Anna", " A."], [" b"]])
    for (line, reason) in [
      ("no", "is not a JSON object"), (#"{"query": "q", "choices": ["a"], "gold": 1}"#, "gold is 1"),
      (#"{"query": "q"}"#, "has neither"), (#"{"context": "q", "answer": " "}"#, "asks or answers nothing"),
      (#"{"context": "q", "answer": "a", "aliases": [""]}"#, "asks or answers nothing"),
    ] {
      let bad = try temporaryFile(["", line])
      defer { try? FileManager.default.removeItem(atPath: bad) }
      do {
        _ = try Question.draw(9, from: bad, seed: 1)
        Issue.record("\(line) was read")
      } catch { #expect("\(error)".contains("\(bad):2: \(reason)"), "\(error)") }
    }
  }

  /// Answers written side by side are those written alone, and end at an end token or where the next question would begin.
  @Test func answersAreGeneratedSideBySide() throws {
    let model = try supernet()
    model.path = SupernetPath(full: [0, 2])
    let tokenizer = ByteTokenizer()
    let prompts = (0..<37).map { "Q\(String(repeating: "x", count: $0 * 7 % 23))\($0)" }
    func alone(_ prompt: String, stops: Set<UInt32>) throws -> String {
      let generator = Generator(model, backend: backend)
      let settings = ContinuationSettings(maxTokens: 3 + 16, stopTokens: stops, stopStrings: ["Question:"])
      return try generator.continuations([tokenizer.encode(prompt.utf8)], settings, tokenizer: tokenizer)[0].text
    }
    let path = try temporaryFile(prompts.map { #"{"context": "\#($0) ", "continuation": "abc"}"# })
    defer { try? FileManager.default.removeItem(atPath: path) }
    let questions = try Question.draw(37, from: path, seed: 1)
    var said: [Set<UInt32>: [String]] = [:]
    // An end token that the model does write.
    let common = tokenizer.encode(try alone("Qx1 ", stops: []).utf8)
    for stops: Set<UInt32> in [[256], [256, try #require(common.last)]] {
      let set = QuestionSet(questions, match: .contains, tokenizer: tokenizer, endTokens: stops)
      said[stops] = try set.texts(model, backend: backend)
      #expect(said[stops] == (try questions.map { try alone($0.prompt, stops: stops) }))
    }
    #expect(Set(said.values).count == 2)
  }

  /// Ids that a model has no rows for are refused before it runs, wherever they come from.
  @Test func vocabulariesMustFit() throws {
    let model = try supernet()
    func small(_ size: Int) throws -> HybridLM {
      var json = try #require(try JSONSerialization.jsonObject(with: model.configuration.json) as? [String: Any])
      json["vocab_size"] = size
      let small = HybridLM(
        try ModelConfiguration(json: JSONSerialization.data(withJSONObject: json), path: "small"))
      small.initialize(seed: 1, backend: backend)
      return small
    }
    var batch = SequenceBatch()
    (batch.tokens, batch.labels, batch.segments) = ([1, 2], [2, 256], [0..<2])
    let text = EvaluationText(batches: [batch], vocabulary: Vocabulary(of: ByteTokenizer()))
    let path = try temporaryFile([#"{"question": "Who?", "answer": "Ann"}"#])
    defer { try? FileManager.default.removeItem(atPath: path) }
    let questions = QuestionSet(
      try Question.draw(1, from: path, seed: 1), match: .equals, tokenizer: ByteTokenizer(), endTokens: [256])
    var settings = ObjectiveSettings()
    settings.names = ["recall", "accuracy=needle", "answer-loss=\(path)", "accuracy=\(path)"]
    for size in [100, 256] {
      let small = try small(size)
      for run in [
        { _ = try Evaluation(model: small, teacher: nil, text: text, backend: self.backend) },
        { _ = try Evaluation(model: model, teacher: small, text: text, backend: self.backend) },
        { _ = try AnswerAccuracy(small, text, backend: self.backend) },
        { _ = try questions.texts(small, backend: self.backend) },
        { _ = try settings.make(of: "none", fits: [model.configuration, small.configuration], teacher: nil) },
      ] as [() throws -> Void] {
        do {
          try run()
          Issue.record("a model of \(size) rows was run on bytes")
        } catch { #expect("\(error)".contains("has ids up to 256, the model a vocabulary of \(size)"), "\(error)") }
      }
    }
    // As many rows as ids, but not as many as the model has that it teaches.
    let other = try small(257)
    _ = try Evaluation(model: other, teacher: nil, text: text, backend: backend)
    #expect(throws: JobError.self) { try Evaluation(model: model, teacher: other, text: text, backend: backend) }
  }

  /// The gradient of the gates is that of the mixed model, by central differences; at gates of 0 and 1 the mixed model is
  /// a path.
  @Test(arguments: ["gla", "gdn"]) func gatesHaveTheirGradient(_ mixer: String) throws {
    let model = try supernet(mixer: mixer)
    var batch = SequenceBatch()
    var random = RandomStream(seed: 6, name: "tokens")
    batch.tokens = (0..<24).map { _ in Int32(random.next() % 320) }
    batch.labels = Array(batch.tokens.dropFirst()) + [-1]
    batch.segments = [0..<10, 10..<24]
    batch.sequenceCount = 2
    struct Alone: PathExchange {
      let rank = 0
      let size = 1
      func allGather(_ values: [Double]) throws -> [Double] { values }
    }
    let gradients = GateGradients(
      supernet: model, teacher: nil, parts: [(batches: [batch], kl: false, weight: 1)], world: Alone(),
      backend: backend)
    func loss(_ gates: [Double]) -> Double {
      backend.withoutRecording {
        let data = Batch(tokens: backend.tensor(batch.tokens), segments: Segments(batch.segments))
        func tensors(_ values: [Double]) -> [Tensor] { values.map { backend.tensor([Float($0)], [1]) } }
        let hidden = gradients.mixed(data, tensors(gates), tensors(gates.map { 1 - $0 }))
        return vocabularyLoss(hidden: hidden, weight: model.head, labels: backend.tensor(batch.labels))
          .crossEntropy.hostSum() / 23
      }
    }
    var stopping = gradients
    stopping.wantsStop = { true }
    #expect(throws: Stopped.self) { try stopping([0.3, 0.8, 0.5], step: 1) }
    let gates = [0.3, 0.8, 0.5]
    let found = try gradients(gates, step: 1)
    for layer in gates.indices {
      var (up, down) = (gates, gates)
      up[layer] += 0.02
      down[layer] -= 0.02
      let expected = (loss(up) - loss(down)) / 0.04
      let error = abs(found[layer] - expected) / max(abs(expected), 1e-2)
      #expect(error < 1e-2, "layer \(layer): \(found[layer]) and \(expected)")
    }
    model.path = SupernetPath(full: [1])
    let text = EvaluationText(batches: [batch], vocabulary: Vocabulary(of: ByteTokenizer()))
    let path = try Evaluation(model: model, teacher: nil, text: text, backend: backend).loss
    #expect(abs(loss([0, 1, 0]) - path) < 1e-5 * path)
  }

  /// A supernet's path goes on from its caches as it reads at once.
  @Test func pathsHaveCaches() throws {
    let model = try supernet()
    model.path = SupernetPath(full: [0], sliding: [2])
    let tokens = (0..<30).map { UInt32($0 * 31 % 320) }
    let whole = backend.withoutRecording {
      model.logits(
        model(Batch(tokens: backend.tensor(tokens.map { Int32($0) }), segments: Segments(count: 1, length: 30)))
      ).toArray()
    }
    let generator = Generator(model, backend: backend)
    _ = generator.read([Array(tokens[..<20])])
    for index in 20..<30 {
      let logits = generator.read([[tokens[index]]]).toArray()
      #expect(relativeError(logits, Array(whole[index * 320..<(index + 1) * 320])) < 1e-5)
    }
  }

  /// Every question of real files is read, its right answers match themselves in other spellings, and answers of other
  /// questions do so no more often than they are the same.
  @Test(
    .enabled(if: FileManager.default.fileExists(atPath: corpora), "needs ../shared/corpora"),
    arguments: [
      "arc_easy", "boolq", "gsm8k-test", "gsm8k-train", "lambada_openai", "math_simple_soln", "piqa",
      "pubmed_qa_labeled",
      "triviaqa_sm_sub",
    ])
  func realQuestionsAreReadAndMatched(_ name: String) throws {
    let questions = try Question.draw(.max, from: corpora + "/\(name).jsonl", seed: 1)
    #expect(questions.count >= 1000)
    var others = 0
    for (index, question) in questions.enumerated() {
      for answer in question.answers {
        // Of one line the next one does not count.
        let rest = answer.contains { $0.isNewline } ? "" : "Sure"
        for text in [answer, answer.uppercased() + ".", "\n \(answer)\n\(rest)"] {
          let isRight = AnswerMatch.contains.accepts(text, answers: [answer])
          #expect(isRight && AnswerMatch.equals.accepts(text, answers: [answer]), "\(text): \(question)")
        }
      }
      let other = questions[(index + 7) % questions.count].answers
      others += AnswerMatch.equals.accepts(question.answers[0], answers: other) ? 1 : 0
      guard AnswerMatch.isRationale(question.answers[0]) else { continue }
      let final = question.answers[0].split(separator: " ").last.map(String.init) ?? ""
      #expect(AnswerMatch.contains.accepts("It is $\(final).", answers: question.answers), "\(question)")
      for wrong in ["1\(final.drop { $0 == "-" })", "\(final)7", "#### \(final)1\n\(final)"] {
        #expect(!AnswerMatch.contains.accepts(wrong, answers: question.answers), "\(wrong): \(question.answers)")
      }
    }
    print("\(name): \(questions.count) questions, \(others) equal the answer of another")
    // Yes, no and small numbers are the answers of many.
    #expect(others < questions.count * (["boolq", "pubmed_qa_labeled"].contains(name) ? 7 : 1) / 10)
  }
}

private let corpora =
  URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()
  .deletingLastPathComponent().path + "/shared/corpora"

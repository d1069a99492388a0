import Foundation

/// What `--experimental-dump-help` says of the program's commands: the tests call whatever it lists.
struct HelpDump: Decodable {
  let command: Command

  struct Command: Decodable {
    let commandName: String
    let subcommands: [Command]?
    let arguments: [Argument]?

    /// The commands that do something, by their whole names.
    func leaves(_ path: [String] = []) -> [(path: [String], arguments: [Argument])] {
      let subcommands = (subcommands ?? []).filter { $0.commandName != "help" }
      guard !subcommands.isEmpty else { return [(path, arguments ?? [])] }
      return subcommands.flatMap { $0.leaves(path + [$0.commandName]) }
    }
  }

  struct Argument: Decodable {
    let kind: String
    let names: [Name]?
    let valueName: String?

    struct Name: Decodable { let name: String }

    /// An option that takes a value, by its name.
    var option: String? { kind == "option" ? names?.first.map { "--" + $0.name } : nil }
  }
}

/// How a command is called where it has something to do: in the folder of ``SmallRun``, `OUT` standing for a name that is
/// nobody else's. What an option of the list is given instead replaces it.
let calls: [String: [String]] = [
  "pretrain": ["--job", "teacher.yaml", "--run-dir", "OUT"],
  "distill": ["--job", "distill.yaml", "--run-dir", "OUT"],
  "finetune": ["--job", "finetune.yaml", "--run-dir", "OUT"],
  "launch": ["--ranks", "1", "--max-restarts", "0", "--", "pretrain", "--job", "teacher.yaml", "--run-dir", "OUT"],
  "plan": ["--job", "distill.yaml", "--kind", "distill"],
  "tokens build": ["--template", "{question}{answer}", "--output", "OUT", "qa.jsonl"],
  "tokens join": ["data/qa"],
  "tokens encode": ["qa.jsonl"],
  "tokens inspect": ["data/qa"],
  "tokens verify": ["data/qa"],
  "tokens make-questions": ["--count", "3", "--output", "OUT"],
  "tokens plan": ["--job", "distill.yaml", "--range", "0:2"],
  "checkpoint list": ["teacher"],
  "checkpoint inspect": ["teacher"],
  "checkpoint verify": ["teacher"],
  "checkpoint diff": ["teacher", "teacher"],
  "checkpoint export": ["teacher", "--output", "OUT"],
  // No such name, so that nothing is fetched.
  "models fetch": ["smollm", "--output", "OUT"],
  "models list": ["teacher"],
  "convert": ["teacher/model", "--config", "hybrid.json", "--output", "OUT"],
  "search all": ["--job", "search.yaml", "--run-dir", "OUT"],
  "search placement": [
    "supernet", "--full", "1", "--teacher", "teacher/model", "--data", "data/qa", "--context", "32", "--sequences", "2",
    "--run-dir", "OUT",
  ],
  "search block": [
    "--job", "candidate.yaml", "--candidates", "gla", "--data", "data/qa", "--context", "32", "--sequences", "2",
    "--decode-context", "32", "--run-dir", "OUT",
  ],
  "search dimensions": [
    "--job", "candidate.yaml", "--key-sizes", "8", "--heads", "2", "--data", "data/qa", "--context", "32",
    "--sequences", "2", "--decode-context", "32", "--run-dir", "OUT",
  ],
  "search show": ["search"],
  "verify": ["teacher/model", "golden.safetensors"],
  "eval": ["teacher/model", "--data", "data/qa", "--context", "32", "--sequences", "4"],
  "generate": ["teacher/model", "--prompt", "Q", "--max-tokens", "2"],
  "compare": ["--data", "data/qa", "--context", "32", "--sequences", "4", "--decode", "2", "a=teacher/model"],
  "bench step": ["--job", "distill.yaml", "--steps", "1"],
  "bench data": ["data/qa", "--seconds", "0.01"],
  "bench checkpoint": ["--megabytes", "1", "--folder", "OUT"],
  "bench tokenizer": ["qa.jsonl", "--tokenizer", "bytes", "--seconds", "0.01"],
  "bench decode": ["--model", "hybrid.json", "--contexts", "32", "--steps", "1"],
  "bench mixers": ["--context", "16", "--hidden", "16", "--heads", "1", "--only", "gla", "--passes", "1"],
  "bench kernels": [],
  "devices list": [],
  "devices check": [],
]

/// Values that look like mistakes and are none, by command and option (`*`: any command, any value).
let meant: [(command: String, option: String, values: [String])] = [
  // Texts and names that may be anything.
  ("*", "--prompt", ["*"]), ("*", "--stop", ["*"]), ("*", "--separator", ["*"]), ("*", "--stands-in-for", ["*"]),
  ("compare", "--title", ["*"]), ("compare", "--note", ["*"]),
  // Places to write; a folder that holds something else is refused by those that must not mix.
  ("*", "--output", ["-1", "0", "1e30", "nan", "missing/path", "folder"]),
  ("*", "--run-dir", ["-1", "0", "1e30", "nan", "missing/path", "folder"]),
  ("bench checkpoint", "--folder", ["-1", "0", "1e30", "nan", "missing/path", "folder"]),
  ("bench step", "--trace", ["-1", "0", "1e30", "nan", "binary", "missing/path", "folder"]),
  ("compare", "--report", ["-1", "0", "1e30", "nan", "binary", "missing/path"]),
  // Seeds are any number that is not negative.
  ("*", "--seed", ["0"]),
  // Nothing of something: docs and help say what 0 is.
  ("tokens inspect", "--text", ["0"]), ("bench mixers", "--intermediate", ["0"]), ("generate", "--temperature", ["0"]),
  ("generate", "--top-k", ["0"]), ("search placement", "--full", ["0"]), ("search placement", "--sliding", ["0"]),
  ("launch", "--max-restarts", ["0"]), ("launch", "--backoff", ["0"]), ("*", "--deadline-lead", ["0"]),
  ("devices check", "--device", ["0"]),
  ("bench kernels", "--device", ["0"]), ("bench checkpoint", "--level", ["-1", "0"]),
  // A file of any texts, one a line.
  ("generate", "--prompts", ["binary"]), ("tokens encode", "<file>", ["binary"]),
  // No text for this one, and a folder of texts.
  ("tokens build", "<inputs>", ["folder", "binary"]), ("bench tokenizer", "<files>", ["binary"]),
  // A folder without models.
  ("models list", "<folder>", ["folder"]),
  // Plans with another rate.
  ("plan", "--rate", ["1e30"]),
]

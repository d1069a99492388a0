import ArgumentParser

struct JettrainCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "jettrain",
    abstract: "Turns a full-attention language model into a JetBlock hybrid: distillation, fine-tuning, checkpoints.",
    version: "0.1.0",
    subcommands: [
      Pretrain.self, Distill.self, Finetune.self, Launch.self, PlanCommand.self, Tokens.self, CheckpointCommand.self,
      ModelsCommand.self, Convert.self, Search.self, Verify.self, Eval.self, Generate.self, Compare.self, Bench.self,
      Devices.self,
    ])
}

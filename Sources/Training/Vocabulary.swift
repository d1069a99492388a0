import Models
import TokenStreams
import Tokenizers

/// The ids that a source of tokens can give. Where tokens meet a model, and nowhere else, it is asked whether the model's
/// tables have a row for each: training, evaluation, search and generation all go through ``check(fits:teacher:)``.
package struct Vocabulary: Sendable {
  /// How errors name it.
  package let source: String
  /// One more than the largest id.
  package let size: Int

  /// The ids of a dataset, as its manifest says; its shards are held to the same (`Dataset.shard`).
  package init(of manifest: Manifest) {
    (source, size) = ("dataset \(manifest.name)", manifest.vocabulary)
  }

  package init(of tokenizer: any Tokenizer) {
    (source, size) = ("tokenizer \(tokenizer.name)", tokenizer.vocabularySize)
  }

  /// Refuses ids that a model cannot mean: they would be read, and as labels written, beyond its tables.
  ///
  /// - Parameter teacher: whose distribution over the vocabulary the model is compared with
  /// - Throws: `JobError`, bad data
  package func check(fits model: ModelConfiguration, teacher: ModelConfiguration? = nil) throws {
    for configuration in [model, teacher].compactMap({ $0 }) {
      guard configuration.vocabularySize >= size else {
        throw JobError(
          .data,
          "\(source) has ids up to \(size - 1), the model a vocabulary of \(configuration.vocabularySize): take the one "
            + "that the model was trained with")
      }
    }
    if let teacher, teacher.vocabularySize != model.vocabularySize {
      throw JobError(
        .data,
        "the teacher has a vocabulary of \(teacher.vocabularySize), the model one of \(model.vocabularySize): "
          + "their distributions cannot be compared")
    }
  }
}

/// The parts of a model, in the order in which they run. An output matrix that is tied to the embeddings is theirs.
package enum ModelPart: Hashable, Sendable {
  case embeddings
  case layer(Int)
  case head
}

/// Sets of parameters that a phase may freeze.
package enum ParameterGroup: String, CaseIterable, Sendable {
  case mlp
  case embeddings
  case norms
  /// Mixers of attn and swa layers.
  case attention
  /// Mixers of the other layers.
  case mixers
}

/// What a parameter is to those who read it.
package enum ParameterKind: Sendable {
  /// Only products and look-ups read it: it may stay bfloat16 in a file, and weight decay applies to it.
  case matrix
  /// It is read element by element, and float32.
  case vector
}

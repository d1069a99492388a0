import Tensors

/// The trained parameters of a store, their values and their gradients each in one flat array in creation
/// order, so that slices of it are what ranks own, reduce, clip and save.
///
/// Both arrays are padded with zeros to whole blocks of ``blockSize`` elements.
package final class Arena {
  /// Elements of one block, the unit in which ranks share the arena and gradients are summed up.
  package static let blockSize = 16_384

  /// A parameter and where it lies.
  package struct Entry {
    package let parameter: Parameter
    package let offset: Int
    package var range: Range<Int> { offset..<offset + parameter.count }
  }

  package let entries: [Entry]
  /// Elements without the padding.
  package let count: Int
  package let values: Tensor
  package let gradients: Tensor
  package let blockCount: Int

  /// Moves the parameters that `isTrained` names into a new arena, copying the values they have, and attaches
  /// their slots; the others keep a copy of their own, without slots.
  package init(_ store: ParameterStore, backend: any Backend, isTrained: (Parameter) -> Bool) {
    var entries: [Entry] = []
    var offset = 0
    for parameter in store.parameters where isTrained(parameter) {
      entries.append(Entry(parameter: parameter, offset: offset))
      offset += parameter.count
    }
    self.entries = entries
    count = offset
    blockCount = (offset + Self.blockSize - 1) / Self.blockSize
    values = backend.zeros([blockCount * Self.blockSize])
    gradients = backend.zeros([blockCount * Self.blockSize])
    for parameter in store.parameters where !isTrained(parameter) && parameter.isTrained {
      let own = backend.empty(parameter.shape)
      backend.copy(parameter.value, into: own)
      parameter.value = own
    }
    for entry in entries {
      let home = view(entry, of: values)
      if entry.parameter.hasValue { backend.copy(entry.parameter.value, into: home) }
      entry.parameter.value = home
      entry.parameter.value.slot = GradientSlot(
        shape: entry.parameter.shape, backend: backend, home: view(entry, of: gradients))
    }
  }

  private func view(_ entry: Entry, of flat: Tensor) -> Tensor {
    flat.rows(entry.range).reshaped(entry.parameter.shape)
  }

  /// Prepares for one backward pass; the gradients it will find are its own.
  package func beginBackward() {
    for entry in entries { _ = entry.parameter.value.slot?.take() }
  }

  /// Zeroes what the backward pass did not reach.
  package func endBackward() {
    for entry in entries where entry.parameter.value.slot?.gradient == nil {
      gradients.backend.fill(view(entry, of: gradients), with: 0)
    }
  }

  /// 1 for every element that weight decay applies to, in `range` of the arena.
  package func decays(_ range: Range<Int>) -> [Float] {
    var flags = [Float](repeating: 0, count: range.count)
    for entry in entries where entry.parameter.decays {
      for index in entry.range.clamped(to: range) { flags[index - range.lowerBound] = 1 }
    }
    return flags
  }
}

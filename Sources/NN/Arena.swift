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
      parameter.own(on: backend)
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

  /// Zeroes what the backward pass did not reach, of all entries or of those in `range`.
  package func endBackward(_ range: Range<Int>? = nil) {
    let range = range ?? 0..<gradients.count
    for entry in entries where range.contains(entry.offset) && entry.parameter.value.slot?.gradient == nil {
      gradients.backend.fill(view(entry, of: gradients), with: 0)
    }
  }

  /// The arena in runs that weight decay applies to or not.
  package var decayRuns: [(range: Range<Int>, decays: Bool)] {
    var runs: [(range: Range<Int>, decays: Bool)] = []
    for entry in entries {
      if let last = runs.last, last.decays == entry.parameter.isMatrix {
        runs[runs.count - 1].range = last.range.lowerBound..<entry.range.upperBound
      } else {
        runs.append((entry.range, entry.parameter.isMatrix))
      }
    }
    return runs
  }
}

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
  /// their slots; those that leave another arena get values of their own.
  ///
  /// An arena of before goes as its last parameter leaves it, and only then are the gradients allocated. Its own
  /// gradients must have been let go of by ``retire()``.
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
    for parameter in store.parameters where !isTrained(parameter) && parameter.home == .arena {
      parameter.own(on: backend)
    }
    values = backend.zeros([blockCount * Self.blockSize])
    for entry in entries { entry.parameter.move(to: Self.view(entry, of: values)) }
    gradients = backend.zeros([blockCount * Self.blockSize])
    for entry in entries {
      entry.parameter.attach(
        GradientSlot(shape: entry.parameter.shape, backend: backend, home: Self.view(entry, of: gradients)))
    }
  }

  /// Lets go of the gradients: the values stay until the parameters move on.
  package func retire() {
    for entry in entries { entry.parameter.rest() }
  }

  private static func view(_ entry: Entry, of flat: Tensor) -> Tensor {
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
      gradients.backend.fill(Self.view(entry, of: gradients), with: 0)
    }
  }

  /// Neighbouring parameters that one update treats alike.
  package struct Run {
    package fileprivate(set) var range: Range<Int>
    /// Whether weight decay applies to them.
    package let decays: Bool
    /// What `group` says of them.
    package let group: Int
  }

  /// The arena in runs of parameters of one group that weight decay applies to or not.
  package func runs(group: (Parameter) -> Int) -> [Run] {
    var runs: [Run] = []
    for entry in entries {
      let (decays, group) = (entry.parameter.isMatrix, group(entry.parameter))
      if let last = runs.last, last.decays == decays, last.group == group {
        runs[runs.count - 1].range = last.range.lowerBound..<entry.range.upperBound
      } else {
        runs.append(Run(range: entry.range, decays: decays, group: group))
      }
    }
    return runs
  }
}

import Tensors

/// What the matrices that train are computed with. Everything else that trains is float32, gradients and the values that
/// updates go to, too.
package enum ComputePrecision: String, CaseIterable, Sendable {
  case float32
  /// Every rank holds a bfloat16 copy of the matrices, which all kernels read; the float32 masters lie where they are owned.
  case bfloat16
}

/// The trained parameters of a store in one space of elements, so that slices of it are what ranks own, reduce, clip and
/// save: their gradients in one flat array, their values in one for each section.
///
/// In float32 there is one section, in the order of creation but for packs, which stand where their first parameter does.
/// In bfloat16 there are two: the matrices, then the rest.
/// Sections are padded with zeros to whole blocks of ``blockSize`` elements.
package final class Arena {
  /// Elements of one block, the unit in which ranks share the arena and gradients are summed up.
  package static let blockSize = 16_384

  /// A parameter and where it lies.
  package struct Entry {
    package let parameter: Parameter
    package let offset: Int
    /// Its place in the order of creation, in which layers run.
    package let ordinal: Int
    package var range: Range<Int> { offset..<offset + parameter.count }
  }

  /// Elements whose values lie in one array.
  package struct Section {
    /// Elements without the padding.
    package let elements: Range<Int>
    package let blocks: Range<Int>
    /// Of float32, or of bfloat16 when it is lowered.
    package fileprivate(set) var values: Tensor

    /// The section with its padding.
    package var range: Range<Int> { blocks.lowerBound * blockSize..<blocks.upperBound * blockSize }
  }

  /// In the order of their elements.
  package let entries: [Entry]
  package let precision: ComputePrecision
  package private(set) var sections: [Section]
  /// Elements without the padding.
  package let count: Int
  package let blockCount: Int
  package let backend: any Backend
  private var allocatedGradients: Tensor?
  /// The slots of the gradients and the elements that each covers.
  private var slots: [(slot: GradientSlot, range: Range<Int>)] = []

  /// Moves the parameters that `isTrained` names into a new arena, copying the values they have, and attaches their slots;
  /// those that leave another arena get values of their own.
  ///
  /// An arena of before goes as its last parameter leaves it, and only then are the gradients allocated. Its own
  /// gradients must have been let go of by ``retire()``.
  package convenience init(_ store: ParameterStore, backend: any Backend, isTrained: (Parameter) -> Bool) {
    self.init(gathering: store, precision: .float32, backend: backend, isTrained: isTrained)
    begin()
  }

  /// Moves the parameters alone, all to float32. With a precision of bfloat16 somebody must keep the masters of the matrices
  /// before ``begin()`` makes compute copies of them.
  package init(
    gathering store: ParameterStore, precision: ComputePrecision, backend: any Backend, isTrained: (Parameter) -> Bool
  ) {
    self.precision = precision
    self.backend = backend
    let trained = store.parameters.filter(isTrained).enumerated()
    let parts =
      precision == .float32
      ? [Array(trained)] : [trained.filter(\.element.isMatrix), trained.filter { !$0.element.isMatrix }]
    for parameter in store.parameters where !isTrained(parameter) && parameter.home == .arena {
      parameter.own(on: backend)
    }
    var entries: [Entry] = []
    var sections: [Section] = []
    var block = 0
    for part in parts {
      let start = block * Self.blockSize
      var offset = start
      for (ordinal, parameter) in Self.gathered(part) {
        entries.append(Entry(parameter: parameter, offset: offset, ordinal: ordinal))
        offset += parameter.count
      }
      let blocks = block..<(offset + Self.blockSize - 1) / Self.blockSize
      sections.append(
        Section(
          elements: start..<offset, blocks: blocks, values: backend.zeros([blocks.count * Self.blockSize])))
      block = blocks.upperBound
    }
    (self.entries, self.sections) = (entries, sections)
    count = entries.reduce(0) { $0 + $1.parameter.count }
    blockCount = block
    for entry in entries { entry.parameter.move(to: place(of: entry)) }
  }

  /// In their order, but every pack behind its first parameter.
  private static func gathered(_ parameters: [(offset: Int, element: Parameter)]) -> [(Int, Parameter)] {
    var packs: [ObjectIdentifier: [(Int, Parameter)]] = [:]
    for (ordinal, parameter) in parameters {
      if let pack = parameter.pack { packs[ObjectIdentifier(pack), default: []].append((ordinal, parameter)) }
    }
    return parameters.flatMap { ordinal, parameter in
      parameter.pack.map { packs.removeValue(forKey: ObjectIdentifier($0)) ?? [] } ?? [(ordinal, parameter)]
    }
  }

  /// Lowers the matrices to bfloat16, where that is the precision, and attaches slots to all parameters: they train from now
  /// on.
  package func begin() {
    if precision == .bfloat16 {
      let lowered = backend.empty(sections[0].values.shape, .bfloat16)
      backend.copy(sections[0].values, into: lowered)
      replaceMatrices(by: lowered)
    }
    let gradients = backend.zeros([blockCount * Self.blockSize])
    allocatedGradients = gradients
    var place = 0
    while place < entries.count {
      let members = packed(from: place)
      let range = entries[place].offset..<entries[place + members - 1].range.upperBound
      let first = entries[place].parameter.shape
      let shape = members == 1 ? first : [range.count / first.dropFirst().reduce(1, *)] + first.dropFirst()
      let home = gradients.rows(range).reshaped(shape)
      let slot = GradientSlot(shape: shape, backend: backend, home: home)
      for entry in entries[place..<place + members] { entry.parameter.attach(slot) }
      slots.append((slot, range))
      place += members
    }
  }

  /// How many entries from `place` on have one gradient: those of a pack that trains as a whole.
  private func packed(from place: Int) -> Int {
    let members = entries[place].parameter.pack?.parameters ?? []
    let neighbours = entries[place...].prefix(members.count).map(\.parameter)
    return neighbours.elementsEqual(members, by: ===) ? max(1, members.count) : 1
  }

  /// Gives the matrices the float32 values `values` in place of their compute copies; the arena must have been retired.
  package func raise(to values: Tensor) {
    precondition(
      values.dtype == .float32 && values.count == sections[0].values.count, "\(values.shape) are not the matrices")
    replaceMatrices(by: values)
  }

  private func replaceMatrices(by values: Tensor) {
    sections[0].values = values
    for entry in entries where sections[0].elements.contains(entry.offset) {
      entry.parameter.lie(at: place(of: entry))
    }
  }

  /// Whether the values of the elements `range`, which lie in one section, are compute copies of masters elsewhere.
  package func isLowered(_ range: Range<Int>) -> Bool { section(of: range).values.dtype == .bfloat16 }

  private func section(of range: Range<Int>) -> Section {
    guard let section = sections.first(where: { $0.range.contains(range.lowerBound) }),
      range.upperBound <= section.range.upperBound
    else { preconditionFailure("elements \(range) do not lie in one section: \(sections.map(\.range))") }
    return section
  }

  /// The values of the elements `range`, which lie in one section.
  package func values(_ range: Range<Int>) -> Tensor {
    let section = section(of: range)
    let start = section.range.lowerBound
    return section.values.rows(range.lowerBound - start..<range.upperBound - start)
  }

  /// The gradients of all elements; of nothing before ``begin()`` and after ``retire()``.
  package var gradients: Tensor {
    guard let allocatedGradients else {
      preconditionFailure("the arena has no gradients: it has not begun or was retired")
    }
    return allocatedGradients
  }

  private func place(of entry: Entry) -> Tensor { values(entry.range).reshaped(entry.parameter.shape) }

  /// Lets go of the gradients: the values stay until the parameters move on.
  package func retire() {
    for entry in entries { entry.parameter.rest() }
    (allocatedGradients, slots) = (nil, [])
  }

  /// Prepares for one backward pass; the gradients it will find are its own.
  package func beginBackward() {
    for (slot, _) in slots { _ = slot.take() }
  }

  /// Zeroes what the backward pass did not reach, of all entries or of those in `range`.
  package func endBackward(_ range: Range<Int>? = nil) {
    let range = range ?? 0..<gradients.count
    for (slot, place) in slots where range.contains(place.lowerBound) && slot.gradient == nil {
      backend.fill(gradients.rows(place), with: 0)
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

  /// The arena in runs of parameters of one group that weight decay applies to or not; none crosses a section.
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

import Tensors

/// What a recurrence of linear attention leaves on the tape: its inputs, and what its forward kernel kept of the states.
///
/// - Parameters:
///   - o: what it computed
///   - inputs: dense; the kernel gives a gradient to each
///   - last: the input whose gradient is handed over after the others: with it the nodes before are complete
///   - state: nil when nothing is recorded
///   - backward: writes the gradients of the inputs into the rooms, given the gradient of `o`
func recordRecurrence(
  _ o: Tensor, from inputs: [Tensor], last: Int, state: SavedState?, layout: Layout,
  backward:
    @escaping @Sendable (
      _ dO: Tensor, _ inputs: [Tensor], _ state: SavedState, _ layout: Layout, _ rooms: [Tensor]
    ) -> Void
) -> Tensor {
  guard let state else { return o }
  return o.backend.record(
    o, from: inputs, saving: (inputs: inputs.map(\.saved), state: state, layout: layout)
  ) { node in
    let saved = node.saved
    let rooms = saved.inputs.indices.map { node[$0].room(on: node.backend) }
    backward(node.dy, saved.inputs.map(\.value), saved.state, saved.layout, rooms)
    for index in rooms.indices where index != last { node[index].add(rooms[index]) }
    node[last].add(rooms[last])
  }
}

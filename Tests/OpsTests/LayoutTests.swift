import Tensors
import TestSupport
import Testing

/// What is made once a batch.
@Suite struct LayoutTests {
  @Test(arguments: TestBackend.all) func positionsCountFromTheStartOfEverySegment(kind: TestBackend) {
    let backend = kind.make()
    let segments = Segments([0..<1, 1..<1, 1..<4, 4..<6])
    #expect(Layout(segments, on: backend).positions.toIntegers() == [0, 0, 1, 2, 0, 1])
    let layout = Layout(segments, starts: [7, 100, 0, 131_071], on: backend)
    #expect(layout.positions.toIntegers() == [7, 0, 1, 2, 131_071, 131_072])
    // Positions of segments without tokens are none.
    #expect(layout.positionLimit == 131_073)
    #expect(Layout(Segments([]), on: backend).positionLimit == 0)
  }

  /// Tables are made at their first use, and names of different types are different.
  @Test func tablesAreMadeOnce() {
    enum Name: Hashable { case first, second }
    enum Other: Hashable { case first }
    let layout = Layout(Segments(count: 2, length: 3), on: TestBackend.reference.make())
    var made: [Int] = []
    func table(_ name: some Hashable, _ value: Int) -> [Int] {
      layout.table(name) {
        made.append(value)
        return [value]
      }
    }
    #expect(table(Name.first, 1) == [1] && table(Name.second, 2) == [2] && table(Name.first, 3) == [1])
    #expect(table(Other.first, 4) == [4])
    #expect(made == [1, 2, 4])
    #expect(layout.spans(window: 2) === layout.spans(window: 2))
    #expect(layout.spans(window: 2) !== layout.spans())
    #expect(layout.spans(window: 2).list.map(\.keys) == [0..<3, 3..<6])
  }
}

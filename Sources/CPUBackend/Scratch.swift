/// Working memory of one slice of a kernel, cut from a single allocation; the slice frees it when it is done.
struct Scratch {
  private let memory: FloatPointer
  private var used = 0
  private let capacity: Int

  init(_ capacity: Int) {
    self.capacity = capacity
    memory = .allocate(capacity: capacity)
  }

  /// The next `count` floats, undefined, at a 64-byte boundary relative to the first.
  mutating func take(_ count: Int) -> FloatPointer {
    let rounded = Self.rounded(count)
    precondition(used + rounded <= capacity, "scratch of \(capacity) floats is too small")
    defer { used += rounded }
    return memory + used
  }

  /// What `count` floats take up.
  static func rounded(_ count: Int) -> Int { (count + 15) / 16 * 16 }

  func free() { memory.deallocate() }
}

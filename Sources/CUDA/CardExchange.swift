import CCUDA

/// Exchanges between the cards of several processes, by NCCL: sends and receives in a stream's order.
///
/// It does not add up: sums are ours, so that their order, and with it the bits, does not depend on how many cards there are.
package final class CardExchange: @unchecked Sendable {
  /// What all processes of an exchange must know of it: made by one of them.
  package struct Identity: Sendable {
    package let bytes: [UInt8]

    package init(_ bytes: [UInt8]) { self.bytes = bytes }
  }

  private let functions: Functions
  private let device: Device
  private let communicator: ncclComm_t

  /// The functions of NCCL that jettrain calls.
  private struct Functions {
    let library: Library
    let version: Int
    let getUniqueID: ncclGetUniqueId_t
    let initialize: ncclCommInitRank_t
    let abort: ncclCommFree_t
    let asyncError: ncclCommGetAsyncError_t
    let errorText: ncclGetErrorString_t
    let lastError: ncclGetLastError_t
    let groupStart: ncclGroup_t
    let groupEnd: ncclGroup_t
    let send: ncclSend_t
    let receive: ncclRecv_t

    init() throws {
      let library = try Library.open(.collectives)
      self.library = library
      let getVersion: ncclGetVersion_t = try library.function("ncclGetVersion")
      var version: Int32 = 0
      _ = getVersion(&version)
      self.version = Int(version)
      getUniqueID = try library.function("ncclGetUniqueId")
      initialize = try library.function("ncclCommInitRank")
      abort = try library.function("ncclCommAbort")
      asyncError = try library.function("ncclCommGetAsyncError")
      errorText = try library.function("ncclGetErrorString")
      lastError = try library.function("ncclGetLastError")
      groupStart = try library.function("ncclGroupStart")
      groupEnd = try library.function("ncclGroupEnd")
      send = try library.function("ncclSend")
      receive = try library.function("ncclRecv")
    }

    func check(_ status: ncclResult_t, _ action: @autoclosure () -> String, _ communicator: ncclComm_t? = nil) throws {
      guard status != 0 else { return }
      let detail = lastError(communicator).map { String(cString: $0) } ?? ""
      throw CUDAError(
        .fault,
        "\(action()) failed: \(String(cString: errorText(status)!))\(detail.isEmpty ? "" : ", \(detail)"); NCCL_DEBUG=INFO says "
          + "more, JETTRAIN_FABRIC=mpi does without NCCL")
    }
  }

  /// NCCL as this process finds it.
  ///
  /// - Throws: `CUDAError.missing` where it is not there
  private static func functions() throws -> Functions { try loaded.get() }
  private static let loaded = Result { try Functions() }

  /// Looks for NCCL.
  ///
  /// - Throws: `CUDAError.missing` where it is not there
  package static func find() throws { _ = try functions() }

  /// A new exchange's identity.
  package static func makeIdentity() throws -> Identity {
    let functions = try functions()
    var id = ncclUniqueId()
    try functions.check(functions.getUniqueID(&id), "making an NCCL identity")
    return Identity(withUnsafeBytes(of: id) { Array($0) })
  }

  /// Joins the exchange. Every process must call it, each with a card of its own; returns when all have.
  package init(_ device: Device, _ identity: Identity, rank: Int, of count: Int) throws {
    let functions = try Self.functions()
    try device.makeCurrent()
    var id = ncclUniqueId()
    withUnsafeMutableBytes(of: &id) { $0.copyBytes(from: identity.bytes.prefix($0.count)) }
    var communicator: ncclComm_t?
    try functions.check(
      functions.initialize(&communicator, Int32(count), id, Int32(rank)),
      "joining card \(device.index) to NCCL's exchange")
    (self.functions, self.device, self.communicator) = (functions, device, communicator!)
  }

  // What is under way has ended, or its process is ending: waiting for peers could take for ever.
  deinit { _ = functions.abort(communicator) }

  /// NCCL's version, 22800 for 2.28.0.
  package var version: Int { functions.version }

  /// Bytes at an address of the card's memory, to a peer or from it.
  package struct Part: Sendable {
    let peer: Int
    let address: UInt64
    let byteCount: Int

    package init(peer: Int, address: UInt64, byteCount: Int) {
      (self.peer, self.address, self.byteCount) = (peer, address, byteCount)
    }
  }

  /// Begins, in the order of the device's stream, to send and to receive parts at once. Every process must ask for the same.
  package func exchange(sending: [Part], receiving: [Part]) throws {
    try device.makeCurrent()
    // ncclInt8: bytes, of which nothing is added up.
    let (bytes, stream) = (Int32(0), device.stream.handle)
    try functions.check(functions.groupStart(), "beginning an exchange between cards", communicator)
    for part in sending where part.byteCount > 0 {
      try functions.check(
        functions.send(
          UnsafeRawPointer(bitPattern: UInt(part.address)), part.byteCount, bytes, Int32(part.peer), communicator,
          stream),
        "sending \(part.byteCount) bytes to rank \(part.peer)", communicator)
    }
    for part in receiving where part.byteCount > 0 {
      try functions.check(
        functions.receive(
          UnsafeMutableRawPointer(bitPattern: UInt(part.address)), part.byteCount, bytes, Int32(part.peer),
          communicator,
          stream),
        "receiving \(part.byteCount) bytes from rank \(part.peer)", communicator)
    }
    try functions.check(functions.groupEnd(), "an exchange between cards", communicator)
  }

  /// Throws what went wrong with exchanges under way.
  package func check() throws {
    var status: ncclResult_t = 0
    try functions.check(functions.asyncError(communicator, &status), "asking NCCL how it goes", communicator)
    // ncclInProgress
    if status != 7 { try functions.check(status, "an exchange between cards", communicator) }
  }
}

import CUDA
import CUDABackend
import Foundation
import MPI
import Tensors

/// The fabric of `world` for tensors of `backend`'s device: MPI's, or with `JETTRAIN_FABRIC=nccl` NCCL's. Every rank must call
/// it.
///
/// - Throws: on all ranks where NCCL was asked for and cannot serve
package func makeFabric(_ world: Communicator, for backend: any Backend) throws -> any Fabric {
  let choice = ProcessInfo.processInfo.environment["JETTRAIN_FABRIC"]
  guard choice == nil || choice == "mpi" || choice == "nccl" else {
    throw CUDAError(.missing, "JETTRAIN_FABRIC is \(choice ?? ""): it can be mpi or nccl")
  }
  let companion = backend.companion()
  var card = ""
  if choice == "nccl", world.size > 1, let backend = companion as? CUDABackend, CardExchange.isAvailable {
    card = "\(ProcessInfo.processInfo.hostName) \(try backend.device.place)"
  }
  let cards = try world.allGather(Array(card.utf8))
  guard let own = companion as? CUDABackend, cards.allSatisfy({ !$0.isEmpty }), Set(cards).count == world.size else {
    guard choice != "nccl" || world.size == 1 else {
      throw CUDAError(
        .missing,
        "JETTRAIN_FABRIC is nccl, and \(cards.contains([]) ? "rank \(cards.firstIndex(of: [])!) has no card or finds no NCCL" : "ranks share a card")"
      )
    }
    return MPIFabric(world, companion)
  }
  return try NCCLFabric(world, own)
}

import CUDA
import CUDABackend
import Foundation
import MPI
import Tensors

/// The fabric of `world` for tensors of `backend`'s device: MPI's, or with `JETTRAIN_FABRIC=nccl` NCCL's. Every rank must call
/// it.
///
/// - Throws: where NCCL was asked for and cannot serve, on every rank that was asked
package func makeFabric(_ world: Communicator, for backend: any Backend) throws -> any Fabric {
  let choice = ProcessInfo.processInfo.environment["JETTRAIN_FABRIC"]
  guard choice == nil || choice == "mpi" || choice == "nccl" else {
    throw CUDAError(.missing, "JETTRAIN_FABRIC is \(choice ?? ""): it can be mpi or nccl")
  }
  let companion = backend.companion()
  let card = companion as? CUDABackend
  // Where this rank's card is, or why it has none to offer: environments differ where mpirun was not told to pass them on.
  var offer = "-was not given JETTRAIN_FABRIC=nccl (mpirun -x JETTRAIN_FABRIC)"
  if choice == "nccl" {
    do {
      try CardExchange.find()
      offer =
        try card.map { "+\(ProcessInfo.processInfo.hostName) \(try $0.device.place)" }
        ?? "-computes on \(backend.deviceDescription)"
    } catch { offer = "-has no NCCL: \(error)" }
  }
  let offers = try world.allGather(Array(offer.utf8)).map { String(decoding: $0, as: UTF8.self) }
  guard choice == "nccl", world.size > 1 else { return MPIFabric(world, companion) }
  if let rank = offers.firstIndex(where: { $0.hasPrefix("-") }) {
    throw CUDAError(.missing, "JETTRAIN_FABRIC is nccl, and rank \(rank) \(offers[rank].dropFirst())")
  }
  guard let card, Set(offers).count == world.size else {
    throw CUDAError(.missing, "JETTRAIN_FABRIC is nccl, and ranks share a card, which NCCL refuses")
  }
  return try NCCLFabric(world, card)
}

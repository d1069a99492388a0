import CPUBackend
import MPI
import Tensors
import Training

/// The backend that a command computes on: the one place where it is chosen.
func makeBackend(threads: Int = Machine.cores) -> any Backend { CPUBackend(threads: threads) }

/// The backend of one of `world`'s ranks, which share the cores of their host.
func makeBackend(_ world: Communicator) -> any Backend { makeBackend(threads: Machine.threads(world)) }

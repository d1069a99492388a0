import Checkpointing
import MPI
import NN

/// Compares what the ranks hold: student and teacher must be the same everywhere, trained or not, or the memory or the sums
/// of a rank went wrong.
enum ReplicaCheck {
  /// The ranks whose `parameters` differ from those that most ranks hold, the coordinator's where as many hold others.
  static func differingRanks(_ parameters: [Parameter], world: Communicator) throws -> [Int] {
    var mine: UInt64 = 0
    for parameter in parameters {
      var digest = StateDigest()
      parameter.value.backend.read(parameter.value) { digest.update($0) }
      mine = mine &* 31 &+ digest.value
    }
    let all = try world.allGather(withUnsafeBytes(of: mine) { Array($0) })
    let counts = Dictionary(all.map { ($0, 1) }, uniquingKeysWith: +)
    let common = all.max { (counts[$0]!, $0 == all[0] ? 1 : 0) < (counts[$1]!, $1 == all[0] ? 1 : 0) }!
    return all.indices.filter { all[$0] != common }
  }
}

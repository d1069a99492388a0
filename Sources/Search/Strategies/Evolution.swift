import Models
import NN

/// Regularised evolution: children of the best of three, and the oldest die, however good they are.
package struct Evolution: Strategy {
  let settings: SearchSettings

  package init(settings: SearchSettings) { self.settings = settings }

  package func search(_ trace: SearchTrace) throws {
    let space = trace.space
    var random = RandomStream(seed: settings.seed, name: "search.evolution")
    let size = max(4, min(16, settings.evaluations / 4))
    var population = (0..<size).map { _ in space.draw(&random) }
    var scores = try trace.scores(population)
    var spent = size
    while spent < settings.evaluations {
      // A generation at a time, so that the ranks share it.
      let children = (0..<min(4, settings.evaluations - spent)).map { _ in
        let rivals = (0..<3).map { _ in Int(random.next() % UInt64(population.count)) }
        return space.mutated(population[rivals.min { scores[$0] < scores[$1] }!], &random)
      }
      population = Array(population.dropFirst(children.count)) + children
      scores = Array(scores.dropFirst(children.count)) + (try trace.scores(children))
      spent += children.count
    }
  }
}

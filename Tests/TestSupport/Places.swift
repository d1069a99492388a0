import Foundation

/// The checkout that the tests belong to.
package let repository = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
  .deletingLastPathComponent().path

/// A program that was built with the tests: beside the running one, else in the folder of release builds.
package func builtProgram(_ name: String) -> String {
  let beside = Bundle.main.executableURL?.deletingLastPathComponent().appendingPathComponent(name).path
  if let beside, FileManager.default.isExecutableFile(atPath: beside) { return beside }
  return repository + "/.build/release/" + name
}

/// The program under test: the one that `JETTRAIN` names, else the one built with the tests.
package let jettrainProgram = ProcessInfo.processInfo.environment["JETTRAIN"] ?? builtProgram("jettrain")

/// The folder `shared` beside the checkout, where a workplace has one.
package let sharedFolder: String? = {
  let path = URL(fileURLWithPath: repository).deletingLastPathComponent().appendingPathComponent("shared").path
  return FileManager.default.fileExists(atPath: path + "/golden") ? path : nil
}()

/// The golden tensors (Tests/Fixtures/golden/README.md).
package let goldenFolder = repository + "/Tests/Fixtures/golden"

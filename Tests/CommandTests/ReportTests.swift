import Foundation
import TestSupport
import Testing

private let chromium = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"].first {
  FileManager.default.isExecutableFile(atPath: $0)
}

/// The page that `compare --report` writes, as a browser without a network sees it.
@Suite struct ReportTests {
  let small: SmallRun

  init() throws {
    small = try SmallRun()
    let made = try small.run([
      "tokens", "make-questions", "--task", "roll-call", "--items", "5", "--queries", "2", "--split", "held-out",
      "--count",
      "4", "--output", "questions.jsonl",
    ])
    #expect(made.status == 0, "\(made.output)")
    let (status, output) = try small.run([
      "compare", "--data", "data/qa", "--context", "64", "--sequences", "4", "--decode", "4", "--samples",
      "questions.jsonl", "--show", "3", "--accuracy", "roll-call", "--items", "5", "--queries", "2", "--accuracy",
      "questions.jsonl", "--note", "a < b & c", "--report", "report.html", "teacher=teacher/model", "again=teacher",
    ])
    #expect(status == 0, "\(output)")
    for part in ["right: roll-call", "right: questions.jsonl", "tok/s 64K", "(0 of 4)", "report.html shows it all"] {
      #expect(output.contains(part), "\(part) is missing from\n\(output)")
    }
    #expect(output.split(separator: "\n").allSatisfy { $0.count < 200 })
  }

  @Test func pageNeedsNothingElse() throws {
    let page = try String(contentsOfFile: small.folder + "/report.html", encoding: .utf8)
    #expect(page.contains("a &lt; b &amp; c"))
    // Nothing is fetched: the one address is the name of SVG's vocabulary.
    let addresses = page.matches(of: /https?:[^"' ]*/).map { String($0.output) }
    #expect(Set(addresses).subtracting(["http://www.w3.org/2000/svg"]).isEmpty, "\(addresses)")
    #expect(!page.contains("<script") && !page.contains("<link rel=\"stylesheet\""))
  }

  @Test(.enabled(if: chromium != nil, "chromium is not installed: apt-get install chromium"))
  func browserShowsIt() throws {
    let process = Process()
    process.executableURL = URL(fileURLWithPath: try #require(chromium))
    process.arguments = [
      "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000",
      "--user-data-dir=\(small.folder)/browser",
      "--dump-dom", "file://\(small.folder)/report.html",
    ]
    let output = Pipe()
    process.standardOutput = output
    process.standardError = FileHandle.nullDevice
    try process.run()
    let page = String(decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
    process.waitUntilExit()
    #expect(process.terminationStatus == 0)
    for part in [
      "<h1>Models side by side</h1>", "<td>teacher</td>", "<td>again</td>", "Memory and speed", "Side by side",
    ] {
      #expect(page.contains(part), "\(part) is missing from\n\(page.prefix(2000))")
    }
  }
}

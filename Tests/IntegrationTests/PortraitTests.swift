import Glibc
import Testing

/// A program that tells all that it can learn about itself tells the same after a restore.
@Suite struct Portraits {
  @Test(arguments: ["plain", "odd"])
  func aProgramLearnsAboutItselfThatItWasRestored(_ kind: String) async throws {
    try await withWorkspace { workspace in
      let victim = try await Victim.start("portrait", [kind], in: workspace)
      let before = try await portrait(of: victim, 1)
      #expect(before.count > 300)
      #expect(try await portrait(of: victim, 2) == before, "the portrait changes by itself")
      try await victim.checkpoint()
      expectSame(try await portrait(of: victim, 3), before, "a checkpoint")
      try await victim.travel(leaveRunning: false)
      expectSame(try await portrait(of: victim, 4), before, "a restore")
      try await victim.finish()
    }
  }

  private func portrait(of victim: Victim, _ number: Int) async throws -> [String] {
    try Files.write("\(victim.folder)/ask-\(number)", text: "")
    let path = "\(victim.folder)/portrait-\(number)"
    try #require(await eventually { Files.exists(path) }, "no portrait: \(victim.explanation)")
    return (Files.text(path) ?? "").split(separator: "\n").map(String.init)
      .filter { !$0.contains("/portrait-\(number).new") }
  }

  private func expectSame(_ now: [String], _ before: [String], _ what: String, sourceLocation: SourceLocation = #_sourceLocation) {
    let gone = Set(before).subtracting(now).sorted()
    let new = Set(now).subtracting(before).sorted()
    #expect(gone.isEmpty && new.isEmpty, "after \(what)\nno longer: \(gone.prefix(30))\nnow: \(new.prefix(30))", sourceLocation: sourceLocation)
  }
}

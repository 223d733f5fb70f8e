import Glibc
import Testing

/// What a user loses if a whole job does not come back as it was: each victim checks itself from inside, the harness from
/// outside.
@Suite struct Jobs {
  @Test(arguments: ["counter", "counter-static", "counter-static-pie"])
  func aProgramLosesItsProgress(_ program: String) async throws {
    try await withWorkspace { workspace in
      let victim = try await Victim.start(program, in: workspace)
      try await victim.travel(generations: 2)
      try await victim.finish()
    }
  }

  @Test func aProgramThatWasKilledCannotGoBackToItsImage() async throws {
    try await withWorkspace { workspace in
      let victim = try await Victim.start("counter", in: workspace)
      try await victim.checkpointKillRestore()
      try await victim.finish()
    }
  }

  @Test(arguments: ["threads", "threads-static"])
  func threadsLoseTheirNamesLocksOrStacks(_ program: String) async throws {
    try await withWorkspace { workspace in
      let victim = try await Victim.start(program, ["24"], in: workspace)
      try await victim.travel()
      try await victim.finish()
    }
  }

  @Test func memoryComesBackWithOtherContentOrProtection() async throws {
    try await withWorkspace { workspace in
      let victim = try await Victim.start("memory", ["500", "an argument"], in: workspace)
      try await victim.travel()
      try await victim.finish()
    }
  }

  @Test func openFilesLoseTheirOffsetsOrPipesTheirData() async throws {
    try await withWorkspace { workspace in
      let victim = try await Victim.start("files", in: workspace)
      try await victim.travel()
      try await victim.finish()
    }
  }

  @Test func vectorRegistersComeBackWithOtherValues() async throws {
    try await withWorkspace { workspace in
      let victim = try await Victim.start("registers", in: workspace)
      try await victim.travel(generations: 2)
      try await victim.finish()
    }
  }

  @Test(arguments: ["tree", "signals", "pending", "limits", "attributes", "ids"])
  func processesLoseWhatBelongsToThem(_ what: String) async throws {
    try await withWorkspace { workspace in
      let victim = try await Victim.start("tasks", [what], in: workspace)
      try await victim.travel()
      try await victim.finish()
    }
  }
}

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

  @Test func countersTimersWatchesLocksOrListeningSocketsAreLost() async throws {
    try await withWorkspace { workspace in
      let victim = try await Victim.start("events", in: workspace)
      // A deleted file comes back with another inode, a watched one that has changed its number under the new one.
      try await victim.travel(generations: 2, Expectations(observe: false))
      try await victim.finish()
    }
  }

  @Test func timersStopOrTellTheWrongThread() async throws {
    try await withWorkspace { workspace in
      let victim = try await Victim.start("timers", in: workspace)
      // There is a signal on its way now and then.
      try await victim.travel(generations: 2, Expectations(observe: false))
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

  @Test(arguments: ["tree", "signals", "pending", "limits", "attributes", "ids", "chroot"])
  func processesLoseWhatBelongsToThem(_ what: String) async throws {
    try await withWorkspace { workspace in
      let victim = try await Victim.start("tasks", [what], in: workspace)
      try await victim.travel()
      try await victim.finish()
    }
  }

  @Test func aGroupOrASessionFallsApartThatHasOutlivedItsLeader() async throws {
    try await withWorkspace { workspace in
      let victim = try await Victim.start("tasks", ["dead-leaders"], in: workspace)
      try await victim.travel(generations: 3)
      try await victim.finish()
    }
  }

  @Test func aThreadIsLostWhenTheFirstOneHasEnded() async throws {
    try await withWorkspace { workspace in
      let victim = try await Victim.start("tasks", ["leader-exit"], in: workspace)
      try await victim.travel(generations: 2, Expectations(observe: false))
      try await victim.finish()
    }
  }

  @Test func aStoppedProcessRunsOrCannotBeContinued() async throws {
    try await withWorkspace { workspace in
      let victim = try await Victim.start("tasks", ["stopped"], in: workspace)
      let stopped = victim.ready.dropFirst().map { pid_t($0) }
      let standing = Set(victim.progress.keys.filter { $0 != "progress" && $0 != "progress.of-thread" })
      try await victim.travel(Expectations(stopped: Set(stopped), standing: standing))
      try await victim.finish()
    }
  }

  @Test func anExitStatusIsLostThatNobodyHasAskedForYet() async throws {
    try await withWorkspace { workspace in
      let victim = try await Victim.start("tasks", ["zombies"], in: workspace)
      let zombies = Set(victim.pids.filter { Processes.state($0) == "Z" })
      #expect(zombies.count == 3)
      try await victim.travel(Expectations(zombies: zombies))
      try await victim.finish()
    }
  }
}

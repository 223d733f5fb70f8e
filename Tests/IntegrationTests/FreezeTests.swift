import Glibc
import Testing

/// A job that does not keep still while it is being stopped.
@Suite struct Freezing {
  /// What is born and ends all the time cannot be compared from outside.
  static let restless = Expectations(observe: false)

  @Test(arguments: ["forkstorm", "threadstorm"])
  func aChildOrAThreadIsLostThatIsBornMeanwhile(_ storm: String) async throws {
    try await withWorkspace { workspace in
      let victim = try await Victim.start(storm, in: workspace)
      for _ in 0..<20 {
        let image = workspace.fresh("image")
        let run = try await workspace.torpor(["checkpoint", "\(victim.pid)", "--output", image])
        try #require(run.succeeded, "\(run)")
        Files.remove(image)
        try await Task.sleep(for: .microseconds(.random(in: 0...20_000)))
      }
      await victim.expectUnharmed("after 20 checkpoints", Self.restless, sourceLocation: #_sourceLocation)
      for _ in 0..<5 { try await victim.travel(leaveRunning: false, Self.restless) }
      try await victim.finish()
    }
  }

  @Test(arguments: ControlGroup.versions, ["forkstorm", "threadstorm", "threads"])
  func aJobWithACgroupOfItsOwnStaysFrozenOrLosesAChild(_ version: ControlGroup.Version, _ program: String) async throws {
    try await withControlGroup(version) { workspace, group in
      let victim = try await Victim.start(program, in: workspace, group)
      for _ in 0..<5 {
        let image = workspace.fresh("image")
        let run = try await workspace.torpor(["checkpoint", "\(victim.pid)", "--output", image, "-vv"])
        try #require(run.succeeded, "\(run)")
        #expect(run.errors.contains("froze the cgroup \(group.path)"), "\(run)")
        #expect(!group.isFrozen)
      }
      await victim.expectUnharmed("after five checkpoints", Self.restless, sourceLocation: #_sourceLocation)
      try await victim.travel(Self.restless)
      try await victim.finish()
    }
  }

  @Test(arguments: ControlGroup.versions, ["epoll_wait-time", "nanosleep", "poll-time"])
  func aWaitIsCutShortOrFrozenForEverWhenTorporDiesBesideAFrozenCgroup(
    _ version: ControlGroup.Version, _ call: String
  ) async throws {
    let points = ["cage.closing", "cage.closed"] + (version == .one ? ["cage.seized"] : ["checkpoint.seized"])
    for point in points {
      try await withControlGroup(version) { workspace, group in
        let victim = try await Victim.start("syscalls", [call, "0.8"], in: workspace, group)
        let run = try await workspace.torpor(
          ["checkpoint", "\(victim.pid)", "--output", workspace.fresh("image")], environment: ["TORPOR_FAULT": point])
        #expect(run.status == .signal(SIGKILL), "\(run)")
        let status = await Reaper.wait(for: victim.pid, within: .seconds(10))
        #expect(victim.findings.isEmpty && status == .code(0), "\(point): \(status). \(victim.explanation)")
        #expect(!group.isFrozen)
      }
    }
  }

  @Test(arguments: ControlGroup.versions)
  func aPausedJobRunsOnAfterItsCheckpoint(_ version: ControlGroup.Version) async throws {
    try await withControlGroup(version) { workspace, group in
      let victim = try await Victim.start("threads", ["6"], in: workspace, group)
      try group.freeze()
      try #require(await eventually { group.isFrozen })
      let run = try await workspace.torpor(["checkpoint", "\(victim.pid)", "--output", workspace.fresh("image")])
      #expect(run.succeeded, "\(run)")
      #expect(await eventually { group.isFrozen }, "it runs, though somebody has paused it")
      let died = try await workspace.torpor(
        ["checkpoint", "\(victim.pid)", "--output", workspace.fresh("image")], environment: ["TORPOR_FAULT": "checkpoint.collected"])
      #expect(died.status == .signal(SIGKILL), "\(died)")
      #expect(await eventually { group.isFrozen }, "it runs since torpor died, though somebody has paused it")
      try group.thaw()
      await victim.expectUnharmed("after it was thawed", sourceLocation: #_sourceLocation)
      try await victim.finish()
    }
  }

  @Test func aThreadThatCannotStopIsWaitedForWithoutEnd() async throws {
    try await withWorkspace { workspace in
      let victim = try await Victim.start("uninterruptible", in: workspace)
      let run = try await workspace.torpor(["checkpoint", "\(victim.pid)", "--output", workspace.file("image")])
      #expect(run.status == .code(3), "\(run)")
      for word in ["\(victim.pid) (uninterruptible", "has not stopped for 10 seconds", "state D"] {
        #expect(run.message.contains(word), "no \"\(word)\" in: \(run)")
      }
      #expect(!Files.exists(workspace.file("image")))
      let late = await victim.countsOn()
      #expect(late.isEmpty, "\(late)")
      try await victim.finish()
    }
  }

  private func withControlGroup(
    _ version: ControlGroup.Version, _ body: (Workspace, ControlGroup) async throws -> Void
  ) async throws {
    let group = try ControlGroup(version)
    do {
      try await withWorkspace { workspace in try await body(workspace, group) }
    } catch {
      try? group.thaw()
      await group.remove()
      throw error
    }
    try? group.thaw()
    await group.remove()
  }
}

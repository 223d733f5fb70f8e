import Glibc
import Testing

/// Nothing may be lost when torpor itself is killed, wherever it is.
@Suite struct CrashSafety {
  @Test func theFaultPointsAreThere() {
    #expect(FaultPoints.checkpoint.count >= 8)
    #expect(FaultPoints.restore.count >= 8)
  }

  @Test(arguments: FaultPoints.checkpoint)
  func aJobIsHarmedWhenTorporDiesInACheckpoint(_ point: String) async throws {
    try await withWorkspace { workspace in
      let victim = try await Victim.start("threads", ["6"], in: workspace)
      let image = workspace.fresh("image")
      let run = try await workspace.torpor(
        ["checkpoint", "\(victim.pid)", "--output", image], environment: ["TORPOR_FAULT": point])
      #expect(run.status == .signal(SIGKILL), "\(run)")
      await victim.expectUnharmed("after torpor died at \(point)", sourceLocation: #_sourceLocation)
      // An image is there wholly or not at all.
      if Files.exists(image) { try victim.expectImage(image, sourceLocation: #_sourceLocation) }
      try await victim.travel()
      try await victim.finish()
    }
  }

  @Test(arguments: ["nanosleep", "epoll_wait-time", "futex-time", "poll-time"])
  func aWaitIsCutShortWhenTorporDiesInACheckpoint(_ call: String) async throws {
    try await withWorkspace { workspace in
      for point in FaultPoints.checkpoint {
        let victim = try await Victim.start("syscalls", [call, "0.6"], in: workspace)
        _ = try await workspace.torpor(
          ["checkpoint", "\(victim.pid)", "--output", workspace.fresh("image")], environment: ["TORPOR_FAULT": point])
        let status = await Reaper.wait(for: victim.pid, within: .seconds(10))
        #expect(victim.findings.isEmpty && status == .code(0), "\(point): \(status). \(victim.explanation)")
      }
    }
  }

  @Test(arguments: FaultPoints.restore)
  func processesAreLeftBehindWhenTorporDiesInARestore(_ point: String) async throws {
    try await withWorkspace { workspace in
      let victim = try await Victim.start("tasks", ["tree"], in: workspace)
      let pids = victim.pids
      let image = try await victim.checkpointAndStop()
      let report = try #require(Files.bytes("\(victim.folder)/report"))
      let run = try await workspace.torpor(["restore", image, "--detach"], environment: ["TORPOR_FAULT": point])
      #expect(run.status == .signal(SIGKILL), "\(run)")
      let left = await Reaper.waitUntilGone(pids)
      #expect(left.isEmpty, "processes \(left) were left behind when torpor died at \(point)")
      if point == "restore.releasing" {
        // Half of the job was running already, and may have seen the other half die before it was ended itself.
        try Files.write("\(victim.folder)/report", report)
      } else {
        #expect(Files.bytes("\(victim.folder)/report") == report, "the job has run before it was complete")
      }
      try await victim.restore(image)
      await victim.expectUnharmed("after a restore that followed a failed one", sourceLocation: #_sourceLocation)
      try await victim.finish()
    }
  }

  @Test(arguments: [["tasks", "tree"], ["unixsockets"]])
  func aJobIsHarmedWhenTorporDiesAtAnyMoment(_ job: [String]) async throws {
    try await withWorkspace { workspace in
      let victim = try await Victim.start(job[0], Array(job.dropFirst()), in: workspace)
      for _ in 0..<30 {
        let image = workspace.fresh("image")
        _ = try await workspace.torpor(
          ["checkpoint", "\(victim.pid)", "--output", image], killedAfter: .microseconds(.random(in: 0...60_000)))
        let disturbed = await eventually(within: .seconds(3)) { Processes.disturbances(victim.pids).isEmpty }
        #expect(disturbed, "\(Processes.disturbances(victim.pids))")
        Files.remove(image)
      }
      await victim.expectUnharmed("after torpor was killed 30 times", sourceLocation: #_sourceLocation)
      try await victim.travel()
      try await victim.finish()
    }
  }

  @Test(arguments: [["tasks", "tree"], ["unixsockets"]])
  func processesAreLeftBehindWhenTorporDiesAtAnyMomentOfARestore(_ job: [String]) async throws {
    try await withWorkspace { workspace in
      let victim = try await Victim.start(job[0], Array(job.dropFirst()), in: workspace)
      let pids = victim.pids
      let image = try await victim.checkpointAndStop()
      let report = try #require(Files.bytes("\(victim.folder)/report"))
      for _ in 0..<30 {
        let status = try await workspace.torpor(
          ["restore", image, "--detach"], killedAfter: .microseconds(.random(in: 0...40_000)))
        if status == .code(0) {
          // It was quicker: all of the job is there.
          #expect(Processes.disturbances(pids).isEmpty)
          try await victim.end()
        }
        var left = await Reaper.waitUntilGone(pids, within: .seconds(2))
        if left.count == pids.count, Processes.disturbances(pids).isEmpty {
          // It was done, and died on its way out: the job is whole, and lives.
          let late = await victim.countsOn()
          #expect(late.isEmpty, "\(late)")
          try await victim.end()
          left = []
        }
        try #require(left.isEmpty, "processes \(left) were left behind")
        // What was killed half-way through letting go has run for a moment, and may have seen the rest of it end.
        try Files.write("\(victim.folder)/report", report)
      }
      try await victim.restore(image)
      try await victim.finish()
    }
  }
}

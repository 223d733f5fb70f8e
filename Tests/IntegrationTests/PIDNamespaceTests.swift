import Glibc
import Testing

/// A process ID that somebody else has does not stand in the way of a restore.
@Suite(.enabled(if: Host.isRoot, "making PID namespaces takes root")) struct PIDNamespaces {
  private func restoredPID(_ run: TorporRun) throws -> pid_t {
    try #require(run.succeeded, "\(run)")
    return pid_t(try run.json()["pid"] as? Int ?? 0)
  }

  @Test func aJobWhoseIDsAreTakenCannotComeBack() async throws {
    try await withWorkspace { workspace in
      let victim = try await Victim.start("tasks", ["tree"], in: workspace)
      let original = victim.pids
      var image = try await victim.checkpoint()
      // It keeps its IDs, and does nothing.
      for pid in original { kill(pid, SIGSTOP) }
      for generation in 1...2 {
        let pid = try restoredPID(try await workspace.torpor(["restore", image, "--detach", "--json"]))
        workspace.own([pid])
        #expect(pid != victim.pid)
        #expect(Processes.status("/proc/\(pid)/status")["NSpid"]?.hasSuffix(" \(victim.pid)") == true)
        let late = await victim.countsOn()
        #expect(late.isEmpty && victim.findings.isEmpty, "generation \(generation): \(late) \(victim.explanation)")
        image = workspace.fresh("image")
        let run = try await workspace.torpor(["checkpoint", "\(pid)", "--stop", "--output", image])
        try #require(run.succeeded, "\(run)")
        #expect(await Reaper.waitUntilGone([pid]).isEmpty)
      }
      let pid = try restoredPID(try await workspace.torpor(["restore", image, "--detach", "--json"]))
      try Files.write("\(victim.folder)/finish", text: "")
      #expect(await eventually { victim.report.last?.hasPrefix("DONE") == true })
      #expect(victim.report.last == "DONE ok" && victim.findings.isEmpty, "\(victim.explanation)")
      #expect(await eventually { !Processes.exists(pid) || Processes.state(pid) == "Z" })
      for pid in original { kill(pid, SIGKILL) }
      #expect(await Reaper.waitUntilGone(original).isEmpty)
    }
  }

  @Test(arguments: FaultPoints.restore.filter { $0 != "restore.releasing" })
  func processesAreLeftBehindWhenTorporDiesInANamespace(_ point: String) async throws {
    try await withWorkspace { workspace in
      let victim = try await Victim.start("tasks", ["tree"], in: workspace)
      let image = try await victim.checkpointAndStop()
      let run = try await workspace.torpor(
        ["restore", image, "--detach", "--pid-namespace", "always"], environment: ["TORPOR_FAULT": point])
      #expect(!run.succeeded, "\(run)")
      #expect(await eventually { Processes.carrying(workspace.mark).isEmpty }, "\(Processes.carrying(workspace.mark))")
      try await victim.restore(image)
      try await victim.finish()
    }
  }

  @Test func theExitStatusOfAJobInANamespaceIsLost() async throws {
    try await withWorkspace { workspace in
      let victim = try Victim(
        "bash", ["-c", "trap 'echo told; exit 9' USR1; for n in $(seq 1 2000); do echo $n > number; sleep 0.02; done"], in: workspace)
      try #require(await eventually { Files.exists("\(victim.folder)/number") })
      let image = try await victim.checkpointAndStop(Expectations(observe: false))
      let log = workspace.fresh("log")
      let torpor = try workspace.start(
        Launch(Host.torpor, ["restore", image, "--pid-namespace", "always"], folder: workspace.path, output: log, errors: log))
      let before = Files.text("\(victim.folder)/number")
      try #require(await eventually { Files.text("\(victim.folder)/number") != before && Files.size(log) > 0 }, "\(Files.text(log) ?? "")")
      kill(torpor, SIGUSR1)
      let status = await Reaper.wait(for: torpor, within: .seconds(10))
      #expect(status == .code(9), "\(Files.text(log) ?? "")")
      #expect(victim.report.last == "told")
    }
  }
}

import Glibc
import Testing

/// A job that is restored in the foreground stands where a command would: signals reach it, its end is torpor's end.
@Suite struct InTheForeground {
  private static let script = """
    trap 'echo interrupted; exit 7' INT; trap 'echo told' USR1
    for n in $(seq 1 2000); do echo $n > number; sleep 0.02; done
    """

  /// A shell that has been saved and ended, restored by a torpor that waits for it.
  private func restored(_ workspace: Workspace) async throws -> (victim: Victim, torpor: pid_t, errors: String) {
    let victim = try Victim("bash", ["-c", Self.script], in: workspace)
    try #require(await eventually { Files.exists("\(victim.folder)/number") })
    let image = try await victim.checkpointAndStop(Expectations(observe: false))
    let errors = workspace.fresh("errors")
    let torpor = try workspace.start(Launch(Host.torpor, ["restore", image], folder: workspace.path, output: errors, errors: errors))
    let before = Files.text("\(victim.folder)/number")
    let runs = await eventually { Files.text("\(victim.folder)/number") != before && Processes.parent(victim.pid) == torpor }
    try #require(runs, "the job does not run: \(Files.text(errors) ?? "")")
    return (victim, torpor, errors)
  }

  @Test func theExitStatusOfTheJobIsLost() async throws {
    try await withWorkspace { workspace in
      let (victim, torpor, errors) = try await restored(workspace)
      kill(torpor, SIGUSR1)
      #expect(await eventually { victim.report.contains("told") }, "SIGUSR1 did not reach the job: \(Files.text(errors) ?? "")")
      kill(torpor, SIGINT)
      let status = await Reaper.wait(for: torpor, within: .seconds(10))
      #expect(status == .code(7), "\(Files.text(errors) ?? "")")
      #expect(victim.report.last == "interrupted")
    }
  }

  @Test func aJobThatWasKilledLooksLikeOneThatWasDone() async throws {
    try await withWorkspace { workspace in
      let (victim, torpor, errors) = try await restored(workspace)
      kill(victim.pid, SIGKILL)
      let status = await Reaper.wait(for: torpor, within: .seconds(10))
      #expect(status == .code(128 + SIGKILL), "\(Files.text(errors) ?? "")")
    }
  }
}

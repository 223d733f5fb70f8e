import Glibc
import Testing

/// What a user loses if memory is saved too slowly, too greedily, or in the wrong order.
@Suite struct BigMemory {
  @Test func pagesThatLieScatteredComeBackInEachOthersPlaces() async throws {
    try await withWorkspace { workspace in
      // 5,462 runs of one page each.
      let victim = try await Victim.start("scattered", ["64", "3"], in: workspace)
      try await victim.travel(generations: 2)
      try await victim.finish()
    }
  }

  @Test func savingABigJobTakesAsMuchMemoryAgain() async throws {
    try await withWorkspace { workspace in
      let victim = try await Victim.start("scattered", ["512", "1"], in: workspace)
      let image = workspace.fresh("image")
      let limit = 64 << 10
      for arguments in [
        ["checkpoint", "\(victim.pid)", "--output", workspace.fresh("image")],
        ["checkpoint", "\(victim.pid)", "--stop", "--output", image], ["restore", image, "--detach"],
      ] {
        let peak = try await peakKiB(of: arguments, workspace)
        #expect(peak < limit, "torpor \(arguments[0]) took \(peak) KiB for a job of 512 MiB")
        if arguments.contains("--stop") { #expect(await Reaper.waitUntilGone([victim.pid]).isEmpty) }
      }
      try await victim.finish()
    }
  }

  /// The largest resident size of a run of torpor, and of what it started and waited for.
  private func peakKiB(of arguments: [String], _ workspace: Workspace) async throws -> Int {
    let script =
      "import resource, subprocess, sys; code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL); "
      + "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)"
    let (status, output, errors) = try await workspace.run("python3", ["-c", script, Host.torpor] + arguments)
    try #require(status == .code(0), "torpor \(arguments): \(status) \(errors)")
    return Int(output.trimmingSpaces()) ?? .max
  }
}

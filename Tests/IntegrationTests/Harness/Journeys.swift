import Glibc
import Testing

/// What a journey may take for granted about a job.
struct Expectations {
  /// Compare everything that can be seen from outside (not for jobs whose picture changes all the time).
  var observe = true
  var stopped: Set<pid_t> = []
  var zombies: Set<pid_t> = []
  /// Progress files that stand still.
  var standing: Set<String> = []
  /// Other programs' own progress, instead of counting.
  var counts = true
  var limit: Duration = .seconds(60)
}

extension Workspace {
  /// The processes that an image holds; from now on this test cares for them.
  func processes(in image: String) async throws -> [pid_t] {
    let shown = try await torpor(["show", image, "--json"])
    let saved = (try shown.json()["processes"] as? [[String: Any]] ?? []).compactMap { ($0["pid"] as? Int).map { pid_t($0) } }
    own(saved)
    return saved
  }
}

extension Victim {
  /// The job is unharmed: not stopped, not traced, counting on, with nothing to complain about.
  func expectUnharmed(_ what: String, _ expectations: Expectations = Expectations(), sourceLocation: SourceLocation) async {
    // A job that cannot be compared from outside has processes that come and go: its root stands for it.
    let watched = expectations.observe ? pids : [pid]
    _ = await eventually(within: .seconds(3)) {
      Processes.disturbances(watched, stopped: expectations.stopped, zombies: expectations.zombies).isEmpty
    }
    let disturbed = Processes.disturbances(watched, stopped: expectations.stopped, zombies: expectations.zombies)
    #expect(disturbed.isEmpty, "\(what): \(disturbed.joined(separator: ", "))", sourceLocation: sourceLocation)
    if expectations.counts {
      let late = await countsOn(except: expectations.standing)
      #expect(late.isEmpty, "\(what): \(late.joined(separator: ", ")). \(explanation)", sourceLocation: sourceLocation)
    }
    #expect(findings.isEmpty, "\(what): \(explanation)", sourceLocation: sourceLocation)
  }

  private func expectSame(_ what: String, _ before: Observation, _ pids: [pid_t], sourceLocation: SourceLocation) {
    let differences = Observation.differences(before, Observation(pids))
    #expect(
      differences.isEmpty, "\(what), \(differences.count) difference(s):\n\(differences.prefix(25).joined(separator: "\n"))",
      sourceLocation: sourceLocation)
  }

  /// A checkpoint that leaves the job running. Returns the image folder.
  @discardableResult
  func checkpoint(_ expectations: Expectations = Expectations(), sourceLocation: SourceLocation = #_sourceLocation) async throws -> String {
    let image = workspace.fresh("image")
    let pids = pids
    let before = expectations.observe ? Observation(pids) : nil
    let run = try await workspace.torpor(["checkpoint", "\(pid)", "--output", image], limit: expectations.limit)
    try #require(run.succeeded, "\(run)", sourceLocation: sourceLocation)
    #expect(run.output.contains(image), "the path of the image is not printed: \(run)", sourceLocation: sourceLocation)
    try expectImage(image, sourceLocation: sourceLocation)
    if let before { expectSame("after a checkpoint that leaves the job running", before, pids, sourceLocation: sourceLocation) }
    await expectUnharmed("after a checkpoint that leaves the job running", expectations, sourceLocation: sourceLocation)
    return image
  }

  /// A checkpoint that ends the job. Returns the image folder; every PID of the job is free afterwards.
  func checkpointAndStop(_ expectations: Expectations = Expectations(), sourceLocation: SourceLocation = #_sourceLocation) async throws -> String {
    let image = workspace.fresh("image")
    let pids = pids
    let run = try await workspace.torpor(["checkpoint", "\(pid)", "--stop", "--output", image], limit: expectations.limit)
    try #require(run.succeeded, "\(run)", sourceLocation: sourceLocation)
    try expectImage(image, sourceLocation: sourceLocation)
    // The image may hold processes that were born after we looked.
    let saved = try await workspace.processes(in: image)
    #expect(saved.contains(pid), "\(saved)", sourceLocation: sourceLocation)
    let left = await Reaper.waitUntilGone(Array(Set(pids).union(saved)))
    try #require(left.isEmpty, "processes \(left) are still there after checkpoint --stop", sourceLocation: sourceLocation)
    return image
  }

  func expectImage(_ image: String, sourceLocation: SourceLocation) throws {
    try #require(Files.isFolder(image), "there is no image \(image)", sourceLocation: sourceLocation)
    for name in ["torpor.json", "inventory.img", "pstree.img"] {
      #expect(Files.size("\(image)/\(name)") > 0, "the image has no \(name)", sourceLocation: sourceLocation)
    }
    let parent = String(image[..<(image.lastIndex(of: "/") ?? image.startIndex)])
    let name = image.split(separator: "/").last.map(String.init) ?? ""
    let beside = Files.names(in: parent).filter { $0 != name && $0.contains(name) && !$0.dropFirst(name.count).allSatisfy(\.isNumber) }
    #expect(beside.isEmpty, "left beside the image: \(beside)", sourceLocation: sourceLocation)
  }

  /// Restores in the background; the job's PIDs are this test's again.
  func restore(_ image: String, _ expectations: Expectations = Expectations(), sourceLocation: SourceLocation = #_sourceLocation) async throws {
    // Every ID must be free again: a namespace would only hide that something of the job was left behind.
    let run = try await workspace.torpor(["restore", image, "--detach", "--pid-namespace", "never"], limit: expectations.limit)
    try #require(run.succeeded, "\(run)", sourceLocation: sourceLocation)
    #expect(
      run.output.split(whereSeparator: \.isWhitespace).contains("\(pid)"), "the root PID \(pid) is not printed: \(run)",
      sourceLocation: sourceLocation)
    try #require(Processes.exists(pid), "no process \(pid) after the restore. \(run)", sourceLocation: sourceLocation)
  }

  /// The whole way: checkpoint and go on; checkpoint and stop, restore, compare, as often as wanted. The job runs at the end.
  func travel(
    generations: Int = 1, leaveRunning: Bool = true, _ expectations: Expectations = Expectations(),
    sourceLocation: SourceLocation = #_sourceLocation
  ) async throws {
    if leaveRunning { try await checkpoint(expectations, sourceLocation: sourceLocation) }
    for generation in 1...generations {
      let pids = pids
      let before = expectations.observe ? Observation(pids) : nil
      let image = try await checkpointAndStop(expectations, sourceLocation: sourceLocation)
      let counts = progress
      try await restore(image, expectations, sourceLocation: sourceLocation)
      let what = generations == 1 ? "after the restore" : "after restore \(generation)"
      if let before { expectSame(what, before, pids, sourceLocation: sourceLocation) }
      if expectations.counts {
        let late = await countsOn(except: expectations.standing, from: counts)
        #expect(late.isEmpty, "\(what): \(late.joined(separator: ", ")). \(explanation)", sourceLocation: sourceLocation)
      }
      await expectUnharmed(what, expectations, sourceLocation: sourceLocation)
      Files.remove(image)
    }
  }

  /// Checkpoint, let it run on, kill it, and go back to the image.
  func checkpointKillRestore(_ expectations: Expectations = Expectations(), sourceLocation: SourceLocation = #_sourceLocation) async throws {
    let pids = pids
    let before = expectations.observe ? Observation(pids) : nil
    let image = try await checkpoint(expectations, sourceLocation: sourceLocation)
    try await end()
    try await restore(image, expectations, sourceLocation: sourceLocation)
    if let before { expectSame("after the restore", before, pids, sourceLocation: sourceLocation) }
    await expectUnharmed("after the restore", expectations, sourceLocation: sourceLocation)
  }
}

import Glibc
import Testing

/// A program that waits in a system call must not see that it was saved: no EINTR, no early return.
@Suite struct Transparency {
  /// The calls of the matrix, from the victim's own list: name and what ends the wait.
  static let calls: [(name: String, end: String)] = {
    guard let folder = try? Host.victims.get() else { return [] }
    let log = "/tmp/torpor-calls-\(getpid()).log"
    defer { unlink(log) }
    guard let pid = try? Launch("\(folder)/syscalls", ["--list"], output: log).start(), waitBlocking(pid) == .code(0) else {
      return []
    }
    return (Files.text(log) ?? "").split(separator: "\n").map { $0.split(separator: " ").map(String.init) }
      .filter { $0.count == 2 }.map { ($0[0], $0[1]) }
  }()

  /// Calls on objects that cannot be restored yet: a checkpoint says so, and the wait goes on undisturbed.
  static let refused: Set<String> = [
    "io_getevents", "io_getevents-time",
  ]
  /// The objects live in the kernel outside of the job: the wait survives a checkpoint, and a restore finds the object.
  static let shared: Set<String> = ["msgrcv", "semop", "semtimedop-time"]

  @Test func theListOfCallsIsThere() { #expect(Self.calls.count >= 30) }

  @Test(arguments: calls.map(\.name))
  func aCheckpointDisturbsAWait(_ name: String) async throws {
    try await withWorkspace { workspace in
      let victim = try await Victim.start("syscalls", [name, "1.5"], in: workspace)
      try await waitInCall(victim)
      let image = workspace.fresh("image")
      let run = try await workspace.torpor(["checkpoint", "\(victim.pid)", "--output", image])
      if Self.refused.contains(name) {
        #expect(run.status == .code(3), "\(run)")
        #expect(run.message.contains("\(victim.pid)") && run.message.contains(";"), "\(run)")
      } else {
        #expect(run.succeeded, "\(run)")
      }
      try await end(victim, name)
    }
  }

  @Test(arguments: calls.map(\.name).filter { !refused.contains($0) })
  func aRestoreDisturbsAWait(_ name: String) async throws {
    try await withWorkspace { workspace in
      let victim = try await Victim.start("syscalls", [name, "1.5"], in: workspace)
      try await waitInCall(victim)
      let image = try await victim.checkpointAndStop(Expectations(observe: false, counts: false))
      try await victim.restore(image, Expectations(observe: false, counts: false))
      try await end(victim, name)
    }
  }

  /// Waits until the thread is inside of its call.
  private func waitInCall(_ victim: Victim) async throws {
    let words = victim.ready
    try #require(words.count >= 3)
    let inside = await eventually {
      guard let number = Processes.systemCall(victim.pid, pid_t(words[1])) else { return false }
      // The kernel goes on with some calls by restart_syscall(2), number 219.
      return words.dropFirst(2).contains(number) || number == 219
    }
    #expect(inside, "the victim does not wait where it should. \(victim.explanation)")
  }

  /// Ends the wait as a user would, and expects the right result.
  private func end(_ victim: Victim, _ name: String) async throws {
    let disturbances = Processes.disturbances([victim.pid])
    #expect(disturbances.isEmpty, "\(disturbances)")
    let ending = Self.calls.first { $0.name == name }?.end
    // A thread that has just been let go is on its way into its call again.
    if ending == "signal" || ending == "poke" { try await waitInCall(victim) }
    switch ending {
    case "signal": kill(victim.pid, SIGUSR2)
    case "poke": try Files.write("\(victim.folder)/finish", text: "")
    default: break
    }
    let status = await Reaper.wait(for: victim.pid, within: .seconds(15))
    #expect(victim.findings.isEmpty && victim.report.last == "DONE ok", "\(victim.explanation)")
    #expect(status == .code(0) || status == .code(-1), "\(status). \(victim.explanation)")
  }
}

import Glibc
import Synchronization
import Testing

/// A running job under test: one of the C victims, which report, or any other program.
final class Victim: Sendable {
  let workspace: Workspace
  /// Where it writes: `report` (its stdout), `errors`, `progress*`, and where it looks for `finish`.
  let folder: String
  let pid: pid_t

  /// Starts one of the programs of Tests/Victims and waits until it is ready.
  static func start(
    _ name: String, _ arguments: [String] = [], in workspace: Workspace, ownSession: Bool = true, environment: [String: String] = [:]
  ) async throws -> Victim {
    let program = "\(try Host.victims.get())/\(name)"
    let victim = try Victim(program, arguments, in: workspace, ownSession: ownSession, environment: environment)
    try await victim.waitUntilReady()
    return victim
  }

  /// Starts any program; its stdout is `report`.
  init(
    _ program: String, _ arguments: [String], in workspace: Workspace, ownSession: Bool = true, environment: [String: String] = [:],
    workingFolder: String? = nil
  ) throws {
    self.workspace = workspace
    folder = workspace.fresh("job")
    try Files.makeFolder(folder, mode: 0o777)
    var launch = Launch(
      program, arguments, environment: environment, folder: workingFolder ?? folder, output: "\(folder)/report", errors: "\(folder)/errors")
    launch.environment["VICTIM_DIR"] = folder
    launch.ownSession = ownSession
    pid = try workspace.start(launch)
  }

  /// The job's processes that there are now; from now on this test cares for them.
  var pids: [pid_t] {
    let pids = Processes.tree(pid)
    workspace.own(pids)
    return pids
  }

  var report: [String] { (Files.text("\(folder)/report") ?? "").split(separator: "\n").map(String.init) }
  var findings: [String] { report.filter { $0.hasPrefix("FAIL") || $0.hasPrefix("BROKEN") } }
  /// The words behind READY.
  var ready: [Int] { report.first { $0.hasPrefix("READY") }?.split(separator: " ").dropFirst().compactMap { Int($0) } ?? [] }

  func waitUntilReady() async throws {
    let there = await eventually(within: .seconds(20)) {
      report.contains { $0.hasPrefix("READY") } || (Processes.state(pid) == "Z" && Processes.threads(pid).count <= 1)
    }
    for line in report where line.hasPrefix("IPC ") { workspace.ownSystemV(line.split(separator: " ").dropFirst().map(String.init)) }
    guard there, report.contains(where: { $0.hasPrefix("READY") }) else {
      throw TestFailure("the victim did not get ready: \(report) \(Files.text("\(folder)/errors") ?? "")")
    }
  }

  /// The counters of all its processes.
  var progress: [String: Int] {
    var counts: [String: Int] = [:]
    for name in Files.names(in: folder) where name.hasPrefix("progress") {
      counts[name] = Files.text("\(folder)/\(name)").flatMap { Int($0.trimmingSpaces()) } ?? 0
    }
    return counts
  }

  /// Every counter goes on from where it is (not from further back), except those that stand still.
  func countsOn(except standing: Set<String> = [], from start: [String: Int]? = nil) async -> [String] {
    let before = start ?? progress
    var late: [String] = []
    _ = await eventually(within: .seconds(20)) {
      let now = progress
      late = before.filter { !standing.contains($0.key) && (now[$0.key] ?? 0) < $0.value + 2 }
        .map { "\($0.key) does not count on: was \($0.value), is \(now[$0.key] ?? 0)" }
      return late.isEmpty
    }
    return late
  }

  /// Has it do its final checks, and expects them to be good.
  func finish(within limit: Duration = .seconds(30), sourceLocation: SourceLocation = #_sourceLocation) async throws {
    let pids = pids
    try Files.write("\(folder)/finish", text: "")
    let status = await Reaper.wait(for: pid, within: limit)
    #expect(findings.isEmpty, "\(explanation)", sourceLocation: sourceLocation)
    #expect(report.last == "DONE ok", "\(explanation)", sourceLocation: sourceLocation)
    // Restored in the foreground it is torpor's child, and its status goes there.
    #expect(status == .code(0) || status == .code(-1), "the job ended with \(status). \(explanation)", sourceLocation: sourceLocation)
    let left = await Reaper.waitUntilGone(pids)
    #expect(left.isEmpty, "processes \(left) of the job did not end", sourceLocation: sourceLocation)
  }

  /// Ends all of it now, from outside. Held first, so that none of it sees another end.
  func end() async throws {
    let pids = pids
    for pid in pids { kill(pid, SIGSTOP) }
    for pid in pids { kill(pid, SIGKILL) }
    let left = await Reaper.waitUntilGone(pids)
    if !left.isEmpty { throw TestFailure("processes \(left) could not be ended") }
  }

  var explanation: String {
    let errors = Files.text("\(folder)/errors") ?? ""
    return "report of the job: \(report.suffix(45).joined(separator: " | ")) \(errors.suffix(1000))"
  }
}

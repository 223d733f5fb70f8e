import Glibc
import Synchronization
import Testing

/// A folder of its own for one test, and everything that the test started. At the end all of it is killed, reaped and removed.
final class Workspace: Sendable {
  let path: String
  private let started = Mutex<Set<pid_t>>([])
  private let systemV = Mutex<[[String]]>([])
  private let counter = Mutex(0)

  fileprivate init() throws {
    let base = getenv("TMPDIR").map { String(cString: $0) } ?? "/tmp"
    guard let made = mkdtemp(strdup("\(base)/torpor-test-XXXXXX")) else { throw TestFailure("mkdtemp: \(errorText())") }
    path = String(cString: made)
    free(made)
    chmod(path, 0o755) // some jobs are another user's
  }

  func file(_ name: String) -> String { "\(path)/\(name)" }

  func fresh(_ name: String) -> String {
    file("\(name)-\(counter.withLock { $0 += 1; return $0 })")
  }

  /// PIDs that belong to this test, to be killed at its end if they still are ours then.
  func own(_ pids: some Sequence<pid_t>) {
    let pids = Array(pids)
    started.withLock { $0.formUnion(pids) }
    Reaper.register(pids)
  }

  func ownSystemV(_ arguments: [String]) { systemV.withLock { $0.append(arguments) } }

  /// Every process of this workspace carries this in its environment, and its descendants and restored ones do too.
  var mark: String { "VICTIM_WORKSPACE=\(path)" }

  func start(_ launch: Launch) throws -> pid_t {
    var launch = launch
    launch.environment["VICTIM_WORKSPACE"] = path
    let pid = try launch.start()
    own([pid])
    return pid
  }

  /// Runs a program to its end.
  @discardableResult
  func run(
    _ program: String, _ arguments: [String], environment: [String: String] = [:], folder: String? = nil, limit: Duration = .seconds(60)
  ) async throws -> (status: ExitStatus, output: String, errors: String) {
    let output = fresh("output")
    let errors = fresh("errors")
    let pid = try start(
      Launch(program, arguments, environment: environment, folder: folder ?? path, output: output, errors: errors))
    var status = await Reaper.wait(for: pid, within: limit)
    if status == .overtime {
      kill(pid, SIGKILL)
      _ = await Reaper.wait(for: pid, within: .seconds(5))
      status = .overtime
    }
    return (status, Files.text(output) ?? "", Files.text(errors) ?? "")
  }

  fileprivate func close() async {
    // Twice: what is being born while we look is found the second time.
    var mine = started.withLock { $0 }
    for _ in 0..<2 {
      // Some programs write over their environment: children of ours are known anyway.
      let marked = Set(Processes.carrying(mark).filter { $0 != getpid() } + mine.filter { Processes.parent($0) == getpid() })
      for pid in marked { kill(pid, SIGKILL) }
      mine.formUnion(marked)
      let left = await Reaper.waitUntilGone(mine.filter { Processes.state($0) == "Z" || marked.contains($0) }, within: .seconds(5))
      if !left.isEmpty { Issue.record("the test could not get rid of processes \(left)") }
    }
    Reaper.forget(mine)
    Reaper.sweep()
    for arguments in systemV.withLock({ $0 }) {
      if let pid = try? Launch("ipcrm", arguments).start() { _ = await Reaper.wait(for: pid, within: .seconds(5)) }
    }
    if getenv("TORPOR_TEST_KEEP") == nil { Files.remove(path) }
  }
}

/// One test with a folder of its own. Waits until there is room on the machine.
func withWorkspace(_ body: (Workspace) async throws -> Void) async throws {
  _ = Host.prepared
  await Host.gate.enter()
  do {
    let workspace = try Workspace()
    do {
      try await body(workspace)
      await workspace.close()
    } catch {
      await workspace.close()
      throw error
    }
    await Host.gate.leave()
  } catch {
    await Host.gate.leave()
    throw error
  }
}

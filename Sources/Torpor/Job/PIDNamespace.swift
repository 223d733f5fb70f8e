import CLinux
import Linux
import SystemPackage
import Synchronization
import Tracing

/// Jobs in a PID namespace of their own, for the case that somebody else has their process IDs. pid_namespaces(7)
///
/// The namespace has an init of ours, which reaps orphans, passes signals on to the job's root, and ends when all in it have
/// ended. With it comes a mount namespace, for a /proc that shows the same.
enum PIDNamespace {
  // MARK: Restore

  /// Has `restore` done inside of a new namespace.
  ///
  /// - Parameters:
  ///   - ids: the process and thread IDs of the job.
  ///   - restore: restores the job, detached.
  static func restore(
    _ ids: [ProcessID], root: ProcessID, _ path: String, _ restore: () throws(Failure) -> RestoredJob
  ) throws(Failure) -> RestoredJob {
    let what = "Cannot restore \(path)"
    guard ids.min() ?? 0 > 1, let next = freeStretch(ids) else {
      throw Failure(
        .cannotRestore, what, why: "its process IDs leave no room for torpor beside it in a PID namespace",
        advice: "free the process IDs that are taken")
    }
    let errand = try Errand()
    let initPID: ProcessID
    do throws(Errno) {
      initPID = try cloneProcess(nil, flags: UInt64(CLONE_NEWPID | CLONE_NEWNS)) {
        Errand.dieWithParent()
        NamespaceInit.run(root: root, errand) {
          errand.perform { () throws(Failure) in
            try prepare(next, what)
            let job = try restore()
            return [String(job.processes), String(job.seconds)]
          }
        }
      }
    } catch {
      throw Failure("\(what): a PID namespace cannot be made", error, advice: "run torpor as root, or free the process IDs")
    }
    errand.closeAnswering()
    do throws(Failure) {
      let fields = try errand.result(of: what)
      guard fields.count == 2, errand.laterNumber() == 0, let outside = outsidePID(of: root, childOf: initPID) else {
        throw Failure(what, why: "the job has ended at once")
      }
      var job = RestoredJob(rootPID: outside, processes: Int(fields[0]) ?? 0, seconds: Double(fields[1]) ?? 0)
      job.namespace = NamespacedJob(rootPID: root, errand)
      return job
    } catch {
      waitpid(initPID, nil, 0)
      throw error
    }
  }

  /// A number from which on many are free, for torpor's own processes in the namespace.
  static func freeStretch(_ ids: [ProcessID], limit: ProcessID = 32768) -> ProcessID? {
    let room: ProcessID = 300
    let taken = [1] + ids.sorted() + [limit]
    for (before, after) in zip(taken, taken.dropFirst()).reversed() where after - before > room { return before + 1 }
    return nil
  }

  /// What the namespace needs before a job can be built in it: a /proc of its own, and process IDs away from the job's.
  private static func prepare(_ next: ProcessID, _ what: String) throws(Failure) {
    try attempt("\(what): the PID namespace cannot be prepared") { () throws(Errno) in
      let file = try Descriptor.open("/proc/sys/kernel/ns_last_pid", O_WRONLY)
      try [UInt8]("\(next)".utf8).withBytes { bytes throws(Errno) in try file.write(bytes) }
    }
  }

  private static func outsidePID(of inside: ProcessID, childOf parent: ProcessID) -> ProcessID? {
    guard let proc = try? ProcDirectory(parent), let text = try? proc.read("task/\(parent)/children") else { return nil }
    return String(decoding: text, as: UTF8.self).split(separator: " ").compactMap { ProcessID($0) }.first { child in
      guard let proc = try? ProcDirectory(child), let status = try? TaskStatus(of: proc) else { return false }
      return status.namespacePIDs.last == inside
    }
  }

  // MARK: Checkpoint

  /// Whether a process lives in a PID namespace below ours, with no other difference than the mounts that go with it.
  ///
  /// - Returns: its process ID there; nil where it lives in ours, or in more namespaces that are not ours.
  static func insidePID(of pid: ProcessID) -> ProcessID? {
    guard let proc = try? ProcDirectory(pid), isDifferent("pid", proc), let status = try? TaskStatus(of: proc),
      status.namespacePIDs.count > 1,
      ["net", "ipc", "uts", "user", "cgroup", "time"].allSatisfy({ !isDifferent($0, proc) })
    else { return nil }
    return status.namespacePIDs.last
  }

  private static func isDifferent(_ name: String, _ proc: borrowing ProcDirectory) -> Bool {
    (try? proc.link("ns/\(name)")) != (try? readLink("/proc/self/ns/\(name)"))
  }

  /// Has `work` done inside of the namespaces of `pid`.
  static func enter(_ pid: ProcessID, _ what: String, _ work: () throws(Failure) -> [String]) throws(Failure) -> [String] {
    let errand = try Errand()
    let here = (try? readLink("/proc/self/cwd")) ?? "/"
    let child = try attempt(what) { () throws(Errno) in
      let proc = try ProcDirectory(pid)
      let namespaces = [try proc.open("ns/pid").release(), try proc.open("ns/mnt").release()]
      defer { for namespace in namespaces { close(namespace) } }
      return try cloneProcess(nil) {
        Errand.dieWithParent()
        let isInside = namespaces.allSatisfy { (try? systemCall(Int32(SYS_setns), Int($0), 0)) != nil }
        guard isInside, chdir(here) == 0 else { Errand.exit(1) }
        // Only children are born into another PID namespace.
        let worker = try? cloneProcess(nil) {
          Errand.dieWithParent()
          Errand.exit(errand.perform(work) ? 0 : 1)
        }
        if let worker { waitpid(worker, nil, 0) }
        Errand.exit(0)
      }
    }
    errand.closeAnswering()
    defer { waitpid(child, nil, 0) }
    return try errand.result(of: what)
  }
}

/// The first process of a PID namespace.
private enum NamespaceInit {
  private static let root = Atomic<Int32>(0)
  /// The descriptor that it keeps of the errand.
  private static let answering: Int32 = 3

  private static func answer(_ number: Int32) {
    var number = number
    _ = write(answering, &number, MemoryLayout<Int32>.size)
  }

  /// Its whole life: has the job restored, then waits for everybody in the namespace.
  static func run(root: ProcessID, _ errand: Errand, _ restore: () -> Bool) {
    mountProc()
    let worker = try? cloneProcess(nil) { Errand.exit(restore() ? 0 : 1) }
    guard let worker else { Errand.exit(1) }
    var status: Int32 = 0
    waitpid(worker, &status, 0)
    guard status == 0 else { Errand.exit(1) }
    Errand.dieWithParent(false)
    leave(keeping: errand.answering)
    passSignals(to: root)
    // From here on torpor may end.
    answer(0)
    reap(root)
  }

  /// Mounts of others still come in; what we mount does not get out.
  private static func mountProc() {
    mount(nil, "/", nil, UInt(MS_REC | MS_SLAVE), nil)
    mount("proc", "/proc", "proc", UInt(MS_NOSUID | MS_NODEV | MS_NOEXEC), nil)
  }

  /// Lets go of everything that it had as a part of torpor.
  private static func leave(keeping number: Int32) {
    setsid()
    _ = clinux_syscall(Int(SYS_prctl), 15 /* PR_SET_NAME */, "torpor-init".withCString { Int(bitPattern: strdup($0)) }, 0, 0, 0, 0)
    chdir("/")
    if let null = try? Descriptor.open("/dev/null", O_RDWR) {
      for number in 0..<Int32(3) { dup2(null.number, number) }
    }
    _ = clinux_syscall(Int(SYS_dup3), Int(number), Int(answering), Int(O_CLOEXEC), 0, 0, 0)
    _ = clinux_syscall(Int(SYS_close_range), Int(answering) + 1, Int(UInt32.max), 0, 0, 0, 0)
  }

  private static func passSignals(to pid: ProcessID) {
    root.store(pid, ordering: .relaxed)
    for number in [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2] {
      signal(number) { number in kill(NamespaceInit.root.load(ordering: .relaxed), number) }
    }
  }

  /// Ends when nobody is left, with the exit status of the job's root.
  private static func reap(_ root: ProcessID) {
    var code: Int32 = 0
    while true {
      var status: Int32 = 0
      let pid = waitpid(-1, &status, __WALL)
      if pid == root {
        code = clinux_wifexited(status) != 0 ? clinux_wexitstatus(status) : 128 + clinux_wtermsig(status)
        answer(status)
        close(answering)
      }
      guard pid < 0, clinux_errno() != EINTR else { continue }
      if isAlone() { Errand.exit(code) }
      usleep(20_000)
    }
  }

  /// Whether nobody else is in the namespace. Who has come in from outside is no child of its init, and would be killed at
  /// its end: a torpor that saves the job.
  private static func isAlone() -> Bool {
    guard let directory = try? Descriptor.open("/proc", O_RDONLY | O_DIRECTORY), let pids = try? numericEntries(of: directory)
    else { return true }
    return pids.count <= 1
  }
}

/// A restored job in a PID namespace of its own.
public final class NamespacedJob: @unchecked Sendable {
  // The errand is only waited for, by one caller.
  private let errand: Errand
  /// The process ID of the job's root inside of the namespace.
  public let rootPID: ProcessID

  init(rootPID: ProcessID, _ errand: Errand) {
    self.rootPID = rootPID
    self.errand = errand
  }

  /// Waits until the root of the job ends.
  ///
  /// - Returns: its wait status, see wait(2).
  public func wait() -> Int32 { errand.laterNumber() ?? SIGKILL }
}

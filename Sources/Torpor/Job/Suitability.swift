import CLinux
import Linux
import SystemPackage

/// What must hold of a process before it is touched.
enum Suitability {
  /// - Throws: where `pid` is no process, or one that cannot be checkpointed whatever it holds.
  static func check(_ pid: ProcessID) throws(Failure) {
    guard pid > 0, let proc = try? ProcDirectory(pid), let status = try? TaskStatus(of: proc),
      let statistics = try? TaskStatistics(of: proc)
    else { throw noSuchProcess(pid) }
    let what = "Cannot checkpoint \(pid) (\(statistics.command))"
    guard status.threadGroup == pid else {
      throw Failure(
        .badRequest, what, why: "it is a thread of process \(status.threadGroup)",
        advice: "give that PID: torpor checkpoint \(status.threadGroup)")
    }
    guard statistics.flags & TaskStatistics.kernelThreadFlag == 0 else {
      throw Failure(.badRequest, what, why: "it is a thread of the kernel", advice: "give the PID of a program")
    }
    guard statistics.state != "Z" && statistics.state != "X" || (try? livingThread(of: pid)) != nil else {
      throw Failure(
        .badRequest, what, why: "it has ended already (a zombie)",
        advice: "only its parent, \(status.parent), can still do something about it")
    }
    if pid == getpid() { throw Failure(.badRequest, what, why: "it is torpor itself", advice: "give another PID") }
    guard !isAncestor(pid) else {
      throw Failure(
        .badRequest, what, why: "torpor itself runs below it",
        advice: "run torpor from outside of the job, for instance from another terminal, or with setsid")
    }
    guard status.tracer == 0 else { throw traced(what, by: status.tracer) }
    guard geteuid() == 0 || status.uids.allSatisfy({ $0 == geteuid() }) else {
      throw Failure(
        .noPermission, what, why: "it belongs to user \(status.uids.first ?? 0), and you are user \(geteuid())",
        advice: "run torpor as that user or as root")
    }
  }

  /// A thread that lives on in a process whose first thread has ended; nil where the first lives, or none does.
  static func livingThread(of pid: ProcessID) throws(Errno) -> ProcessID? {
    let proc = try ProcDirectory(pid)
    return try livingThread(of: proc, TaskStatistics(of: proc))
  }

  static func livingThread(of proc: borrowing ProcDirectory, _ statistics: TaskStatistics) throws(Errno) -> ProcessID? {
    guard statistics.state == "Z" else { return nil }
    let pid = proc.pid
    for tid in try proc.numbers(in: "task") where tid != pid {
      if let other = try? TaskStatistics(of: proc, "task/\(tid)/stat"), other.state != "Z", other.state != "X" { return tid }
    }
    return nil
  }

  static func noSuchProcess(_ pid: ProcessID) -> Failure {
    Failure(.badRequest, "Cannot checkpoint \(pid)", why: "there is no such process", advice: "look it up with ps or pgrep")
  }

  private static func traced(_ what: String, by tracer: ProcessID) -> Failure {
    var name = "?"
    if let proc = try? ProcDirectory(tracer), let statistics = try? TaskStatistics(of: proc) { name = statistics.command }
    return Failure(
      .refused, what, why: "it is being traced by \(tracer) (\(name))",
      advice: "end or detach that debugger first")
  }

  /// Why a thread could not be seized.
  static func cannotTrace(_ process: JobProcess, _ tid: ProcessID, _ error: Errno) -> Failure {
    let what = "Cannot checkpoint \(process.label)"
    if let status = try? TaskStatus(of: process.proc, "task/\(tid)/status"), status.tracer != 0,
      status.tracer != getpid()
    {
      return traced(what, by: status.tracer)
    }
    guard error == .notPermitted else {
      return Failure("\(what): thread \(tid) cannot be traced", error)
    }
    return Failure(
      .noPermission, what, why: "the kernel does not allow to trace thread \(tid)",
      advice: "run torpor as root, or see kernel.yama.ptrace_scope in `torpor check`")
  }

  private static func isAncestor(_ pid: ProcessID) -> Bool {
    var current = getppid()
    while current > 0 {
      if current == pid { return true }
      guard let proc = try? ProcDirectory(current), let statistics = try? TaskStatistics(of: proc) else { return false }
      current = statistics.parent
    }
    return false
  }
}

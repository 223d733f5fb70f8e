import CLinux
import Linux
import Logging
import SystemPackage
import Tracing

/// Brings a running job to a standstill, without a signal and without anything it could see.
///
/// Every thread is seized and interrupted. What is found is read again until nothing new appears: a thread that stands
/// cannot make another. A job with a cgroup of its own is frozen by that meanwhile.
struct Freezer {
  let log: Logger
  /// How long a thread may take to stop before it is named in an error.
  static let patience: Double = 10

  private let job = Job()
  private var seen: Set<ProcessID> = []
  /// Threads that were seized while their cgroup was frozen, and will stop now that it is not.
  private var seized: [ProcessID: ThreadStop] = [:]

  init(log: Logger) { self.log = log }

  /// Freezes the process `root`, its threads and all its descendants.
  static func freeze(_ root: ProcessID, log: Logger) throws(Failure) -> Job {
    try Suitability.check(root)
    var freezer = Freezer(log: log)
    let cage = Cage.close(around: root, log)
    if let cage, cage.group.version == .one {
      freezer.seizeAll(in: cage)
      try cage.open()
    }
    try freezer.freeze(root, parent: nil)
    // A process may have been born to a thread that was stopped after its children were read.
    while try freezer.freezeNewChildren() {}
    if let cage, cage.group.version == .two { try cage.open() }
    cage?.dismissKeeper()
    freezer.job.cage = cage
    return freezer.job
  }

  /// Threads in the refrigerator of a cgroup of version 1 come to their stop when they are let out of it.
  private mutating func seizeAll(in cage: Cage) {
    for tid in (try? cage.group.threads()) ?? [] {
      // What cannot be seized is met again, and named then.
      guard let tracee = try? Tracee(seizing: tid) else { continue }
      let thread = ThreadStop(tracee)
      try? thread.interrupt()
      seized[tid] = thread
    }
    FaultPoint.reach(.cageSeized)
  }

  private mutating func freeze(_ pid: ProcessID, parent: JobProcess?) throws(Failure) {
    guard seen.insert(pid).inserted else { return }
    guard var process = try open(pid, parent: parent) else { return }
    guard parent != nil || !process.isZombie else { throw Suitability.noSuchProcess(pid) }
    if !process.isZombie {
      try stopThreads(of: process)
      if process.threads.isEmpty {
        // It has ended meanwhile. Its parent, which stands, has yet to learn how.
        guard let parent else { throw Suitability.noSuchProcess(pid) }
        guard let ended = try awaitEnd(of: pid, parent) else { return }
        process = ended
      }
    }
    job.processes.append(process)
    parent?.children.append(process)
    log.debug("stopped \(process.label) with \(process.threads.count) threads")
    for child in try children(of: process) { try freeze(child, parent: process) }
  }

  /// A process that is ending cannot be seized any more, and is no zombie yet.
  ///
  /// - Returns: the zombie that it has become, or nil where its parent does not want to know.
  private func awaitEnd(of pid: ProcessID, _ parent: JobProcess) throws(Failure) -> JobProcess? {
    let deadline = Clock.monotonic() + Self.patience
    while let process = try open(pid, parent: parent) {
      if process.isZombie { return process }
      guard Clock.monotonic() < deadline else {
        throw Failure(
          .refused, "Cannot checkpoint \(process.label)", why: "it has been ending for \(Int(Self.patience)) seconds",
          advice: "try again when it has ended")
      }
      usleep(100)
    }
    return nil
  }

  private mutating func freezeNewChildren() throws(Failure) -> Bool {
    var found = false
    for process in job.processes where !process.isZombie {
      for child in try children(of: process) where !seen.contains(child) {
        found = true
        try freeze(child, parent: process)
      }
    }
    return found
  }

  /// nil for a process that has ended and been reaped meanwhile.
  private func open(_ pid: ProcessID, parent: JobProcess?) throws(Failure) -> JobProcess? {
    let deadline = Clock.monotonic() + Self.patience
    while true {
      if let process = try tryToOpen(pid, parent: parent) { return process }
      // One that is just ending has no memory any more, and is no zombie yet.
      guard kill(pid, 0) == 0, Clock.monotonic() < deadline else { return nil }
      usleep(100)
    }
  }

  /// nil for a process that has ended, or is about to.
  private func tryToOpen(_ pid: ProcessID, parent: JobProcess?) throws(Failure) -> JobProcess? {
    do throws(Errno) {
      var proc = try ProcDirectory(pid)
      var statistics = try TaskStatistics(of: proc)
      if let witness = try Suitability.livingThread(of: proc, statistics) {
        let name = statistics.command
        proc = try ProcDirectory(witness)
        statistics = try TaskStatistics(of: proc)
        statistics.command = name
      }
      let memory =
        statistics.state == "Z" ? Descriptor(owning: -1) : try proc.open("mem", O_RDWR)
      let handle = try openProcess(proc.pid, isThread: proc.pid != pid)
      // What lives is read when it stands still.
      let status = statistics.state == "Z" ? try TaskStatus(of: proc) : TaskStatus()
      return JobProcess(
        pid: pid, proc: proc, handle: handle, memory: memory, statistics: statistics, status: status, parent: parent)
    } catch .noSuchFileOrDirectory, .noSuchProcess {
      if parent == nil { throw Suitability.noSuchProcess(pid) }
      return nil
    } catch {
      throw Failure(
        "Cannot checkpoint \(pid)", error,
        advice: "run torpor as the user of the job or as root; `torpor check \(pid)` tells more")
    }
  }

  private func children(of process: JobProcess) throws(Failure) -> [ProcessID] {
    var result: [ProcessID] = []
    for thread in process.threads {
      guard let text = try? process.proc.read("task/\(thread.tid)/children") else { continue }
      text.withUnsafeBytes { bytes in
        var scanner = TextScanner(bytes)
        while let child = scanner.decimal() {
          result.append(ProcessID(truncatingIfNeeded: child))
          scanner.skipSpaces()
        }
      }
    }
    return result
  }

  // MARK: Threads

  private mutating func stopThreads(of process: JobProcess) throws(Failure) {
    var known: Set<ProcessID> = []
    while true {
      let tids: [ProcessID]
      do { tids = try process.proc.numbers(in: "task") } catch { return }
      let new = tids.filter { !known.contains($0) }
      if new.isEmpty { break }
      known.formUnion(new)
      try stop(new, of: process)
    }
    // The leader first, whatever its number.
    if let leader = process.threads.firstIndex(where: { $0.tid == process.pid }), leader > 0 {
      process.threads.insert(process.threads.remove(at: leader), at: 0)
    }
  }

  /// Stops one thread after the other. A call that was under way comes out of the interrupt with an EINTR of our making,
  /// which is put right as soon as the thread stands: so few threads as possible are in between at any moment.
  private mutating func stop(_ tids: [ProcessID], of process: JobProcess) throws(Failure) {
    for tid in tids {
      let thread: ThreadStop
      do throws(Errno) {
        if let ready = seized.removeValue(forKey: tid) {
          thread = ready
        } else {
          thread = ThreadStop(try Tracee(seizing: tid))
          FaultPoint.reach(.checkpointSeized)
          try thread.interrupt()
        }
      } catch .noSuchProcess { continue } catch {
        if isDeadThread(tid, of: process) {
          if tid == process.pid { process.threads.append(deadLeader(of: process)) }
          continue
        }
        throw Suitability.cannotTrace(process, tid, error)
      }
      if let stopped = try thread.wait(process, log) { process.threads.append(stopped) }
    }
  }

  private func isDeadThread(_ tid: ProcessID, of process: JobProcess) -> Bool {
    guard let statistics = try? TaskStatistics(of: process.proc, "task/\(tid)/stat") else { return true }
    return statistics.state == "Z" || statistics.state == "X"
  }

  private func deadLeader(of process: JobProcess) -> JobThread {
    let control = ControlledThread(
      process: process.pid, tracee: Tracee(born: process.pid), registers: Registers(), signalMask: 0)
    control.forget()
    return JobThread(tid: process.pid, control: control, isDead: true)
  }
}

/// One thread on its way to a standstill.
private final class ThreadStop {
  private var tracee: Tracee?
  private let tid: ProcessID

  init(_ tracee: consuming Tracee) {
    tid = tracee.tid
    self.tracee = consume tracee
  }

  func interrupt() throws(Errno) {
    switch tracee {
    case .some(let tracee): try tracee.interrupt()
    case .none: break
    }
  }

  /// Waits until the thread stands; nil if it has ended instead.
  func wait(_ process: JobProcess, _ log: Logger) throws(Failure) -> JobThread? {
    var stoppedBy: Int32?
    waiting: while true {
      switch try nextStop(process) {
      case .interrupted(let signal):
        if signal != SIGTRAP { stoppedBy = signal }
        break waiting
      case .signal(let signal):
        // It was about to be given a signal: it takes it first, and stops for us right after.
        try? tracee?.resume(signal: signal)
      case .exited, .killed:
        tracee.take()?.forget()
        return nil
      case .event, .systemCall:
        try? tracee?.resume()
      }
    }
    do throws(Errno) {
      return try stand(process, stoppedBy)
    } catch .noSuchProcess {
      // Killed while it stood.
      tracee.take()?.forget()
      return nil
    } catch {
      throw Failure("Cannot stop thread \(tid) of \(process.label)", error)
    }
  }

  private func stand(_ process: JobProcess, _ stoppedBy: Int32?) throws(Errno) -> JobThread? {
    guard let tracee = tracee.take() else { return nil }
    var registers = try tracee.registers()
    if registers.isInterrupted, try !hasDeliverableSignal(process) {
      // The EINTR is of our making: nobody else shall see it, also if we die now.
      registers.reissueSystemCall()
      try tracee.setRegisters(registers)
    }
    if try abortCriticalSection(tracee, &registers) { try tracee.setRegisters(registers) }
    let control = ControlledThread(
      process: process.pid, tracee: tracee, registers: registers, signalMask: 0)
    control.signalMask = try control.with { tracee throws(Errno) in try tracee.signalMask() }
    control.stoppedBySignal = stoppedBy
    return JobThread(tid: tid, control: control)
  }

  /// Whether a signal waits that the thread would take now: then an EINTR belongs to the program.
  private func hasDeliverableSignal(_ process: JobProcess) throws(Errno) -> Bool {
    let status = try TaskStatus(of: process.proc, "task/\(tid)/status")
    return (status.pendingOfThread | status.pendingOfProcess) & ~status.blocked != 0
  }

  /// A thread inside a restartable sequence is put at the sequence's abort address, as the kernel does when it takes the
  /// CPU away. Otherwise our own calls would end the sequence unseen. (rseq(2), linux/rseq.h)
  private func abortCriticalSection(_ tracee: borrowing Tracee, _ registers: inout Registers) throws(Errno) -> Bool {
    let area = try tracee.restartableSequence()
    guard area.rseq_abi_pointer != 0 else { return false }
    var section: UInt64 = 0
    try withUnsafeMutableBytes(of: &section) { bytes throws(Errno) in
      try readMemory(of: tid, at: area.rseq_abi_pointer + 8, into: bytes)
    }
    guard section != 0 else { return false }
    // struct rseq_cs: version, flags, start_ip, post_commit_offset, abort_ip.
    var words: (UInt64, UInt64, UInt64, UInt64) = (0, 0, 0, 0)
    try withUnsafeMutableBytes(of: &words) { bytes throws(Errno) in
      try readMemory(of: tid, at: section, into: bytes)
    }
    guard registers.programCounter &- words.1 < words.2 else { return false }
    registers.programCounter = words.3
    var none: UInt64 = 0
    try withUnsafeMutableBytes(of: &none) { bytes throws(Errno) in
      try writeMemory(of: tid, at: area.rseq_abi_pointer + 8, from: UnsafeRawBufferPointer(bytes))
    }
    return true
  }

  private func nextStop(_ process: JobProcess) throws(Failure) -> Stop {
    let deadline = Clock.monotonic() + Freezer.patience
    var naps = 0
    while true {
      do throws(Errno) {
        switch tracee {
        case .some(let tracee): if let stop = try tracee.poll() { return stop }
        case .none: return .exited(0)
        }
      } catch .noChildProcess { return .exited(0) } catch {
        throw Failure("Cannot stop thread \(tid) of \(process.label)", error)
      }
      naps += 1
      // Most threads stop within microseconds; giving up the CPU is enough for them.
      if naps < 50 {
        sched_yield()
      } else {
        usleep(naps < 200 ? 50 : 1000)
        if Clock.monotonic() > deadline { throw notStopping(process) }
      }
    }
  }

  private func notStopping(_ process: JobProcess) -> Failure {
    let channel = (try? process.proc.read("task/\(tid)/wchan")).map { String(decoding: $0, as: UTF8.self) } ?? ""
    let state = (try? TaskStatus(of: process.proc, "task/\(tid)/status"))?.state ?? "?"
    let place = channel.isEmpty || channel == "0" ? "" : " in \(channel)"
    return Failure(
      .refused, "Cannot checkpoint \(process.label)",
      why: "thread \(tid) has not stopped for \(Int(Freezer.patience)) seconds; it is in state \(state)\(place)",
      advice: "it waits for a device, a network file system or a child of vfork; try again when that is done")
  }
}

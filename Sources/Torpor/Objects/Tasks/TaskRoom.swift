import CLinux
import Images
import Linux
import SystemPackage
import Tracing

/// What the threads of a process have in common: signal handlers, limits, interval timers, and settings.
enum TaskRoom {
  /// The states of a process in the image.
  enum State {
    static let alive: UInt32 = 1
    static let dead: UInt32 = 2
    static let stopped: UInt32 = 3
  }

  // MARK: Save

  static func save(_ process: JobProcess, _ answers: ProcessAnswers) throws(Failure) -> TaskCoreEntry {
    var entry = TaskCoreEntry()
    let stopSignal = process.threads.lazy.compactMap(\.control.stoppedBySignal).first
    entry.taskState = stopSignal == nil ? State.alive : State.stopped
    if let stopSignal { entry.stopSigno = UInt32(stopSignal) }
    entry.exitCode = 0
    entry.personality = personality(process)
    entry.flags = process.statistics.flags
    entry.blkSigset = process.threads.first?.control.signalMask ?? 0
    entry.comm = process.name
    entry.timers = timers(answers)
    entry.rlimits = .with {
      $0.rlimits = answers.limits.map { limit in .with { ($0.cur, $0.max) = (limit.soft, limit.hard) } }
    }
    if let thread = process.anyThread {
      entry.signalsS = try attempt("Cannot read the signals that wait for \(process.label)") { () throws(Errno) in
        try ThreadRoom.signals(thread, ofProcess: true, anyPending: process.status.pendingOfProcess != 0)
      }
    }
    entry.sigactions = actions(answers)
    entry.childSubreaper = answers.childSubreaper
    if answers.membarrier != 0 { entry.membarrierRegistrationMask = answers.membarrier }
    entry.loginuid = number(process, "loginuid").map { UInt32(truncatingIfNeeded: $0) } ?? .max
    entry.oomScoreAdj = number(process, "oom_score_adj").map { Int32(truncatingIfNeeded: $0) } ?? 0
    return entry
  }

  /// The entry of a process that has ended and has not been waited for.
  static func saveZombie(_ process: JobProcess) -> CoreEntry {
    .with {
      $0.mtype = .x8664
      $0.tc = .with {
        $0.taskState = State.dead
        $0.exitCode = UInt32(bitPattern: process.statistics.exitCode)
        $0.personality = 0
        $0.flags = 0
        $0.blkSigset = process.status.blocked
        $0.comm = process.name
      }
    }
  }

  private static func actions(_ answers: ProcessAnswers) -> [SaEntry] {
    answers.actions.enumerated().compactMap { index, action in
      guard index + 1 != SIGKILL, index + 1 != SIGSTOP else { return nil }
      return .with {
        ($0.sigaction, $0.flags) = (action.handler, action.flags)
        ($0.restorer, $0.mask) = (action.restorer, action.mask)
      }
    }
  }

  private static func timers(_ answers: ProcessAnswers) -> TaskTimersEntry {
    let entries = answers.intervalTimers.map { values in
      ItimerEntry.with { ($0.isec, $0.iusec, $0.vsec, $0.vusec) = (values[0], values[1], values[2], values[3]) }
    }
    return .with {
      ($0.real, $0.virt, $0.prof) = (entries[0], entries[1], entries[2])
      $0.posix = answers.posixTimers
    }
  }

  private static func personality(_ process: JobProcess) -> UInt32 {
    guard let text = try? process.proc.read("personality") else { return 0 }
    return text.withUnsafeBytes { bytes in
      var scanner = TextScanner(bytes)
      return UInt32(truncatingIfNeeded: scanner.hexadecimal() ?? 0)
    }
  }

  private static func number(_ process: JobProcess, _ file: String) -> Int64? {
    guard let text = try? process.proc.read(file) else { return nil }
    return text.withUnsafeBytes { bytes in
      var scanner = TextScanner(bytes)
      return scanner.decimal()
    }
  }

  // MARK: Restore

  /// The calls that give a process its limits and settings. They come before its threads change their credentials.
  static func settings(_ entry: TaskCoreEntry) -> SyscallProgram {
    var program = SyscallProgram()
    var signal = 1
    for action in entry.sigactions {
      while signal == SIGKILL || signal == SIGSTOP { signal += 1 }
      let structure = program.store((action.sigaction, action.flags, action.restorer, action.mask))
      program.call(Int32(SYS_rt_sigaction), .init(signal), structure, 0, 8)
      signal += 1
    }
    for (kind, limit) in entry.rlimits.rlimits.enumerated() {
      program.call(Int32(SYS_prlimit64), 0, .init(kind), program.store((limit.cur, limit.max)), 0)
    }
    if entry.childSubreaper { program.call(Int32(SYS_prctl), 36 /* PR_SET_CHILD_SUBREAPER */, 1) }
    for bit in 0..<32 where entry.membarrierRegistrationMask >> bit & 1 == 1 {
      program.call(Int32(SYS_membarrier), .init(1 << bit), 0, 0)
    }
    return program
  }

  /// The calls that set interval timers going, and queue waiting signals: the last that a process makes.
  static func lastCalls(_ entry: TaskCoreEntry, process: ProcessID, dumpable: Int32?) -> SyscallProgram {
    var program = SyscallProgram()
    // A change of credentials has reset it. (PR_SET_DUMPABLE takes 0 and 1 only.)
    if let dumpable, dumpable == 0 || dumpable == 1 { program.call(Int32(SYS_prctl), 4, .init(dumpable)) }
    ThreadRoom.queue(entry.signalsS, process: process, thread: nil, into: &program)
    for (kind, timer) in [entry.timers.real, entry.timers.virt, entry.timers.prof].enumerated() {
      guard timer.vsec != 0 || timer.vusec != 0 else { continue }
      let value = program.store((timer.isec, timer.iusec, timer.vsec, timer.vusec))
      program.call(Int32(SYS_setitimer), .init(kind), value, 0)
    }
    return program
  }

  /// How a process that is to be a zombie ends itself.
  static func endOfZombie(_ entry: TaskCoreEntry) -> (signal: Int32, code: Int32) {
    let status = Int32(bitPattern: entry.exitCode)
    return (status & 0x7f, status >> 8 & 0xff)
  }
}

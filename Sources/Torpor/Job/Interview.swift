import CLinux
import Images
import Linux
import Logging
import SystemPackage
import Tracing

/// What only a process itself can learn of itself.
public struct ProcessAnswers {
  public var brk: UInt64 = 0
  public var dumpable: Int32 = 1
  public var thpDisabled = false
  public var childSubreaper = false
  public var membarrier: UInt32 = 0
  public var memoryMerge = false
  /// The bits of PR_GET_MDWE.
  public var mdwe: UInt32 = 0
  /// For signals 1 to 64.
  public var actions: [clinux_sigaction] = []
  /// Real, virtual, profiling: interval seconds and microseconds, seconds and microseconds left.
  public var intervalTimers: [[UInt64]] = []
  public var posixTimers: [PosixTimerEntry] = []
  /// In the order of the RLIMIT_ numbers: soft and hard, RLIM_INFINITY all ones.
  public var limits: [(soft: UInt64, hard: UInt64)] = []
}

/// What only a thread itself can learn of itself.
public struct ThreadAnswers {
  public var alternateStack = stack_t()
  public var clearChildTID: UInt64 = 0
  public var deathSignal: Int32 = 0
  public var secureBits: UInt32 = 0
  /// In nanoseconds.
  public var timerSlack: UInt64 = 0
  /// PR_MCE_KILL_GET.
  public var machineCheck: Int64 = 2
  /// PR_GET_TSC.
  public var timeStampCounter: Int32 = 1
}

/// Has the threads of a frozen job make the calls whose answers the kernel gives to nobody else, all processes at the
/// same time, and puts everything back as it was.
struct Interview {
  /// So many threads of a process run their program at a time.
  private static let threadsAtATime = 64

  private(set) var processes: [ProcessID: ProcessAnswers] = [:]
  private(set) var threads: [ProcessID: ThreadAnswers] = [:]

  /// - Parameter reading: must have come to a process before that is touched: nothing of ours is in it yet then.
  /// - Throws: where a process cannot be borrowed; every process is put back first.
  static func hold(after reading: SecondReading) throws(Failure) -> Interview {
    var interview = Interview()
    let living = reading.processes
    for process in living {
      for thread in process.threads where !thread.isDead {
        try attempt("Cannot read the registers of thread \(thread.tid) of \(process.label)") { () throws(Errno) in
          thread.extendedState = try thread.control.with { tracee throws(Errno) in try tracee.extendedState() }
        }
      }
    }
    var workspaces: [BorrowedWorkspace] = []
    do throws(Failure) {
      for (index, process) in living.enumerated() {
        try reading.wait(for: index)
        workspaces.append(try borrow(process))
      }
      FaultPoint.reach(.checkpointBorrowed)
      try interview.ask(living, workspaces)
    } catch {
      for (process, workspace) in zip(living, workspaces) { try? putBack(process, workspace) }
      throw error
    }
    for (process, workspace) in zip(living, workspaces) {
      try attempt("Cannot give back thread \(process.pid)") { () throws(Errno) in try putBack(process, workspace) }
    }
    FaultPoint.reach(.checkpointReturned)
    return interview
  }

  private static func borrow(_ process: JobProcess) throws(Failure) -> BorrowedWorkspace {
    guard let thread = process.anyThread, let vdso = process.areas.first(where: { $0.name == "[vdso]" }) else {
      throw Failure(
        .refused, "Cannot checkpoint \(process.label)", why: "it has no vDSO, in whose spare bytes torpor's calls start",
        advice: "start it without vdso=0 on the kernel's command line")
    }
    for thread in process.threads { thread.control.endSignal = endSignal(for: process) }
    let alive = process.threads.count { !$0.isDead }
    return try BorrowedWorkspace(
      thread: thread.control, memory: process.memory, vdso: vdso.range, seats: min(alive, threadsAtATime),
      seatSize: 16384 + thread.extendedState.count)
  }

  /// A signal that means nothing to the process: it neither handles it nor has it waiting, and ignores it.
  private static func endSignal(for process: JobProcess) -> Int32 {
    let status = process.status
    let pending = status.pendingOfProcess | status.pendingOfThread
    func bit(_ signal: Int32) -> UInt64 { 1 << UInt64(signal - 1) }
    let ignoredByDefault = [SIGURG, SIGWINCH, SIGCHLD, SIGCONT]
    if let signal = ignoredByDefault.first(where: { (status.caught | pending) & bit($0) == 0 }) { return signal }
    let ignored = (1...64).first { status.ignored & ~pending & bit($0) != 0 && $0 != SIGTRAP }
    return ignored ?? 0
  }

  private static func putBack(_ process: JobProcess, _ workspace: BorrowedWorkspace) throws(Errno) {
    for thread in process.threads where !thread.isDead && thread.tid != process.anyThread?.tid {
      try thread.control.putBack()
    }
    try workspace.remove()
  }

  // MARK: Questions

  private mutating func ask(_ living: [JobProcess], _ workspaces: [BorrowedWorkspace]) throws(Failure) {
    let processQuestions = ProcessQuestions()
    let threadQuestions = ThreadQuestions()
    // One round for the first thread of every process, further ones for their other threads.
    for (process, workspace) in zip(living, workspaces) {
      guard let thread = process.anyThread else { continue }
      try start(processQuestions.program, thread, process, workspace, seat: 0)
    }
    FaultPoint.reach(.checkpointProgramStarted)
    for process in living {
      guard let thread = process.anyThread else { continue }
      let results = try thread.control.finish()
      processes[process.pid] = processQuestions.answers(results)
      threads[thread.tid] = processQuestions.thread.answers(results)
    }
    for (process, workspace) in zip(living, workspaces) { try askTimers(of: process, workspace) }
    FaultPoint.reach(.checkpointProgramEnded)
    for (process, workspace) in zip(living, workspaces) {
      try askThreads(of: process, workspace, threadQuestions)
    }
  }

  private mutating func askTimers(of process: JobProcess, _ workspace: BorrowedWorkspace) throws(Failure) {
    guard let thread = process.anyThread else { return }
    var rest = process.timers[...]
    while !rest.isEmpty {
      let questions = PosixTimerRoom.Questions(rest.prefix(PosixTimerRoom.timersAtATime))
      rest = rest.dropFirst(PosixTimerRoom.timersAtATime)
      try start(questions.program, thread, process, workspace, seat: 0)
      processes[process.pid]?.posixTimers += questions.answers(try thread.control.finish())
    }
  }

  private mutating func askThreads(
    of process: JobProcess, _ workspace: BorrowedWorkspace, _ questions: ThreadQuestions
  ) throws(Failure) {
    let others = process.threads.filter { !$0.isDead && $0.tid != process.anyThread?.tid }
    var next = 0
    while next < others.count {
      let wave = others[next..<min(next + Self.threadsAtATime - 1, others.count)]
      for (index, thread) in wave.enumerated() {
        thread.control.useInterpreter(at: workspace.range.start)
        try start(questions.program, thread, process, workspace, seat: index + 1)
      }
      for thread in wave {
        threads[thread.tid] = questions.answers(try thread.control.finish())
        // It must not stand in its seat when the next one gets it.
        try attempt("Cannot give back thread \(thread.tid) of \(process.label)") { () throws(Errno) in
          try thread.control.putBack()
        }
      }
      next = wave.endIndex
    }
  }

  private func start(
    _ program: SyscallProgram, _ thread: JobThread, _ process: JobProcess, _ workspace: BorrowedWorkspace, seat: Int
  ) throws(Failure) {
    try attempt("Cannot borrow thread \(thread.tid) of \(process.label)") { () throws(Errno) in
      let rest = try thread.control.prepareReturn(
        in: workspace.seat(seat), extendedState: thread.extendedState)
      try thread.control.start(program, in: rest)
    }
  }
}

/// The program that asks a thread about itself.
private struct ThreadQuestions {
  var program = SyscallProgram()
  private let stack: Int
  private let clearTID: Int
  private let deathSignal: Int
  private let machineCheck: Int
  private let counter: Int
  private let secureBits: Int
  private let timerSlack: Int

  init() { self.init(in: SyscallProgram()) }

  init(in start: SyscallProgram) {
    var program = start
    stack = program.reserve(MemoryLayout<stack_t>.size)
    program.call(Int32(SYS_sigaltstack), 0, .data(stack))
    clearTID = program.reserve(8)
    program.call(Int32(SYS_prctl), 40 /* PR_GET_TID_ADDRESS */, .data(clearTID), tolerant: true)
    deathSignal = program.reserve(4)
    program.call(Int32(SYS_prctl), 2 /* PR_GET_PDEATHSIG */, .data(deathSignal))
    machineCheck = program.call(Int32(SYS_prctl), 34 /* PR_MCE_KILL_GET */, 0, 0, 0, 0, tolerant: true)
    counter = program.reserve(4)
    program.call(Int32(SYS_prctl), 25 /* PR_GET_TSC */, .data(counter), tolerant: true)
    secureBits = program.call(Int32(SYS_prctl), 27 /* PR_GET_SECUREBITS */)
    timerSlack = program.call(Int32(SYS_prctl), 30 /* PR_GET_TIMERSLACK */)
    self.program = program
  }

  func answers(_ results: Results) -> ThreadAnswers {
    ThreadAnswers(
      alternateStack: results.load(stack, as: stack_t.self), clearChildTID: results.load(clearTID, as: UInt64.self),
      deathSignal: results.load(deathSignal, as: Int32.self),
      secureBits: UInt32(truncatingIfNeeded: results[secureBits]), timerSlack: UInt64(bitPattern: results[timerSlack]),
      machineCheck: results[machineCheck], timeStampCounter: results.load(counter, as: Int32.self))
  }
}

/// The program that asks a process about itself, and its first thread as well.
private struct ProcessQuestions {
  var program: SyscallProgram
  let thread: ThreadQuestions
  private let brk: Int
  private let dumpable: Int
  private let thp: Int
  private let subreaper: Int
  private let membarrier: Int
  private let merge: Int
  private let mdwe: Int
  private let actions: Int
  private let timers: Int
  private let limits: Int
  static let limitCount = 16
  private static let actionSize = MemoryLayout<clinux_sigaction>.size

  init() {
    thread = ThreadQuestions()
    var program = thread.program
    brk = program.call(Int32(SYS_brk), 0)
    dumpable = program.call(Int32(SYS_prctl), 3 /* PR_GET_DUMPABLE */)
    thp = program.call(Int32(SYS_prctl), 42 /* PR_GET_THP_DISABLE */, tolerant: true)
    subreaper = program.reserve(4)
    program.call(Int32(SYS_prctl), 37 /* PR_GET_CHILD_SUBREAPER */, .data(subreaper))
    membarrier = program.call(Int32(SYS_membarrier), 512 /* MEMBARRIER_CMD_GET_REGISTRATIONS */, tolerant: true)
    merge = program.call(Int32(SYS_prctl), 68 /* PR_GET_MEMORY_MERGE */, 0, 0, 0, 0, tolerant: true)
    mdwe = program.call(Int32(SYS_prctl), 66 /* PR_GET_MDWE */, 0, 0, 0, 0, tolerant: true)
    actions = program.reserve(64 * Self.actionSize)
    for signal in 1...64 where signal != SIGKILL && signal != SIGSTOP {
      program.call(
        Int32(SYS_rt_sigaction), .init(signal), 0, .data(actions + (signal - 1) * Self.actionSize), 8)
    }
    timers = program.reserve(3 * 32)
    for kind in 0..<3 { program.call(Int32(SYS_getitimer), .init(kind), .data(timers + kind * 32)) }
    // prlimit64(2) of another user's process needs CAP_SYS_RESOURCE; of oneself, nothing.
    limits = program.reserve(Self.limitCount * 16)
    for kind in 0..<Self.limitCount {
      program.call(Int32(SYS_prlimit64), 0, .init(kind), 0, .data(limits + kind * 16))
    }
    self.program = program
  }

  func answers(_ results: Results) -> ProcessAnswers {
    var answers = ProcessAnswers()
    answers.brk = UInt64(bitPattern: results[brk])
    answers.dumpable = Int32(truncatingIfNeeded: results[dumpable])
    answers.thpDisabled = results[thp] == 1
    answers.childSubreaper = results.load(subreaper, as: Int32.self) != 0
    answers.membarrier = results[membarrier] > 0 ? UInt32(truncatingIfNeeded: results[membarrier]) : 0
    answers.memoryMerge = results[merge] == 1
    answers.mdwe = results[mdwe] > 0 ? UInt32(truncatingIfNeeded: results[mdwe]) : 0
    answers.actions = (0..<64).map { results.load(actions + $0 * Self.actionSize, as: clinux_sigaction.self) }
    answers.intervalTimers = (0..<3).map { kind in
      (0..<4).map { results.load(timers + kind * 32 + $0 * 8, as: UInt64.self) }
    }
    answers.limits = (0..<Self.limitCount).map {
      (results.load(limits + $0 * 16, as: UInt64.self), results.load(limits + $0 * 16 + 8, as: UInt64.self))
    }
    return answers
  }
}

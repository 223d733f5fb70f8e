import CLinux
import FoundationEssentials
import Images
import Linux
import SystemPackage
import Tracing

/// What each thread has of its own.
enum ThreadRoom {
  // MARK: Save

  static func save(
    _ thread: JobThread, of process: JobProcess, _ answers: ThreadAnswers
  ) throws(Failure) -> CoreEntry {
    try attempt("Cannot read the state of thread \(thread.tid) of \(process.label)") { () throws(Errno) in
      var core = CoreEntry()
      core.mtype = .x8664
      core.threadInfo = RegistersRoom.save(
        thread.control.registers, thread.extendedState, clearTID: answers.clearChildTID)
      core.threadCore = try threadCore(thread, of: process, answers)
      return core
    }
  }

  private static func threadCore(
    _ thread: JobThread, of process: JobProcess, _ answers: ThreadAnswers
  ) throws(Errno) -> ThreadCoreEntry {
    let status =
      thread.tid == process.witness
      ? process.status : try TaskStatus(of: process.proc, "task/\(thread.tid)/status")
    let scheduling = try scheduling(thread.tid)
    let robust = try robustList(thread.tid)
    var entry = ThreadCoreEntry()
    entry.futexRla = robust.head
    entry.futexRlaLen = UInt32(robust.length)
    entry.schedNice = scheduling.nice
    entry.schedPolicy = scheduling.policy
    if scheduling.priority != 0 { entry.schedPrio = scheduling.priority }
    entry.blkSigset = thread.control.signalMask
    entry.sas = .with {
      $0.ssSp = UInt64(UInt(bitPattern: answers.alternateStack.ss_sp))
      $0.ssSize = UInt64(answers.alternateStack.ss_size)
      $0.ssFlags = UInt32(bitPattern: answers.alternateStack.ss_flags)
    }
    if answers.deathSignal != 0 { entry.pdeathSig = UInt32(answers.deathSignal) }
    entry.signalsP = try signals(thread, ofProcess: false, anyPending: status.pendingOfThread != 0)
    entry.creds = CredentialsRoom.save(status, secureBits: answers.secureBits)
    entry.comm = status.name
    let area = try thread.control.with { tracee throws(Errno) in try tracee.restartableSequence() }
    if area.rseq_abi_pointer != 0 {
      entry.rseqEntry = .with {
        $0.rseqAbiPointer = area.rseq_abi_pointer
        $0.rseqAbiSize = area.rseq_abi_size
        $0.signature = area.signature
      }
    }
    entry.cgSet = 1
    return entry
  }

  /// Signals that wait for the thread, or with `ofProcess` for any thread of its process.
  static func signals(_ thread: JobThread, ofProcess: Bool, anyPending: Bool) throws(Errno) -> SignalQueueEntry {
    var queue = SignalQueueEntry()
    guard anyPending else { return queue }
    let pending = try thread.control.with { tracee throws(Errno) in try tracee.pendingSignals(ofProcess: ofProcess) }
    queue.signals = pending.map { information in
      .with { $0.siginfo = withUnsafeBytes(of: information) { Data($0) } }
    }
    return queue
  }

  private static func scheduling(_ tid: ProcessID) throws(Errno) -> clinux_sched_attr {
    var attributes = clinux_sched_attr()
    try withUnsafeMutableBytes(of: &attributes) { bytes throws(Errno) in
      _ = try systemCall(Int32(SYS_sched_getattr), Int(tid), Int(bitPattern: bytes.baseAddress), bytes.count, 0)
    }
    return attributes
  }

  /// get_robust_list(2)
  private static func robustList(_ tid: ProcessID) throws(Errno) -> (head: UInt64, length: UInt64) {
    var values: (UInt64, UInt64) = (0, 0)
    try withUnsafeMutableBytes(of: &values) { bytes throws(Errno) in
      _ = try systemCall(
        Int32(SYS_get_robust_list), Int(tid), Int(bitPattern: bytes.baseAddress), Int(bitPattern: bytes.baseAddress) + 8)
    }
    return (values.0, values.1)
  }

  /// What init starts with, and nearly every thread has. (prctl(2), PR_SET_TIMERSLACK)
  static let usualTimerSlack: UInt64 = 50_000

  // MARK: Restore

  /// The calls by which a thread gets back what it has of its own, registers aside.
  ///
  /// - Parameters:
  ///   - name: for a thread of an image that has none, its process's.
  ///   - extras: what the core has no field for.
  ///   - own: the credentials it has now.
  static func program(_ core: CoreEntry, name: String, extras: ThreadExtras, own: CredsEntry) -> SyscallProgram {
    let entry = core.threadCore
    var program = SyscallProgram()
    let slack = extras.timerSlackNs == 0 ? usualTimerSlack : extras.timerSlackNs
    program.call(Int32(SYS_prctl), 29 /* PR_SET_TIMERSLACK */, .init(slack))
    program.call(Int32(SYS_set_tid_address), .init(core.threadInfo.clearTidAddr_p))
    if entry.futexRla != 0 {
      program.call(Int32(SYS_set_robust_list), .init(entry.futexRla), .init(entry.futexRlaLen))
    }
    if entry.hasRseqEntry, entry.rseqEntry.rseqAbiPointer != 0 {
      let area = entry.rseqEntry
      program.call(
        Int32(SYS_rseq), .init(area.rseqAbiPointer), .init(area.rseqAbiSize), 0, .init(area.signature))
    }
    program.call(
      Int32(SYS_prctl), 15 /* PR_SET_NAME */, program.store(string: entry.hasComm ? entry.comm : name))
    restoreAlternateStack(entry.sas, &program)
    if entry.hasSchedNice { program.call(Int32(SYS_setpriority), 0, 0, .init(entry.schedNice)) }
    if entry.hasSchedPolicy, entry.schedPolicy != 0 {
      let parameter = program.store(Int32(bitPattern: entry.schedPrio))
      program.call(Int32(SYS_sched_setscheduler), 0, .init(entry.schedPolicy), parameter)
    }
    ExtrasRoom.restore(extras, into: &program)
    CredentialsRoom.restore(entry.creds, own: own, into: &program)
    // A change of credentials clears it. (prctl(2), PR_SET_PDEATHSIG)
    if entry.pdeathSig != 0 { program.call(Int32(SYS_prctl), 1 /* PR_SET_PDEATHSIG */, .init(entry.pdeathSig)) }
    return program
  }

  private static func restoreAlternateStack(_ stack: ThreadSasEntry, _ program: inout SyscallProgram) {
    // SS_ONSTACK (1) is a state, not a setting; SS_DISABLE (2) alone is what a new thread has.
    guard stack.ssFlags & 2 == 0 else { return }
    let structure = program.store(
      (stack.ssSp, UInt64(stack.ssFlags & ~1), stack.ssSize))
    program.call(Int32(SYS_sigaltstack), structure, 0)
  }

  /// The calls that queue a thread's waiting signals again. A thread may give itself any signal information.
  static func queue(_ signals: SignalQueueEntry, process: ProcessID, thread: ProcessID?, into program: inout SyscallProgram)
  {
    for entry in signals.signals where entry.siginfo.count == 128 {
      let bytes = [UInt8](entry.siginfo)
      let number = bytes.withUnsafeBytes { $0.loadUnaligned(as: Int32.self) }
      let information = SyscallProgram.Argument.data(program.store(bytes: bytes))
      if let thread {
        program.call(Int32(SYS_rt_tgsigqueueinfo), .init(process), .init(thread), .init(number), information)
      } else {
        program.call(Int32(SYS_rt_sigqueueinfo), .init(process), .init(number), information)
      }
    }
  }
}

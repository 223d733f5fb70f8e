import CLinux
import Images
import Linux
import SystemPackage
import Tracing

/// From the birth of threads to the moment when the job is let go.
extension JobBuilder {
  // MARK: Threads

  func bearThreads() throws(Failure) {
    let flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM | CLONE_PTRACE
    for process in living where process.entry.threads.count > 1 {
      let tids = process.entry.threads.dropFirst().map { ProcessID(bitPattern: $0) }
      var script = Script()
      for tid in tids { Self.clone(tid, flags: UInt64(flags), signal: 0, into: &script) }
      do throws(Failure) { try process.run(script, in: layout) } catch {
        if let holder = tids.first(where: { isForeignThread($0, of: process.pid) }) {
          throw Restore.taken(holder, restoring.image.path)
        }
        throw error
      }
      process.otherThreads.reserveCapacity(tids.count)
      for tid in tids { process.otherThreads.append(try takeOver(tid, process: process.pid)) }
    }
  }

  private func isForeignThread(_ tid: ProcessID, of process: ProcessID) -> Bool {
    guard let proc = try? ProcDirectory(tid), let status = try? TaskStatus(of: proc) else { return false }
    return status.threadGroup != process
  }

  // MARK: State of tasks

  /// Handlers, limits, credentials, names, timers, waiting signals.
  ///
  /// Stopped processes are finished first, children before their parents, and stand in their stop from then on.
  ///
  /// Before that, the root of a detached job comes to its new parent: a process can ask for a signal when its parent ends.
  func giveTaskState() throws(Failure) {
    try attempt("Cannot leave the job to the reaper of orphans") { () throws(Errno) in try foster?.release() }
    for process in living.reversed() where process.isStopped {
      try giveTaskState([process])
      try takeInterpreterAway([process])
      try stop(process)
    }
    try giveTaskState(living.filter { !$0.isStopped })
  }

  private func giveTaskState(_ processes: [RestoredProcess]) throws(Failure) {
    for process in processes {
      for (thread, core) in threads(of: process) { thread.endSignal = freeSignal(core, process) }
      if let leader = process.leader {
        try leader.run(TaskRoom.settings(process.cores[0].tc), in: layout.mainSeat)
      }
      try giveThreadState(process)
      guard let leader = process.leader else { continue }
      var last = TaskRoom.lastCalls(
        process.cores[0].tc, process: process.pid, dumpable: process.memory?.dumpable)
      ExtrasRoom.restoreLast(process.extras, into: &last)
      if !last.isEmpty { try leader.run(last, in: layout.mainSeat) }
      for program in PosixTimerRoom.programs(process.cores[0].tc) { try leader.run(program, in: layout.mainSeat) }
      restoreScore(process)
      try attempt("Cannot restore \(process.label): its core dump filter") { () throws(Errno) in
        try ExtrasRoom.restoreFromOutside(process.extras, process.pid)
      }
    }
  }

  func threads(of process: RestoredProcess) -> [(ControlledThread, CoreEntry)] {
    guard let leader = process.leader else { return [] }
    return Array(zip([leader] + process.otherThreads, process.cores))
  }

  private func giveThreadState(_ process: RestoredProcess) throws(Failure) {
    let threads = threads(of: process)
    var next = 0
    while next < threads.count {
      let wave = threads[next..<min(next + BlankProcess.Layout.threadSeats, threads.count)]
      for (seat, (thread, core)) in wave.enumerated() {
        guard core.hasThreadInfo else { continue }
        let extras = process.threadExtras[thread.tid] ?? ThreadExtras()
        var program = ThreadRoom.program(core, name: process.name, extras: extras, own: own)
        ThreadRoom.queue(core.threadCore.signalsP, process: process.pid, thread: thread.tid, into: &program)
        // Waiting signals may be many: a program that does not fit a small seat gets the main one, alone.
        let fits = program.size + 128 <= BlankProcess.Layout.threadSeatSize
        try attempt("Cannot restore thread \(thread.tid) of \(process.label)") { () throws(Errno) in
          try thread.start(program, in: fits ? layout.threadSeat(seat) : layout.mainSeat)
        }
        if !fits { try thread.finish() }
      }
      for (thread, _) in wave where thread.isRunning { try thread.finish() }
      next = wave.endIndex
    }
  }

  /// A signal for the program's end that is not among those that wait.
  private func freeSignal(_ core: CoreEntry, _ process: RestoredProcess) -> Int32 {
    let waiting = (core.threadCore.signalsP.signals + process.cores[0].tc.signalsS.signals).map { entry in
      entry.siginfo.count >= 4 ? [UInt8](entry.siginfo).withUnsafeBytes { $0.loadUnaligned(as: Int32.self) } : 0
    }
    return [SIGURG, SIGWINCH, SIGCHLD, SIGCONT].first { !waiting.contains($0) } ?? 0
  }

  private func restoreScore(_ process: RestoredProcess) {
    let score = process.cores[0].tc.oomScoreAdj
    guard let proc = try? ProcDirectory(process.pid) else { return }
    let now = (try? proc.read("oom_score_adj")).map { String(decoding: $0.prefix { $0 != 0x0a }, as: UTF8.self) }
    guard now != "\(score)" else { return }
    do throws(Errno) {
      let file = try proc.open("oom_score_adj", O_WRONLY)
      try [UInt8]("\(score)".utf8).withBytes { bytes throws(Errno) in try file.write(bytes) }
    } catch {
      restoring.log.warning("cannot set oom_score_adj of \(process.label) to \(score): \(error.words)")
    }
  }

  // MARK: The end

  /// Unmaps everything of ours from every process, and sets the registers with which its threads go on.
  func takeInterpreterAway() throws(Failure) {
    try takeInterpreterAway(living.filter { !$0.isStopped })
  }

  /// Brings a process with its final registers into the stop of job control that it was in. A signal that waits is taken
  /// before the first instruction, so none of its code runs.
  private func stop(_ process: RestoredProcess) throws(Failure) {
    let task = process.cores[0].tc
    let known = [SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU]
    let signal = known.first { $0 == Int32(task.stopSigno) } ?? SIGSTOP
    try attempt("Cannot stop \(process.label)") { () throws(Errno) in
      for (index, (thread, _)) in threads(of: process).enumerated() {
        try thread.with { tracee throws(Errno) in
          if index == 0 {
            kill(process.pid, SIGSTOP)
            try tracee.resume()
            guard try tracee.wait() == .signal(SIGSTOP) else { throw .noSuchProcess }
            try tracee.resume(signal: signal)
          } else {
            try tracee.resume()
          }
          guard case .interrupted = try tracee.wait() else { throw .noSuchProcess }
        }
      }
    }
    guard let parent = process.parent else { return }
    // Its parent took notice of that long ago.
    try run(parent) { script in
      script.call(Int32(SYS_wait4), .init(process.pid), 0, .init(WUNTRACED | WNOHANG), 0, tolerant: true)
    }
    try drainChildSignal(parent)
  }

  private func takeInterpreterAway(_ processes: [RestoredProcess]) throws(Failure) {
    for process in processes {
      guard let leader = process.leader else { continue }
      let template = try attempt("Cannot read registers") { () throws(Errno) in
        try leader.with { tracee throws(Errno) in try tracee.extendedState() }
      }
      let range = AddressRange(layout.file.start, layout.parking.end)
      try attempt("Cannot restore \(process.label)") { () throws(Errno) in
        _ = try leader.callOnceInInterpreter(Int32(SYS_munmap), [range.start, range.count])
      }
      for (thread, core) in threads(of: process) {
        if core.hasThreadInfo { try setRegisters(thread, core, template, process) } else { try prepareEnd(leader, process) }
      }
    }
  }

  /// A first thread that had ended ends again, as soon as it is let go: by a call from the vDSO, since nothing of ours is
  /// left in the process then.
  private func prepareEnd(_ leader: ControlledThread, _ process: RestoredProcess) throws(Failure) {
    guard let vdso = process.memory?.vmas.first(where: { $0.kind.contains(.vdso) }),
      let offset = try VDSO.systemCallOffset()
    else {
      throw Failure("Cannot restore \(process.label)", why: "its vDSO has no system call for its first thread to end with")
    }
    let base = try attempt("Cannot restore \(process.label)") { () throws(Errno) in
      try leader.with { tracee throws(Errno) in try tracee.registers() }
    }
    leader.registers = base.calling(Int32(SYS_exit), [0], at: vdso.start + UInt64(offset))
    leader.signalMask = .max
    try attempt("Cannot restore \(process.label)") { () throws(Errno) in try leader.putBack() }
  }

  private func setRegisters(
    _ thread: ControlledThread, _ core: CoreEntry, _ template: [UInt8], _ process: RestoredProcess
  ) throws(Failure) {
    let what = "Cannot restore thread \(thread.tid) of \(process.label)"
    let whole = process.threadExtras[thread.tid].map { [UInt8]($0.xsave) } ?? []
    let parts = whole.isEmpty ? RegistersRoom.extendedState(core.threadInfo.fpregs, template: template) : whole
    guard let state = parts, state.count == template.count else {
      throw Failure(
        .badImage, what, why: "it uses vector registers that this CPU has not",
        advice: "restore it on a machine with the CPU features that `torpor show` lists")
    }
    thread.registers = RegistersRoom.registers(core.threadInfo.gpregs)
    let isLeader = thread.tid == process.pid
    thread.signalMask = isLeader || !core.threadCore.hasBlkSigset ? core.tc.blkSigset : core.threadCore.blkSigset
    try attempt(what) { () throws(Errno) in
      try thread.with { tracee throws(Errno) in try tracee.setExtendedState(state) }
      try thread.putBack()
    }
  }

  /// Lets all processes go together, children first, so that no parent finds one that is still held.
  ///
  /// From the first to the last the guardian stands by: should Torpor die between them, the kernel kills those that are
  /// held, and the guardian those that have been let go already.
  func letGo() throws(Failure) {
    let order = Array(living.reversed())
    let guardian = try Guardian(watching: order.map(\.pid), onDeath: .killAll)
    let stoppedFirst = order.filter(\.isStopped) + order.filter { !$0.isStopped }
    for (index, process) in stoppedFirst.enumerated() {
      if index == stoppedFirst.count / 2 { FaultPoint.reach(.restoreReleasing) }
      try attempt("Cannot let \(process.label) go") { () throws(Errno) in
        for (thread, _) in threads(of: process) {
          try thread.with { tracee throws(Errno) in try tracee.setOptions(0) }
          try thread.detach()
        }
      }
      if process.isStopped { JobControl.awaitStop(of: process.pid) }
    }
    try guardian.dismiss()
  }

  /// Leaves nothing behind.
  func killAll() {
    for process in processes + standIns {
      guard let leader = process.leader else { continue }
      kill(process.pid, SIGKILL)
      for thread in process.otherThreads { thread.forget() }
      leader.forget()
    }
    for process in processes + standIns where process.leader != nil {
      for tid in process.entry.threads.dropFirst() { waitpid(ProcessID(bitPattern: tid), nil, __WALL) }
      waitpid(process.pid, nil, __WALL)
    }
    foster = nil
  }
}

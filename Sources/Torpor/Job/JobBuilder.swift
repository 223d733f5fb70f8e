import CLinux
import Images
import Linux
import SystemPackage
import Tracing

/// Builds the processes of a job, step by step. All of them stand still, and die with Torpor, until `letGo`.
final class JobBuilder {
  let restoring: Restoring
  private let options: RestoreOptions
  private var bornThreads: [ProcessID] = []
  private var own = CredsEntry()

  init(_ restoring: Restoring, _ options: RestoreOptions) {
    self.restoring = restoring
    self.options = options
  }

  private var layout: BlankProcess.Layout { restoring.layout }
  private var processes: [RestoredProcess] { restoring.processes }
  private var living: [RestoredProcess] { processes.filter { !$0.isZombie } }

  // MARK: Processes

  /// The root as a blank process, every other cloned from its parent, each under its own PID, in its session and group.
  func bearProcesses() throws(Failure) {
    own = try CredentialsRoom.own()
    let plan = try makePlan()
    try bearRoot()
    FaultPoint.reach(.restoreRootBorn)
    let byPID = Dictionary(processes.map { ($0.pid, $0) }, uniquingKeysWith: { first, _ in first })
    for step in plan.steps {
      guard let process = byPID[step.pid], !process.isZombie else { continue }
      try takeStep(step, process, byPID)
    }
    for (pid, group) in plan.groups {
      guard let process = byPID[pid] else { continue }
      try run(process) { $0.call(Int32(SYS_setpgid), 0, .init(group)) }
    }
    try endZombies()
  }

  private func makePlan() throws(Failure) -> BirthPlan {
    let family = processes.map { process in
      Kin(
        pid: process.pid, parent: ProcessID(bitPattern: process.entry.ppid),
        group: ProcessID(bitPattern: process.entry.pgid), session: ProcessID(bitPattern: process.entry.sid))
    }
    do throws(BirthPlan.Obstacle) { return try BirthPlan(family) } catch {
      throw Failure(
        .cannotRestore, "Cannot restore process \(error.pid)", why: error.why,
        advice: "a later version of torpor will be able to")
    }
  }

  private func bearRoot() throws(Failure) {
    let root = processes[0]
    let blank: BlankProcess
    do { blank = try BlankProcess.start(pid: root.pid, base: layout.base) } catch {
      throw birthFailure(root.pid, error)
    }
    root.leader = blank.thread
    restoring.parkedVDSO = try VDSO.park(root: blank.thread, layout: layout)
    let socket = UInt64(restoring.dealer.socketNumber)
    try run(root) { program in
      program.call(Int32(SYS_close_range), 0, .init(socket - 1), 0)
      program.call(Int32(SYS_close_range), .init(socket + 1), .init(UInt32.max), 0)
      // Nobody in the job leads its session: it gets one of its own, unless it is to stay at this terminal.
      if root.entry.sid != root.entry.pid, options.detach, !restoring.files.usesTerminal {
        program.call(Int32(SYS_setsid))
      }
    }
    if let terminal = try? readLink("/proc/self/fd/0") { restoring.log.debug("torpor's own input is \(terminal)") }
  }

  private func birthFailure(_ pid: ProcessID, _ error: Errno) -> Failure {
    switch error {
    case .fileExists: Restore.taken(pid, restoring.image.path)
    case .notPermitted:
      Failure(
        .noPermission, "Cannot restore process \(pid)", why: "the kernel does not let you choose a process ID",
        advice: "run torpor as root, or with the capability CAP_CHECKPOINT_RESTORE")
    default: Failure("Cannot start process \(pid)", error)
    }
  }

  private func takeStep(
    _ step: BirthPlan.Step, _ process: RestoredProcess, _ byPID: [ProcessID: RestoredProcess]
  ) throws(Failure) {
    try bear(step.bornBefore, from: process, byPID)
    if step.callsSetsid { try run(process) { $0.call(Int32(SYS_setsid)) } }
    try bear(step.bornAfter, from: process, byPID)
  }

  /// Clones all of `children` in one program. With CLONE_PTRACE each is born under our control.
  private func bear(
    _ children: [ProcessID], from parent: RestoredProcess, _ byPID: [ProcessID: RestoredProcess]
  ) throws(Failure) {
    guard !children.isEmpty else { return }
    var script = Script()
    for child in children { Self.clone(child, flags: UInt64(CLONE_PTRACE), signal: SIGCHLD, into: &script) }
    do throws(Failure) { try parent.run(script, in: layout) } catch {
      if let holder = children.first(where: { byPID[$0]?.leader == nil && isForeign($0, parent.pid) }) {
        throw Restore.taken(holder, restoring.image.path)
      }
      throw error
    }
    for child in children {
      guard let process = byPID[child] else { continue }
      process.leader = try takeOver(child, process: child)
    }
  }

  private func isForeign(_ pid: ProcessID, _ parent: ProcessID) -> Bool {
    guard let proc = try? ProcDirectory(pid), let status = try? TaskStatus(of: proc) else { return false }
    return status.parent != parent
  }

  /// clone3(2) with a chosen ID.
  private static func clone(_ id: ProcessID, flags: UInt64, signal: Int32, into script: inout Script) {
    script.add(upTo: 64 + 128) { program in
      let number = program.reserve(16)
      program.patch(number, id)
      var arguments = clinux_clone_args()
      arguments.flags = flags
      arguments.exit_signal = UInt64(signal)
      arguments.set_tid_size = 1
      let structure = program.store(bytes: withUnsafeBytes(of: arguments) { [UInt8]($0) })
      // `set_tid` is the ninth word.
      program.link(from: structure + 64, to: number)
      program.call(
        Int32(SYS_clone3), .data(structure), .init(MemoryLayout<clinux_clone_args>.size))
    }
  }

  /// Waits for the first stop of a task that was born traced.
  private func takeOver(_ tid: ProcessID, process: ProcessID) throws(Failure) -> ControlledThread {
    try attempt("Cannot take control of \(tid)") { () throws(Errno) in
      let tracee = Tracee(born: tid)
      loop: while true {
        switch try tracee.wait() {
        case .interrupted: break loop
        case .exited, .killed: throw .noSuchProcess
        default: try tracee.resume()
        }
      }
      let thread = ControlledThread(
        process: process, tracee: tracee, registers: Registers(), signalMask: .max)
      thread.registers = try thread.with { tracee throws(Errno) in try tracee.registers() }
      thread.useInterpreter(at: layout.interpreter)
      return thread
    }
  }

  private func run(_ process: RestoredProcess, _ build: (inout Script) -> Void) throws(Failure) {
    var script = Script()
    build(&script)
    try process.run(script, in: layout)
  }

  /// Zombies end as they ended, before anybody has a handler for it; their parents take no notice.
  private func endZombies() throws(Failure) {
    for process in processes where process.isZombie {
      guard let leader = process.leader else { continue }
      let end = TaskRoom.endOfZombie(process.cores[0].tc)
      try attempt("Cannot restore \(process.label)") { () throws(Errno) in
        if end.signal != 0 {
          try endBySignal(leader, end.signal)
        } else {
          var program = SyscallProgram()
          program.call(Int32(SYS_prctl), 15 /* PR_SET_NAME */, program.store(string: process.name))
          program.call(Int32(SYS_exit_group), .init(end.code))
          try leader.start(program, in: layout.mainSeat)
          waitpid(process.pid, nil, __WALL)
        }
      }
      leader.forget()
    }
    for process in living where process.children.contains(where: \.isZombie) {
      // The SIGCHLD that has come of it was taken by the job long ago.
      try run(process) { script in
        script.add(upTo: 256) { program in
          let set = program.store(UInt64(1) << UInt64(SIGCHLD - 1))
          let now = program.store((UInt64(0), UInt64(0)))
          program.call(Int32(SYS_rt_sigtimedwait), set, 0, now, 8, tolerant: true)
        }
      }
    }
  }

  private func endBySignal(_ leader: ControlledThread, _ signal: Int32) throws(Errno) {
    try leader.with { tracee throws(Errno) in
      // SIGKILL ends it wherever it is; of other signals, it dies when it is given them with their default action.
      if signal == SIGKILL {
        kill(leader.tid, SIGKILL)
      } else {
        try tracee.setSignalMask(0)
        kill(leader.tid, signal)
        try tracee.resume()
        _ = try tracee.wait()
        try tracee.resume(signal: signal)
      }
      waitpid(leader.tid, nil, __WALL)
    }
  }

  // MARK: Files

  /// Opens every open file once, deals the descriptors out, sets directories and masks.
  func giveFiles() throws(Failure) {
    try restoring.files.openAll(restoring)
    for process in living {
      var script = Script()
      try restoring.files.deal(process, restoring, into: &script)
      try FileSystemRoom.restore(process, restoring, into: &script)
      try process.run(script, in: layout)
    }
    for process in living {
      var script = Script()
      try restoring.files.finishProcess(process, restoring, into: &script)
      script.call(Int32(SYS_close), .init(restoring.dealer.socketNumber))
      try process.run(script, in: layout)
    }
    restoring.files.closeAll()
  }

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
  func giveTaskState() throws(Failure) {
    for process in living {
      for (thread, core) in threads(of: process) { thread.endSignal = freeSignal(core, process) }
      if let leader = process.leader {
        try leader.run(TaskRoom.settings(process.cores[0].tc), in: layout.mainSeat)
      }
      try giveThreadState(process)
      guard let leader = process.leader else { continue }
      let last = TaskRoom.lastCalls(
        process.cores[0].tc, process: process.pid, dumpable: process.memory?.dumpable)
      if !last.isEmpty { try leader.run(last, in: layout.mainSeat) }
      restoreScore(process)
    }
  }

  private func threads(of process: RestoredProcess) -> [(ControlledThread, CoreEntry)] {
    guard let leader = process.leader else { return [] }
    return Array(zip([leader] + process.otherThreads, process.cores))
  }

  private func giveThreadState(_ process: RestoredProcess) throws(Failure) {
    let threads = threads(of: process)
    var next = 0
    while next < threads.count {
      let wave = threads[next..<min(next + BlankProcess.Layout.threadSeats, threads.count)]
      for (seat, (thread, core)) in wave.enumerated() {
        let slack = process.extras[thread.tid]?.timerSlackNs ?? 0
        var program = ThreadRoom.program(core, name: process.name, timerSlack: slack, own: own)
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
    for process in living {
      guard let leader = process.leader else { continue }
      let template = try attempt("Cannot read registers") { () throws(Errno) in
        try leader.with { tracee throws(Errno) in try tracee.extendedState() }
      }
      let range = AddressRange(layout.file.start, layout.parking.end)
      try attempt("Cannot restore \(process.label)") { () throws(Errno) in
        _ = try leader.callOnceInInterpreter(Int32(SYS_munmap), [range.start, range.count])
      }
      for (thread, core) in threads(of: process) { try setRegisters(thread, core, template, process) }
    }
  }

  private func setRegisters(
    _ thread: ControlledThread, _ core: CoreEntry, _ template: [UInt8], _ process: RestoredProcess
  ) throws(Failure) {
    let what = "Cannot restore thread \(thread.tid) of \(process.label)"
    let whole = process.extras[thread.tid].map { [UInt8]($0.xsave) } ?? []
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

  /// Lets all processes go together.
  ///
  /// From here to the end the guardian stands by: should Torpor die half-way, it kills what has been let go already.
  func letGo() throws(Failure) {
    let guardian = try Guardian(watching: living.map(\.pid), onDeath: .killAll)
    let all = living.flatMap { threads(of: $0).map(\.0) }
    for process in living where process.cores[0].tc.taskState == TaskRoom.State.stopped {
      let signal = process.cores[0].tc.hasStopSigno ? Int32(process.cores[0].tc.stopSigno) : SIGSTOP
      kill(process.pid, signal == SIGTRAP || signal == 0 ? SIGSTOP : signal)
    }
    try attempt("Cannot let the job go") { () throws(Errno) in
      for thread in all {
        try thread.with { tracee throws(Errno) in try tracee.setOptions(0) }
      }
      FaultPoint.reach(.restoreReleasing)
      for thread in all { try thread.detach() }
    }
    try guardian.dismiss()
  }

  /// Leaves nothing behind.
  func killAll() {
    for process in processes {
      guard let leader = process.leader else { continue }
      kill(process.pid, SIGKILL)
      for thread in process.otherThreads { thread.forget() }
      leader.forget()
    }
    for process in processes where process.leader != nil {
      for tid in process.entry.threads.dropFirst() { waitpid(ProcessID(bitPattern: tid), nil, __WALL) }
      waitpid(process.pid, nil, __WALL)
    }
  }
}

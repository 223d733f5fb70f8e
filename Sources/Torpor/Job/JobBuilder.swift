import CLinux
import Images
import Linux
import SystemPackage
import Tracing

/// Builds the processes of a job, step by step. All of them stand still, and die with Torpor, until `letGo`.
final class JobBuilder {
  let restoring: Restoring
  let options: RestoreOptions
  var own = CredsEntry()
  /// Who stands in for leaders that have ended, as long as they are needed.
  var standIns: [RestoredProcess] = []
  /// The root's parent while a detached job is being built.
  var foster: FosterParent?

  init(_ restoring: Restoring, _ options: RestoreOptions) {
    self.restoring = restoring
    self.options = options
  }

  var layout: BlankProcess.Layout { restoring.layout }
  var processes: [RestoredProcess] { restoring.processes }
  var living: [RestoredProcess] { processes.filter { !$0.isZombie } }

  // MARK: Processes

  /// The root as a blank process, every other cloned from its parent, each under its own PID, in its session and group.
  func bearProcesses() throws(Failure) {
    own = try CredentialsRoom.own()
    let plan = restoring.plan
    try bearRoot()
    FaultPoint.reach(.restoreRootBorn)
    standIns = (plan.sessionStandIns + plan.groupStandIns).map { RestoredProcess(standIn: $0.pid, parent: $0.parent) }
    let byPID = Dictionary((processes + standIns).map { ($0.pid, $0) }, uniquingKeysWith: { first, _ in first })
    for step in plan.steps {
      guard let process = byPID[step.pid] else { continue }
      try takeStep(step, process, byPID)
    }
    for standIn in plan.groupStandIns {
      guard let process = byPID[standIn.pid], let member = byPID[standIn.parent] else { continue }
      // Its end shall be no child's end that the member hears of.
      try bear([standIn.pid], from: member, byPID, flags: UInt64(CLONE_PTRACE), signal: 0)
      try run(process) { $0.call(Int32(SYS_setpgid), 0, 0) }
    }
    for (pid, group) in plan.groups {
      guard let process = byPID[pid] else { continue }
      try run(process) { $0.call(Int32(SYS_setpgid), 0, .init(group)) }
    }
    try endStandIns(byPID)
    try endZombies()
  }

  /// Ends those who stood in for dead leaders, unseen by their parents.
  private func endStandIns(_ byPID: [ProcessID: RestoredProcess]) throws(Failure) {
    for standIn in standIns {
      guard let leader = standIn.leader, let parent = byPID[ProcessID(bitPattern: standIn.entry.ppid)] else { continue }
      kill(standIn.pid, SIGKILL)
      waitpid(standIn.pid, nil, __WALL)
      leader.forget()
      standIn.leader = nil
      try run(parent) { $0.call(Int32(SYS_wait4), .init(standIn.pid), 0, .init(__WALL), 0) }
      try drainChildSignal(parent)
    }
  }

  private func bearRoot() throws(Failure) {
    let root = processes[0]
    let blank: BlankProcess
    do { blank = try BlankProcess.start(pid: root.pid, base: layout.base, fostered: options.detach) } catch {
      throw birthFailure(root.pid, error)
    }
    root.leader = blank.thread
    foster = blank.foster
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
    // With CLONE_PARENT a child has the exit signal of the one it is born of.
    try bear(step.siblings, from: process, byPID, flags: UInt64(CLONE_PTRACE | CLONE_PARENT), signal: 0)
  }

  /// Clones all of `children` in one program. With CLONE_PTRACE each is born under our control.
  private func bear(
    _ children: [ProcessID], from parent: RestoredProcess, _ byPID: [ProcessID: RestoredProcess],
    flags: UInt64 = UInt64(CLONE_PTRACE), signal: Int32 = SIGCHLD
  ) throws(Failure) {
    guard !children.isEmpty else { return }
    var script = Script()
    for child in children { Self.clone(child, flags: flags, signal: signal, into: &script) }
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
  static func clone(_ id: ProcessID, flags: UInt64, signal: Int32, into script: inout Script) {
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
  func takeOver(_ tid: ProcessID, process: ProcessID) throws(Failure) -> ControlledThread {
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

  func run(_ process: RestoredProcess, _ build: (inout Script) -> Void) throws(Failure) {
    var script = Script()
    build(&script)
    try process.run(script, in: layout)
  }

  /// Zombies end as they ended, before anybody has a handler for it; their parents take no notice.
  private func endZombies() throws(Failure) {
    for process in processes where process.isZombie {
      guard let leader = process.leader else { continue }
      let task = process.cores[0].tc
      let end = TaskRoom.endOfZombie(task)
      try run(process) { script in
        _ = script.add(upTo: 256) { $0.call(Int32(SYS_prctl), 15 /* PR_SET_NAME */, $0.store(string: process.name)) }
      }
      try attempt("Cannot restore \(process.label)") { () throws(Errno) in
        if end.signal != 0 {
          try endBySignal(leader, end.signal, mask: task.blkSigset)
        } else {
          var program = SyscallProgram()
          program.call(Int32(SYS_rt_sigprocmask), 2 /* SIG_SETMASK */, program.store(task.blkSigset), 0, 8)
          program.call(Int32(SYS_exit_group), .init(end.code))
          try leader.start(program, in: layout.mainSeat)
          waitpid(process.pid, nil, __WALL)
        }
      }
      leader.forget()
    }
    for process in living where process.children.contains(where: \.isZombie) {
      try drainChildSignal(process)
    }
  }

  /// Takes the SIGCHLD that has come of building a process's children: the job got its own long ago.
  func drainChildSignal(_ process: RestoredProcess) throws(Failure) {
    try run(process) { script in
      script.add(upTo: 256) { program in
        let set = program.store(UInt64(1) << UInt64(SIGCHLD - 1))
        let now = program.store((UInt64(0), UInt64(0)))
        program.call(Int32(SYS_rt_sigtimedwait), set, 0, now, 8, tolerant: true)
      }
    }
  }

  private func endBySignal(_ leader: ControlledThread, _ signal: Int32, mask: UInt64) throws(Errno) {
    try leader.with { tracee throws(Errno) in
      try tracee.setSignalMask(mask & ~(1 << UInt64(signal - 1)))
      // SIGKILL ends it wherever it is; of other signals, it dies when it is given them with their default action.
      if signal == SIGKILL {
        kill(leader.tid, SIGKILL)
      } else {
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
}

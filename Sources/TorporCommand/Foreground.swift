import CLinux
import Linux
import Synchronization
import SystemPackage
import Torpor

/// Stands in for a restored job where it was started: passes signals on, stops when it stops, ends when it ends.
enum Foreground {
  /// Waits until the root of the job ends.
  ///
  /// - Returns: its wait status, see wait(2).
  static func wait(for job: RestoredJob) throws(Failure) -> Int32 {
    SignalRelay.start(to: job.rootPID)
    if let namespace = job.namespace { return namespace.wait() }
    while true {
      let status = try attempt("Cannot wait for \(job.rootPID)") { () throws(Errno) in
        try retrying { () throws(Errno) in try nextStatus(of: job.rootPID) }
      }
      guard clinux_wifstopped(status) != 0 else { return status }
      stop(with: job.rootPID, by: status >> 8 & 0xff)
    }
  }

  private static func nextStatus(of pid: ProcessID) throws(Errno) -> Int32 {
    var status: Int32 = 0
    guard waitpid(pid, &status, WUNTRACED) == pid else { throw Errno(rawValue: clinux_errno()) }
    return status
  }

  /// Ctrl-Z has stopped the job, or it has stopped itself: the shell that waits for us shall have its terminal back, and
  /// `fg` shall mean the job.
  private static func stop(with pid: ProcessID, by signal: Int32) {
    guard getsid(pid) == getsid(0), let terminal = try? Descriptor.open("/dev/tty", O_RDWR | O_NOCTTY) else { return }
    let group = getpgid(pid)
    let wantsTerminal = signal == SIGTTIN || signal == SIGTTOU
    if !wantsTerminal || tcgetpgrp(terminal.number) != getpgrp() {
      if tcgetpgrp(terminal.number) == group { give(terminal, to: getpgrp()) }
      raise(SIGSTOP)
    }
    if tcgetpgrp(terminal.number) == getpgrp() { give(terminal, to: group) }
    kill(-group, SIGCONT)
  }

  /// From a group in the background this takes a blocked SIGTTOU. (tcsetpgrp(3))
  private static func give(_ terminal: borrowing Descriptor, to group: ProcessID) {
    var blocked = sigset_t()
    var before = sigset_t()
    sigemptyset(&blocked)
    sigaddset(&blocked, SIGTTOU)
    pthread_sigmask(SIG_BLOCK, &blocked, &before)
    tcsetpgrp(terminal.number, group)
    pthread_sigmask(SIG_SETMASK, &before, nil)
  }
}

/// Passes the signals that torpor gets on to the job.
private enum SignalRelay {
  private static let target = Atomic<Int32>(0)

  static func start(to pid: ProcessID) {
    target.store(pid, ordering: .relaxed)
    for number in [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGALRM, SIGWINCH] {
      signal(number) { number in
        // In the foreground of one terminal the kernel has sent it to the job itself: Ctrl-C reaches a whole group.
        let pid = SignalRelay.target.load(ordering: .relaxed)
        if getpgid(pid) != getpgrp() || number == SIGTERM || number == SIGHUP { kill(pid, number) }
      }
    }
  }
}

import CLinux
import Linux
import SystemPackage

/// Why a traced thread stands still, or that it is no more. ptrace(2), "Stopped states"
public enum Stop: Sendable, Equatable {
  /// It is about to be given this signal.
  case signal(Int32)
  /// `PTRACE_EVENT_STOP`: from an interrupt (signal SIGTRAP) or with its group (SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU).
  case interrupted(signal: Int32)
  /// Another `PTRACE_EVENT`.
  case event(Int32)
  /// At the entry or exit of a system call.
  case systemCall
  case exited(Int32)
  case killed(Int32)

  /// - Parameter status: what waitpid(2) gave.
  public init(status: Int32) {
    if clinux_wifexited(status) != 0 {
      self = .exited(clinux_wexitstatus(status))
    } else if clinux_wifsignaled(status) != 0 {
      self = .killed(clinux_wtermsig(status))
    } else {
      let signal = (status >> 8) & 0xff
      switch status >> 16 {
      case 0: self = signal == SIGTRAP | 0x80 ? .systemCall : .signal(signal)
      case Int32(CLINUX_PTRACE_EVENT_STOP): self = .interrupted(signal: signal)
      case let event: self = .event(event)
      }
    }
  }
}

/// One thread under the control of the thread that made this value; let go at the end of its life.
///
/// All calls must come from one thread of ours: the kernel ties a tracee to the thread that seized it.
public struct Tracee: ~Copyable {
  public let tid: ProcessID

  /// PTRACE_SEIZE: takes control, without a signal and without stopping the thread.
  ///
  /// - Parameter options: PTRACE_O_ flags.
  public init(seizing tid: ProcessID, options: UInt32 = UInt32(CLINUX_PTRACE_O_TRACESYSGOOD)) throws(Errno) {
    self.tid = tid
    try Self.request(CLINUX_PTRACE_SEIZE, tid, 0, UInt(options))
  }

  /// A thread that was born traced, since its parent was and asked for it.
  public init(born tid: ProcessID) { self.tid = tid }

  deinit { _ = clinux_ptrace(CLINUX_PTRACE_DETACH, tid, 0, 0) }

  @discardableResult
  private static func request(
    _ request: Int, _ tid: ProcessID, _ address: UInt, _ data: UInt
  ) throws(Errno) -> Int {
    let result = clinux_ptrace(request, tid, address, data)
    guard result >= 0 else { throw Errno(rawValue: CInt(-result)) }
    return result
  }

  /// PTRACE_INTERRUPT: asks the thread to stop; `wait` tells when it has.
  public borrowing func interrupt() throws(Errno) { try Self.request(CLINUX_PTRACE_INTERRUPT, tid, 0, 0) }

  /// Waits for the thread's next stop.
  public borrowing func wait() throws(Errno) -> Stop {
    var status: Int32 = 0
    try retrying { () throws(Errno) in
      guard waitpid(tid, &status, __WALL) == tid else { throw Errno(rawValue: clinux_errno()) }
    }
    return Stop(status: status)
  }

  /// The thread's next stop if it has come, else nil.
  public borrowing func poll() throws(Errno) -> Stop? {
    var status: Int32 = 0
    let result = waitpid(tid, &status, __WALL | WNOHANG)
    guard result >= 0 else { throw Errno(rawValue: clinux_errno()) }
    return result == 0 ? nil : Stop(status: status)
  }

  /// Lets the thread run on, up to the next system call's entry or exit if asked.
  public borrowing func resume(toSystemCall: Bool = false, signal: Int32 = 0) throws(Errno) {
    try Self.request(
      toSystemCall ? CLINUX_PTRACE_SYSCALL : CLINUX_PTRACE_CONT, tid, 0, UInt(UInt32(bitPattern: signal)))
  }

  /// Lets the thread go; it runs on untraced.
  public consuming func detach(signal: Int32 = 0) throws(Errno) {
    let tid = self.tid
    discard self
    try Self.request(CLINUX_PTRACE_DETACH, tid, 0, UInt(UInt32(bitPattern: signal)))
  }

  /// Gives the thread up without a call: it is dead.
  public consuming func forget() { discard self }

  public borrowing func setOptions(_ options: UInt32) throws(Errno) {
    try Self.request(CLINUX_PTRACE_SETOPTIONS, tid, 0, UInt(options))
  }

  /// What came with the last event: for an exec the former thread ID, for a clone the new one.
  public borrowing func eventMessage() throws(Errno) -> UInt {
    var message: UInt = 0
    _ = try withUnsafeMutablePointer(to: &message) { pointer throws(Errno) in
      try Self.request(CLINUX_PTRACE_GETEVENTMSG, tid, 0, UInt(bitPattern: pointer))
    }
    return message
  }

  /// The signal information of the stop, 128 bytes. (siginfo_t)
  public borrowing func signalInformation() throws(Errno) -> siginfo_t {
    var information = siginfo_t()
    _ = try withUnsafeMutablePointer(to: &information) { pointer throws(Errno) in
      try Self.request(CLINUX_PTRACE_GETSIGINFO, tid, 0, UInt(bitPattern: pointer))
    }
    return information
  }

  public borrowing func registers() throws(Errno) -> Registers {
    var registers = Registers()
    var vector = iovec()
    _ = try withUnsafeMutablePointer(to: &registers.raw) { raw throws(Errno) in
      vector.iov_base = UnsafeMutableRawPointer(raw)
      vector.iov_len = MemoryLayout<user_regs_struct>.size
      _ = try withUnsafeMutablePointer(to: &vector) { vector throws(Errno) in
        try Self.request(CLINUX_PTRACE_GETREGSET, tid, UInt(NT_PRSTATUS), UInt(bitPattern: vector))
      }
    }
    return registers
  }

  public borrowing func setRegisters(_ registers: Registers) throws(Errno) {
    var raw = registers.raw
    var vector = iovec()
    _ = try withUnsafeMutablePointer(to: &raw) { raw throws(Errno) in
      vector.iov_base = UnsafeMutableRawPointer(raw)
      vector.iov_len = MemoryLayout<user_regs_struct>.size
      _ = try withUnsafeMutablePointer(to: &vector) { vector throws(Errno) in
        try Self.request(CLINUX_PTRACE_SETREGSET, tid, UInt(NT_PRSTATUS), UInt(bitPattern: vector))
      }
    }
  }

  /// Floating-point, vector and other extended registers, in the layout of the XSAVE instruction, as large as the CPU's
  /// features make it. (NT_X86_XSTATE)
  public borrowing func extendedState() throws(Errno) -> [UInt8] {
    var failure: Errno?
    // The kernel says how much it wrote; the largest known area (with AMX tiles) is 11 KiB.
    let state = [UInt8](unsafeUninitializedCapacity: 16384) { buffer, count in
      var vector = iovec(iov_base: UnsafeMutableRawPointer(buffer.baseAddress), iov_len: 16384)
      do throws(Errno) {
        _ = try withUnsafeMutablePointer(to: &vector) { vector throws(Errno) in
          try Self.request(
            CLINUX_PTRACE_GETREGSET, tid, UInt(NT_X86_XSTATE), UInt(bitPattern: vector))
        }
        count = vector.iov_len
      } catch { failure = error }
    }
    if let failure { throw failure }
    return state
  }

  public borrowing func setExtendedState(_ state: [UInt8]) throws(Errno) {
    var state = state
    try state.withMutableBytes { bytes throws(Errno) in
      var vector = iovec(iov_base: bytes.baseAddress, iov_len: bytes.count)
      _ = try withUnsafeMutablePointer(to: &vector) { vector throws(Errno) in
        try Self.request(CLINUX_PTRACE_SETREGSET, tid, UInt(NT_X86_XSTATE), UInt(bitPattern: vector))
      }
    }
  }

  /// The thread's blocked signals; inside a call that has set a mask for its duration, the mask before that.
  public borrowing func signalMask() throws(Errno) -> UInt64 {
    var mask: UInt64 = 0
    _ = try withUnsafeMutablePointer(to: &mask) { pointer throws(Errno) in
      try Self.request(CLINUX_PTRACE_GETSIGMASK, tid, 8, UInt(bitPattern: pointer))
    }
    return mask
  }

  public borrowing func setSignalMask(_ mask: UInt64) throws(Errno) {
    var mask = mask
    _ = try withUnsafeMutablePointer(to: &mask) { pointer throws(Errno) in
      try Self.request(CLINUX_PTRACE_SETSIGMASK, tid, 8, UInt(bitPattern: pointer))
    }
  }

  /// The thread's restartable sequence area, all zero where it has registered none. (Linux 5.13)
  public borrowing func restartableSequence() throws(Errno) -> clinux_rseq_configuration {
    var configuration = clinux_rseq_configuration()
    _ = try withUnsafeMutablePointer(to: &configuration) { pointer throws(Errno) in
      try Self.request(
        CLINUX_PTRACE_GET_RSEQ_CONFIGURATION, tid, UInt(MemoryLayout<clinux_rseq_configuration>.size),
        UInt(bitPattern: pointer))
    }
    return configuration
  }

  /// Signals that wait for the thread, or for its whole process, in their order, without taking them.
  public borrowing func pendingSignals(ofProcess: Bool) throws(Errno) -> [siginfo_t] {
    var result: [siginfo_t] = []
    let buffer = UnsafeMutablePointer<siginfo_t>.allocate(capacity: 32)
    defer { buffer.deallocate() }
    while true {
      var argument = clinux_peeksiginfo(offset: UInt64(result.count), flags: ofProcess ? 1 : 0, count: 32)
      let count = try withUnsafeMutablePointer(to: &argument) { pointer throws(Errno) in
        try Self.request(CLINUX_PTRACE_PEEKSIGINFO, tid, UInt(bitPattern: pointer), UInt(bitPattern: buffer))
      }
      if count == 0 { return result }
      result += UnsafeBufferPointer(start: buffer, count: count)
    }
  }
}

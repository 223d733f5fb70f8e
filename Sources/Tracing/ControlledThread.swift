import CLinux
import Linux
import SystemPackage

/// A piece of a target's memory in which one thread runs its programs.
public struct Seat: Sendable {
  public var address: UInt64
  public var size: Int
  public init(address: UInt64, size: Int) {
    self.address = address
    self.size = size
  }
}

/// A traced thread that stands still but when it runs our programs.
///
/// While borrowed from a running job it has a way home: should Torpor die, the thread ends its program, and the signal
/// frame in its seat puts it back to where it was (`prepareReturn`).
public final class ControlledThread {
  public let process: ProcessID
  public let tid: ProcessID
  private var tracee: Tracee?

  /// The registers with which the thread came to its stop; the ones it gets back at its release.
  public var registers: Registers
  /// The signal mask it gets back at its release.
  public var signalMask: UInt64
  /// Set while the stop was one of its whole group: the signal that stopped it.
  public var stoppedBySignal: Int32?

  /// The signal with which the thread stops itself at a program's end. It is one that nothing comes of when nobody is
  /// tracing: ignored, by default or by the job's choice. With 0 there is no such signal: the thread is then stopped at
  /// every call, which costs more and needs none.
  public var endSignal: Int32
  private var returnFrame: UInt64 = 0
  private var interpreter: UInt64 = 0
  private var running: (program: SyscallProgram, address: UInt64)?
  /// The job's own signals that met the thread in the middle of a program.
  private var heldSignals: [siginfo_t] = []

  public init(
    process: ProcessID, tracee: consuming Tracee, registers: Registers, signalMask: UInt64, endSignal: Int32 = SIGURG
  ) {
    self.process = process
    tid = tracee.tid
    self.registers = registers
    self.signalMask = signalMask
    self.endSignal = endSignal
    self.tracee = consume tracee
  }

  /// Runs `body` with the tracee. A thread that has been released has none left: that is a mistake of ours.
  public func with<Value>(_ body: (borrowing Tracee) throws(Errno) -> Value) throws(Errno) -> Value {
    switch tracee {
    case .some(let tracee): return try body(tracee)
    case .none: throw .noSuchProcess
    }
  }

  // MARK: Programs

  /// Says where the interpreter lies in the thread's address space.
  public func useInterpreter(at address: UInt64) { interpreter = address }

  /// Lays the frame into the end of `seat` that takes the thread home if Torpor dies during one of its programs.
  ///
  /// - Returns: what is left of the seat.
  public func prepareReturn(in seat: Seat, extendedState: [UInt8]) throws(Errno) -> Seat {
    let size = SignalFrame.size(extendedState: extendedState.count)
    let address = (seat.address + UInt64(seat.size - size)) & ~63
    let frame = SignalFrame.bytes(
      at: address, registers: registers.settled, extendedState: extendedState, signalMask: signalMask)
    try frame.withBytes { bytes throws(Errno) in try writeMemory(of: tid, at: address, from: bytes) }
    returnFrame = address
    return Seat(address: seat.address, size: Int(address - seat.address))
  }

  /// Starts `program`; `finish` waits for its end. Several threads may run theirs at the same time.
  public func start(_ program: SyscallProgram, in seat: Seat) throws(Errno) {
    guard program.size + SyscallProgram.recordSize <= seat.size else { throw .noMemory }
    var address = seat.address
    var count = program.count
    if returnFrame != 0 {
      // The way home sets the alternate stack too: the thread's own is asked for first.
      var prologue = SyscallProgram()
      let stack = SyscallProgram.Argument(returnFrame + UInt64(SignalFrame.alternateStackOffset))
      prologue.call(Int32(SYS_sigaltstack), 0, stack)
      try write(prologue.placed(at: address), at: address)
      address += UInt64(SyscallProgram.recordSize)
      count += 1
    }
    try write(program.placed(at: address), at: address)
    let start = Interpreter.registers(
      from: registers, code: interpreter, records: seat.address, count: count, process: process, thread: tid,
      signal: endSignal, frame: returnFrame)
    try with { tracee throws(Errno) in
      try tracee.setSignalMask(endSignal == 0 ? .max : ~(1 << UInt64(endSignal - 1)))
      try tracee.setRegisters(start)
      try tracee.resume(toSystemCall: endSignal == 0)
    }
    running = (program, address)
  }

  /// Whether a program has been started and not finished.
  public var isRunning: Bool { running != nil }

  /// Waits for the end of the program that was started.
  ///
  /// - Throws: where a call of it failed that was not marked as tolerant; the message names the call.
  @discardableResult
  public func finish() throws(Failure) -> Results {
    guard let (program, address) = running else {
      throw Failure("Cannot control \(tid)", why: "it runs no program")
    }
    running = nil
    let left: Int
    var bytes = [UInt8](repeating: 0, count: program.size)
    do throws(Errno) {
      left = try waitForEnd()
      try bytes.withMutableBytes { buffer throws(Errno) in try readMemory(of: tid, at: address, into: buffer) }
    } catch { throw Failure("Cannot control thread \(tid) of process \(process)", error) }
    let results = Results(bytes: bytes, records: program.count)
    if let failed = firstFailure(program, results, left: left) {
      throw Failure(
        "Cannot control thread \(tid) of process \(process)",
        why: "\(program.describe(failed)) failed: \(Errno(rawValue: CInt(-results[failed])).words)")
    }
    return results
  }

  /// Runs a program from its start to its end.
  @discardableResult
  public func run(_ program: SyscallProgram, in seat: Seat) throws(Failure) -> Results {
    try attempt("Cannot control thread \(tid) of process \(process)") { () throws(Errno) in
      try start(program, in: seat)
    }
    return try finish()
  }

  private func firstFailure(_ program: SyscallProgram, _ results: Results, left: Int) -> Int? {
    guard left > 0 || program.count > 0 else { return nil }
    let last = program.count - left - 1
    guard last >= 0, (-4095 ... -1).contains(results[last]) else { return nil }
    return program.isTolerant(last) ? nil : last
  }

  private func write(_ bytes: [UInt8], at address: UInt64) throws(Errno) {
    try bytes.withBytes { bytes throws(Errno) in try writeMemory(of: tid, at: address, from: bytes) }
  }

  /// Waits until the thread has stopped itself; gives the number of calls that were not made.
  private func waitForEnd() throws(Errno) -> Int {
    while true {
      let stop = try with { tracee throws(Errno) in try tracee.wait() }
      switch stop {
      case .signal(endSignal), .systemCall:
        let registers = try with { tracee throws(Errno) in try tracee.registers() }
        let isEntry = stop == .systemCall && registers.systemCallResult == -Int64(ENOSYS)
        if registers.programCounter == interpreter + Interpreter.stopOffset, !isEntry {
          return Interpreter.remaining(registers)
        }
        if stop == .systemCall { try resumeProgram() } else { try holdSignal() }
      case .signal(SIGSEGV), .signal(SIGBUS), .signal(SIGILL):
        throw .badAddress
      case .signal:
        try holdSignal()
      case .exited, .killed:
        tracee.take()?.forget()
        throw .noSuchProcess
      case .interrupted, .event:
        try resumeProgram()
      }
    }
  }

  private func resumeProgram() throws(Errno) {
    try with { tracee throws(Errno) in try tracee.resume(toSystemCall: endSignal == 0) }
  }

  /// A signal of the job's own has come: it is taken now and given back at the release.
  private func holdSignal() throws(Errno) {
    heldSignals.append(try with { tracee throws(Errno) in try tracee.signalInformation() })
    try resumeProgram()
  }

  // MARK: Single calls

  /// Makes one call through the `syscall` instruction at `address` and catches the thread at its exit.
  ///
  /// - Returns: what the call returned; the thread stands behind the instruction.
  public func callOnce(_ number: Int32, _ arguments: [UInt64], at address: UInt64) throws(Errno) -> UInt64 {
    try with { tracee throws(Errno) in
      try tracee.setSignalMask(.max)
      try tracee.setRegisters(registers.calling(number, arguments, at: address))
      var stopsLeft = 2
      while stopsLeft > 0 {
        try tracee.resume(toSystemCall: true)
        switch try tracee.wait() {
        case .systemCall: stopsLeft -= 1
        case .exited, .killed: throw .noSuchProcess
        case .signal(SIGSEGV), .signal(SIGBUS), .signal(SIGILL): throw .badAddress
        case .signal, .interrupted, .event: continue
        }
      }
    }
    let result = try with { tracee throws(Errno) in try tracee.registers() }.systemCallResult
    guard result >= 0 || result < -4095 else { throw Errno(rawValue: CInt(-result)) }
    return UInt64(bitPattern: result)
  }

  /// Makes one call through the interpreter's own `syscall` instruction, as when the last call takes the
  /// interpreter away.
  public func callOnceInInterpreter(_ number: Int32, _ arguments: [UInt64]) throws(Errno) -> UInt64 {
    try callOnce(number, arguments, at: interpreter + Interpreter.syscallOffset)
  }

  // MARK: Release

  /// Gives the thread back its registers and mask; it still stands.
  public func putBack() throws(Errno) {
    try with { tracee throws(Errno) in
      try tracee.setRegisters(registers)
      try tracee.setSignalMask(signalMask)
    }
    for information in heldSignals {
      var information = information
      _ = try withUnsafeMutableBytes(of: &information) { bytes throws(Errno) in
        try systemCall(
          Int32(SYS_rt_tgsigqueueinfo), Int(process), Int(tid), Int(bytes.loadUnaligned(as: Int32.self)),
          Int(bitPattern: bytes.baseAddress))
      }
    }
    heldSignals = []
  }

  /// Lets the thread go on untraced.
  public func detach() throws(Errno) {
    guard let tracee = tracee.take() else { return }
    try tracee.detach()
  }

  /// Forgets a thread that is dead.
  public func forget() { tracee.take()?.forget() }
}

extension SyscallProgram {
  func isTolerant(_ index: Int) -> Bool { records[index * 8] >> 32 & 1 == 1 }
}

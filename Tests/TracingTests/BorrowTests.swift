import CLinux
import Glibc
import Linux
import Testing

@testable import Tracing

/// Starts `sleep`, which blocks in clock_nanosleep, and gives its PID.
private func startSleeper(_ seconds: String = "30") throws -> ProcessID {
  var pid: pid_t = 0
  var arguments: [UnsafeMutablePointer<CChar>?] = [strdup("sleep"), strdup(seconds), nil]
  defer { for argument in arguments { free(argument) } }
  try #require(posix_spawnp(&pid, "sleep", nil, nil, &arguments, Glibc.environ) == 0)
  return pid
}

@Test func aBorrowedProcessRunsAProgramAndGoesOnAsBefore() throws {
  let pid = try startSleeper("1")
  usleep(100_000)
  let process = try ProcDirectory(pid)
  let before = try readMemoryMap(of: process, withFlags: false).map(\.range)
  let tracee = try Tracee(seizing: pid)
  try tracee.interrupt()
  #expect(try tracee.wait() == .interrupted(signal: SIGTRAP))
  let registers = try tracee.registers()
  #expect(registers.isRestartPending)
  let state = try tracee.extendedState()
  let mask = try tracee.signalMask()
  let thread = ControlledThread(process: pid, tracee: tracee, registers: registers, signalMask: mask)
  let memory = try process.open("mem", O_RDWR)
  let vdso = try #require(try readMemoryMap(of: process, withFlags: false).first { $0.name == "[vdso]" })
  let workspace = try BorrowedWorkspace(thread: thread, memory: memory, vdso: vdso.range, seats: 1, seatSize: 16384)
  let seat = try thread.prepareReturn(in: workspace.seat(0), extendedState: state)
  var program = SyscallProgram()
  let pidCall = program.call(Int32(SYS_getpid))
  let parentCall = program.call(Int32(SYS_getppid))
  let failing = program.call(Int32(SYS_close), 9999, tolerant: true)
  let offset = program.reserve(32)
  let action = program.call(Int32(SYS_rt_sigaction), 10, 0, .data(offset), 8)
  let results = try thread.run(program, in: seat)
  #expect(results[pidCall] == Int64(pid))
  #expect(results[parentCall] == Int64(getpid()))
  #expect(results[failing] == -Int64(EBADF))
  #expect(results[action] == 0)
  try workspace.remove()
  try thread.detach()
  #expect(try readMemoryMap(of: process, withFlags: false).map(\.range) == before)
  var status: Int32 = 0
  waitpid(pid, &status, 0)
  #expect(status == 0)
}

@Test func aBlankProcessRunsProgramsAndDiesWithItsOwner() throws {
  let blank = try BlankProcess.start(pid: nil, base: 0x2000_0000)
  var program = SyscallProgram()
  let call = program.call(Int32(SYS_getpid))
  let results = try blank.thread.run(program, in: blank.layout.mainSeat)
  #expect(results[call] == Int64(blank.thread.tid))
  kill(blank.thread.tid, SIGKILL)
  waitpid(blank.thread.tid, nil, __WALL)
  blank.thread.forget()
}

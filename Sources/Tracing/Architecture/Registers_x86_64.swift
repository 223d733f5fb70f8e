#if arch(x86_64)
import CLinux
import Linux

/// The general registers of a stopped thread, as `PTRACE_GETREGSET` with `NT_PRSTATUS` gives them.
/// (struct user_regs_struct, sys/user.h)
public struct Registers: Sendable {
  public var raw = user_regs_struct()

  public init() {}

  public var programCounter: UInt64 {
    get { UInt64(raw.rip) }
    set { raw.rip = UInt64(newValue) }
  }
  public var stackPointer: UInt64 { UInt64(raw.rsp) }

  /// The number of the system call under way, or nil in user code.
  public var systemCallUnderWay: Int64? {
    let number = Int64(bitPattern: UInt64(raw.orig_rax))
    return number >= 0 ? number : nil
  }

  /// What the call under way would return, as the kernel left it: a result or -errno, also the kernel's own
  /// ERESTART codes that no program sees.
  public var systemCallResult: Int64 { Int64(bitPattern: UInt64(raw.rax)) }

  /// Whether the kernel, left to itself, would make the call under way again, or has a restart block for it.
  /// (ERESTARTSYS 512, ERESTARTNOINTR 513, ERESTARTNOHAND 514, ERESTART_RESTARTBLOCK 516: linux/errno.h)
  public var isRestartPending: Bool {
    guard systemCallUnderWay != nil else { return false }
    switch systemCallResult {
    case -512, -513, -514, -516: return true
    default: return false
    }
  }

  /// Whether the call under way ended with a plain EINTR.
  public var isInterrupted: Bool { systemCallUnderWay != nil && systemCallResult == -Int64(EINTR) }

  /// Whether the thread runs 64-bit code; the other code segment is that of 32-bit programs.
  /// (__USER_CS 0x33, __USER32_CS 0x23: arch/x86/include/asm/segment.h)
  public var is64Bit: Bool { raw.cs == 0x33 }

  /// Sets the call under way to be made again from its start.
  ///
  /// `syscall` is two bytes long, and the kernel left the call's arguments in their registers.
  public mutating func reissueSystemCall() {
    raw.rax = raw.orig_rax
    raw.rip &-= 2
    raw.orig_rax = UInt64.max
  }

  /// The registers with which the thread goes on from here without the kernel's restart logic: an interrupted
  /// call is made again.
  public var settled: Registers {
    var result = self
    if isRestartPending { result.reissueSystemCall() }
    result.raw.orig_rax = UInt64.max
    return result
  }

  /// The registers that make one system call at `address`, where a `syscall` instruction lies.
  public func calling(_ number: Int32, _ arguments: [UInt64], at address: UInt64) -> Registers {
    var result = self
    func argument(_ index: Int) -> UInt64 { index < arguments.count ? arguments[index] : 0 }
    result.raw.rax = UInt64(number)
    result.raw.rdi = argument(0)
    result.raw.rsi = argument(1)
    result.raw.rdx = argument(2)
    result.raw.r10 = argument(3)
    result.raw.r8 = argument(4)
    result.raw.r9 = argument(5)
    result.raw.rip = address
    result.raw.orig_rax = UInt64.max
    result.raw.eflags &= ~Self.trapFlag
    return result
  }

  /// Whether these two bytes are the instruction that makes a system call.
  public static func isSystemCall(_ first: UInt8, _ second: UInt8) -> Bool { first == 0x0f && second == 0x05 }

  /// The trap flag, which would stop the thread after each instruction.
  static let trapFlag: UInt64 = 0x100
}
#endif

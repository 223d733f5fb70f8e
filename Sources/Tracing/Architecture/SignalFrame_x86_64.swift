#if arch(x86_64)
import CLinux
import Linux

/// The frame from which `rt_sigreturn` puts a whole thread back: registers, flags, signal mask, alternate stack and the
/// full extended state. (struct rt_sigframe without its first word, arch/x86/include/asm/sigframe.h)
enum SignalFrame {
  /// Where in the frame its `stack_t` lies. `rt_sigreturn` sets the alternate stack from there, so a program's first
  /// call writes the thread's own into it.
  static let alternateStackOffset = 16
  /// struct ucontext, and up to the next boundary of 64 bytes, which XRSTOR needs.
  private static let extendedStateOffset = 320

  static func size(extendedState: Int) -> Int { extendedStateOffset + extendedState + 4 }

  /// - Parameters:
  ///   - address: where it will lie in the target, a multiple of 64.
  ///   - extendedState: what `PTRACE_GETREGSET` with `NT_X86_XSTATE` gave.
  static func bytes(at address: UInt64, registers: Registers, extendedState: [UInt8], signalMask: UInt64) -> [UInt8] {
    var frame = [UInt8](repeating: 0, count: size(extendedState: extendedState.count))
    let r = registers.raw
    frame.withUnsafeMutableBytes { bytes in
      func store<T>(_ value: T, _ offset: Int) { bytes.storeBytes(of: value, toByteOffset: offset, as: T.self) }
      // UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS
      store(UInt64(0x7), 0)
      // struct sigcontext starts at 40: r8...r15, di, si, bp, bx, dx, ax, cx, sp, ip, flags.
      let words: [UInt64] = [
        r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15, r.rdi, r.rsi, r.rbp, r.rbx, r.rdx, r.rax, r.rcx, r.rsp,
        r.rip, r.eflags,
      ].map { UInt64($0) }
      for (index, word) in words.enumerated() { store(word, 40 + 8 * index) }
      store(UInt16(truncatingIfNeeded: r.cs), 184)
      store(UInt16(truncatingIfNeeded: r.ss), 190)
      store(address + UInt64(extendedStateOffset), 224)
      store(signalMask, 296)
      for index in extendedState.indices { bytes[extendedStateOffset + index] = extendedState[index] }
      describeExtendedState(
        UnsafeMutableRawBufferPointer(rebasing: bytes[extendedStateOffset...]), size: extendedState.count)
    }
    return frame
  }

  /// struct _fpx_sw_bytes (asm/sigcontext.h), which tells the kernel that the whole XSAVE area is there.
  private static func describeExtendedState(_ area: UnsafeMutableRawBufferPointer, size: Int) {
    // The register set of ptrace has the mask of enabled components in the first of the software bytes.
    let components = area.loadUnaligned(fromByteOffset: 464, as: UInt64.self)
    area.storeBytes(of: 0x4650_5853, toByteOffset: 464, as: UInt32.self)  // FP_XSTATE_MAGIC1
    area.storeBytes(of: UInt32(size + 4), toByteOffset: 468, as: UInt32.self)
    area.storeBytes(of: components, toByteOffset: 472, as: UInt64.self)
    area.storeBytes(of: UInt32(size), toByteOffset: 480, as: UInt32.self)
    area.storeBytes(of: 0x4650_5845, toByteOffset: size, as: UInt32.self)  // FP_XSTATE_MAGIC2
  }
}
#endif

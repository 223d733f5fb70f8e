#if arch(x86_64)
import CLinux
import Linux

/// The machine code that runs a syscall program: the only code of ours that ever runs in a target.
///
/// Registers: r12 the next record, r13 how many are left, r14d the process, ebx the thread, ebp the signal with which
/// the thread stops itself at the end, r15 the signal frame that puts the thread back should nobody be tracing
/// it then. It uses no stack.
enum Interpreter {
  static let code: [UInt8] = [
    0x4d, 0x85, 0xed,  //                    loop: test r13, r13
    0x74, 0x40,  //                                jz   end
    0x49, 0x8b, 0x04, 0x24,  //                    mov  rax, [r12]
    0x49, 0x8b, 0x7c, 0x24, 0x08,  //              mov  rdi, [r12+8]
    0x49, 0x8b, 0x74, 0x24, 0x10,  //              mov  rsi, [r12+16]
    0x49, 0x8b, 0x54, 0x24, 0x18,  //              mov  rdx, [r12+24]
    0x4d, 0x8b, 0x54, 0x24, 0x20,  //              mov  r10, [r12+32]
    0x4d, 0x8b, 0x44, 0x24, 0x28,  //              mov  r8, [r12+40]
    0x4d, 0x8b, 0x4c, 0x24, 0x30,  //              mov  r9, [r12+48]
    0x0f, 0x05,  //                                syscall
    0x49, 0x89, 0x44, 0x24, 0x38,  //              mov  [r12+56], rax
    0x49, 0x83, 0xc4, 0x40,  //                    add  r12, 64
    0x49, 0xff, 0xcd,  //                          dec  r13
    0x48, 0x3d, 0x00, 0xf0, 0xff, 0xff,  //        cmp  rax, -4096
    0x76, 0xc3,  //                                jbe  loop
    0x41, 0xf6, 0x44, 0x24, 0xc4, 0x01,  //        test byte [r12-60], 1
    0x75, 0xbb,  //                                jnz  loop
    0x44, 0x89, 0xf7,  //                    end:  mov  edi, r14d
    0x89, 0xde,  //                                mov  esi, ebx
    0x89, 0xea,  //                                mov  edx, ebp
    0xb8, 0xea, 0x00, 0x00, 0x00,  //              mov  eax, SYS_tgkill
    0x0f, 0x05,  //                                syscall
    0x4c, 0x89, 0xfc,  //                    stop: mov  rsp, r15
    0xb8, 0x0f, 0x00, 0x00, 0x00,  //              mov  eax, SYS_rt_sigreturn
    0x0f, 0x05,  //                                syscall
  ]

  /// The ELF number of the machine.
  static let machine = EM_X86_64

  /// Where the thread stands, counted from the start of the code, after it has stopped itself.
  static let stopOffset: UInt64 = 0x53
  /// A `syscall` instruction in the code, for a single call that is caught at its exit.
  static let syscallOffset: UInt64 = 0x27

  /// The registers with which a thread starts on a program.
  ///
  /// - Parameter base: the thread's registers, for the segment registers and the thread pointer.
  static func registers(
    from base: Registers, code: UInt64, records: UInt64, count: Int, process: ProcessID, thread: ProcessID,
    signal: Int32, frame: UInt64
  ) -> Registers {
    var result = base
    result.raw.rip = code
    result.raw.r12 = records
    result.raw.r13 = UInt64(count)
    result.raw.r14 = UInt64(UInt32(bitPattern: process))
    result.raw.rbx = UInt64(UInt32(bitPattern: thread))
    result.raw.rbp = UInt64(UInt32(bitPattern: signal))
    result.raw.r15 = frame
    result.raw.orig_rax = UInt64.max
    result.raw.eflags &= ~Registers.trapFlag
    return result
  }

  /// How many records a stopped thread has not executed.
  static func remaining(_ registers: Registers) -> Int { Int(registers.raw.r13) }
}

/// One system call, and after it the way back to where the thread was, for the spare bytes of the vDSO.
///
/// Torpor catches the thread at the exit of the call. If Torpor is dead by then, the rest puts back the signal mask
/// and the registers that the calls have changed, from constants, and jumps back. It touches neither the stack nor the
/// flags nor any vector register, so a signal that arrives in the middle of it does no harm.
enum Trampoline {
  /// - Parameter resume: the registers the thread shall have, interrupted calls already set to be made again.
  static func code(resume: Registers, signalMask: UInt64) -> [UInt8] {
    var code: [UInt8] = [
      0x0f, 0x05,  //                                syscall
      0xb8, 0x0e, 0x00, 0x00, 0x00,  //              mov  eax, SYS_rt_sigprocmask
      0xbf, 0x02, 0x00, 0x00, 0x00,  //              mov  edi, SIG_SETMASK
      0x48, 0x8d, 0x35, 0x72, 0x00, 0x00, 0x00,  //  lea  rsi, [mask]
      0x31, 0xd2,  //                                xor  edx, edx
      0x41, 0xba, 0x08, 0x00, 0x00, 0x00,  //        mov  r10d, 8
      0x0f, 0x05,  //                                syscall
    ]
    func load(_ prefix: UInt8, _ opcode: UInt8, _ value: UInt64) {
      code += [prefix, opcode]
      withUnsafeBytes(of: value.littleEndian) { code += $0 }
    }
    load(0x48, 0xb8, resume.raw.rax)
    load(0x48, 0xb9, resume.raw.rcx)
    load(0x48, 0xba, resume.raw.rdx)
    load(0x48, 0xbe, resume.raw.rsi)
    load(0x48, 0xbf, resume.raw.rdi)
    load(0x49, 0xb8, resume.raw.r8)
    load(0x49, 0xb9, resume.raw.r9)
    load(0x49, 0xba, resume.raw.r10)
    load(0x49, 0xbb, resume.raw.r11)
    code += [0xff, 0x25, 0x00, 0x00, 0x00, 0x00]  // jmp [target]
    withUnsafeBytes(of: resume.raw.rip) { code += $0 }
    withUnsafeBytes(of: signalMask) { code += $0 }
    return code
  }

  static let length = 0x8d
}
#endif

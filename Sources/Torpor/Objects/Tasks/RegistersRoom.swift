#if arch(x86_64)
import CLinux
import Images
import Linux
import Tracing

/// The registers of a thread in the image's form: general ones, and the parts of the XSAVE area one by one.
enum RegistersRoom {
  // MARK: Save

  static func save(_ registers: Registers, _ extendedState: [UInt8], clearTID: UInt64) -> ThreadInfoX86 {
    var info = ThreadInfoX86()
    info.clearTidAddr_p = clearTID
    info.gpregs = general(registers.settled)
    info.fpregs = extended(extendedState)
    return info
  }

  private static func general(_ registers: Registers) -> UserX86RegsEntry {
    let r = registers.raw
    var entry = UserX86RegsEntry()
    (entry.r15, entry.r14, entry.r13, entry.r12) = (UInt64(r.r15), UInt64(r.r14), UInt64(r.r13), UInt64(r.r12))
    (entry.r11, entry.r10, entry.r9, entry.r8) = (UInt64(r.r11), UInt64(r.r10), UInt64(r.r9), UInt64(r.r8))
    (entry.bp, entry.bx, entry.ax, entry.cx) = (UInt64(r.rbp), UInt64(r.rbx), UInt64(r.rax), UInt64(r.rcx))
    (entry.dx, entry.si, entry.di, entry.sp) = (UInt64(r.rdx), UInt64(r.rsi), UInt64(r.rdi), UInt64(r.rsp))
    (entry.origAx, entry.ip, entry.flags) = (UInt64(r.orig_rax), UInt64(r.rip), UInt64(r.eflags))
    (entry.cs, entry.ss, entry.ds, entry.es) = (UInt64(r.cs), UInt64(r.ss), UInt64(r.ds), UInt64(r.es))
    (entry.fs, entry.gs, entry.fsBase, entry.gsBase) =
      (UInt64(r.fs), UInt64(r.gs), UInt64(r.fs_base), UInt64(r.gs_base))
    entry.mode = .native
    return entry
  }

  private static func extended(_ state: [UInt8]) -> UserX86FpregsEntry {
    var entry = UserX86FpregsEntry()
    state.withUnsafeBytes { area in
      func word16(_ offset: Int) -> UInt32 { UInt32(area.loadUnaligned(fromByteOffset: offset, as: UInt16.self)) }
      func word32(_ offset: Int) -> UInt32 { area.loadUnaligned(fromByteOffset: offset, as: UInt32.self) }
      func word64(_ offset: Int) -> UInt64 { area.loadUnaligned(fromByteOffset: offset, as: UInt64.self) }
      (entry.cwd, entry.swd, entry.twd, entry.fop) = (word16(0), word16(2), word16(4), word16(6))
      (entry.rip, entry.rdp) = (word64(8), word64(16))
      (entry.mxcsr, entry.mxcsrMask) = (word32(24), word32(28))
      entry.stSpace = (0..<32).map { word32(32 + 4 * $0) }
      entry.xmmSpace = (0..<64).map { word32(160 + 4 * $0) }
      guard area.count >= 576 else { return }
      var rest = UserX86XsaveEntry()
      rest.xstateBv = word64(512)
      func words32(_ component: XSaveComponent) -> [UInt32] {
        guard let part = component.range, part.upperBound <= area.count else { return [] }
        return stride(from: part.lowerBound, to: part.upperBound, by: 4).map { word32($0) }
      }
      func words64(_ component: XSaveComponent) -> [UInt64] {
        guard let part = component.range, part.upperBound <= area.count else { return [] }
        return stride(from: part.lowerBound, to: part.upperBound, by: 8).map { word64($0) }
      }
      rest.ymmhSpace = words32(.avx)
      rest.opmaskReg = words64(.opmask)
      rest.zmmUpper = words64(.zmmUpper)
      rest.hi16Zmm = words64(.hi16ZMM)
      rest.pkru = words32(.pkru)
      entry.xsave = rest
    }
    return entry
  }

  /// Whether the thread uses parts of the XSAVE area for which the image has no field.
  static func hasOtherComponents(_ state: [UInt8]) -> Bool {
    guard state.count >= 576 else { return false }
    let inUse = state.withUnsafeBytes { $0.loadUnaligned(fromByteOffset: 512, as: UInt64.self) }
    return inUse & ~XSaveComponent.known != 0
  }

  // MARK: Restore

  /// - Parameter base: registers of a thread of this machine, for what the image does not tell.
  static func registers(_ entry: UserX86RegsEntry) -> Registers {
    var registers = Registers()
    (registers.raw.r15, registers.raw.r14, registers.raw.r13, registers.raw.r12) =
      (entry.r15, entry.r14, entry.r13, entry.r12)
    (registers.raw.r11, registers.raw.r10, registers.raw.r9, registers.raw.r8) =
      (entry.r11, entry.r10, entry.r9, entry.r8)
    (registers.raw.rbp, registers.raw.rbx, registers.raw.rax, registers.raw.rcx) =
      (entry.bp, entry.bx, entry.ax, entry.cx)
    (registers.raw.rdx, registers.raw.rsi, registers.raw.rdi, registers.raw.rsp) =
      (entry.dx, entry.si, entry.di, entry.sp)
    (registers.raw.rip, registers.raw.eflags) = (entry.ip, entry.flags)
    (registers.raw.cs, registers.raw.ss, registers.raw.ds, registers.raw.es) = (entry.cs, entry.ss, entry.ds, entry.es)
    (registers.raw.fs, registers.raw.gs) = (entry.fs, entry.gs)
    (registers.raw.fs_base, registers.raw.gs_base) = (entry.fsBase, entry.gsBase)
    // Images that CRIU wrote have the original call here, already wound back: nothing is left to be made again.
    registers.raw.orig_rax = UInt64.max
    return registers
  }

  /// The XSAVE area of this machine with the registers of the image in it.
  ///
  /// - Parameter template: the area of any thread of this machine.
  /// - Returns: nil where the image has components that this CPU lacks.
  static func extendedState(_ entry: UserX86FpregsEntry, template: [UInt8]) -> [UInt8]? {
    var state = template
    var fits = true
    state.withUnsafeMutableBytes { area in
      func store<T: FixedWidthInteger>(_ value: T, _ offset: Int) {
        area.storeBytes(of: value, toByteOffset: offset, as: T.self)
      }
      for (offset, value) in [(0, entry.cwd), (2, entry.swd), (4, entry.twd), (6, entry.fop)] {
        store(UInt16(truncatingIfNeeded: value), offset)
      }
      store(entry.rip, 8)
      store(entry.rdp, 16)
      store(entry.mxcsr, 24)
      for (index, word) in entry.stSpace.prefix(32).enumerated() { store(word, 32 + 4 * index) }
      for (index, word) in entry.xmmSpace.prefix(64).enumerated() { store(word, 160 + 4 * index) }
      guard area.count >= 576 else {
        fits = !entry.hasXsave || entry.xsave.xstateBv & ~3 == 0
        return
      }
      let rest = entry.xsave
      store(entry.hasXsave ? rest.xstateBv & XSaveComponent.known : 3, 512)
      func put<T: FixedWidthInteger>(_ words: [T], _ component: XSaveComponent) {
        guard !words.isEmpty else { return }
        guard let part = component.range, part.upperBound <= area.count,
          words.count * MemoryLayout<T>.size <= part.count
        else {
          if rest.xstateBv & component.bit != 0 { fits = false }
          return
        }
        for (index, word) in words.enumerated() { store(word, part.lowerBound + index * MemoryLayout<T>.size) }
      }
      put(rest.ymmhSpace, .avx)
      put(rest.opmaskReg, .opmask)
      put(rest.zmmUpper, .zmmUpper)
      put(rest.hi16Zmm, .hi16ZMM)
      put(rest.pkru, .pkru)
    }
    return fits ? state : nil
  }
}

/// A part of the XSAVE area, at the place where this CPU has it. (CPUID leaf 0xd; Intel SDM volume 1, chapter 13)
private enum XSaveComponent: Int {
  case avx = 2
  case opmask = 5
  case zmmUpper = 6
  case hi16ZMM = 7
  case pkru = 9

  var bit: UInt64 { 1 << UInt64(rawValue) }

  /// x87, SSE, AVX, MPX (two), AVX-512 (three), PKRU.
  static let known: UInt64 = 0x2ff

  var range: Range<Int>? { Self.ranges[rawValue] }

  private static let ranges: [Range<Int>?] = (0..<10).map { component in
    guard component >= 2 else { return nil }
    var words: [UInt32] = [0, 0, 0, 0]
    words.withUnsafeMutableBufferPointer { clinux_cpuid(0xd, UInt32(component), $0.baseAddress) }
    return words[0] > 0 ? Int(words[1])..<Int(words[1] + words[0]) : nil
  }
}
#endif

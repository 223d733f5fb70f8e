import CLinux
import Linux
import SystemPackage

/// Memory of our own in a running job's process, for the interpreter and the seats of its threads.
///
/// It is made and taken away again by calls that the process's first thread makes from the spare bytes after the
/// vDSO's code, which every process has: nothing of the job's own memory is ever written. See `Trampoline`.
public struct BorrowedWorkspace {
  private let thread: ControlledThread
  private let memory: Int32
  private let trampoline: UInt64
  private let spareBytes: [UInt8]
  public let range: AddressRange
  private let seatSize: Int

  /// - Parameters:
  ///   - thread: a thread of the process; it is the one that maps and unmaps.
  ///   - memory: a descriptor of /proc/PID/mem, open for reading and writing; it must stay open.
  ///   - vdso: the area of the process's vDSO.
  ///   - seats: for how many threads at a time.
  ///   - seatSize: bytes for each, of programs and the way home.
  public init(
    thread: ControlledThread, memory: borrowing Descriptor, vdso: AddressRange, seats: Int, seatSize: Int
  ) throws(Failure) {
    self.thread = thread
    self.memory = memory.number
    self.seatSize = Int(UInt64(seatSize).pageCeiling)
    let what = "Cannot borrow thread \(thread.tid) of process \(thread.process)"
    trampoline = try Self.spareAddress(in: vdso, memory: memory, what)
    let code = Trampoline.code(resume: thread.registers.settled, signalMask: thread.signalMask)
    var spare = [UInt8](repeating: 0, count: code.count)
    let size = pageSize + UInt64(seats) * UInt64(self.seatSize)
    let trampoline = trampoline
    do throws(Errno) {
      let count = try spare.withMutableBytes { bytes throws(Errno) in
        try memory.read(into: bytes, at: Int(trampoline))
      }
      guard count == code.count else { throw Errno.badAddress }
      try code.withBytes { bytes throws(Errno) in try memory.write(bytes, at: Int(trampoline)) }
      let flags = UInt64(MAP_PRIVATE | MAP_ANONYMOUS)
      let address = try thread.callOnce(
        Int32(SYS_mmap), [0, size, UInt64(PROT_READ | PROT_WRITE | PROT_EXEC), flags, UInt64.max, 0], at: trampoline)
      range = AddressRange(address, address + size)
      try Interpreter.code.withBytes { bytes throws(Errno) in
        try writeMemory(of: thread.tid, at: address, from: bytes)
      }
    } catch { throw Failure(what, error) }
    spareBytes = spare
    thread.useInterpreter(at: range.start)
  }

  /// The part of it for thread number `index`, counted from 0.
  public func seat(_ index: Int) -> Seat {
    Seat(address: range.start + pageSize + UInt64(index * seatSize), size: seatSize)
  }

  /// Takes everything of ours out of the process again. All its threads must stand outside of it but the one it was
  /// made with, which is put back too.
  public func remove() throws(Errno) {
    _ = try thread.callOnce(Int32(SYS_munmap), [range.start, range.count], at: trampoline)
    try thread.putBack()
    let bytes = spareBytes
    try bytes.withBytes { bytes throws(Errno) in
      var done = 0
      while done < bytes.count {
        done += try systemCall(
          Int32(SYS_pwrite64), Int(memory), Int(bitPattern: bytes.baseAddress) + done, bytes.count - done,
          Int(trampoline) + done)
      }
    }
  }

  /// The first address behind everything that the vDSO's ELF file holds.
  private static func spareAddress(
    in vdso: AddressRange, memory: borrowing Descriptor, _ what: String
  ) throws(Failure) -> UInt64 {
    var header = Elf64_Ehdr()
    let read = try attempt(what) { () throws(Errno) in
      try withUnsafeMutableBytes(of: &header) { bytes throws(Errno) in
        try memory.read(into: bytes, at: Int(vdso.start))
      }
    }
    // The section headers end the file. Where they are stripped, nothing says how long it is.
    let end = UInt64(header.e_shoff) + UInt64(header.e_shnum) * UInt64(header.e_shentsize)
    let address = vdso.start + ((end + 15) & ~15)
    guard read == MemoryLayout<Elf64_Ehdr>.size, header.e_shoff > 0,
      address + UInt64(Trampoline.length) <= vdso.end
    else {
      throw Failure(what, why: "its vDSO has no \(Trampoline.length) spare bytes")
    }
    return address
  }
}

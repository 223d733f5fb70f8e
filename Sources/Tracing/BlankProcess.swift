import CLinux
import Linux
import SystemPackage

/// A process with nothing in it but the interpreter: what a restored process starts as.
///
/// Its address space from `base` on: one page of the ELF file it was made from, then the workspace (a page with the
/// interpreter, the seats), all of it readable, writable and executable. Torpor kills it if Torpor dies.
public struct BlankProcess {
  public let thread: ControlledThread
  public let layout: Layout
  /// Its parent, where that is not Torpor.
  public let foster: FosterParent?

  /// Where things lie in a blank process, and in every one cloned from it.
  public struct Layout: Sendable {
    public let base: UInt64
    /// The main thread's seat, in bytes.
    public static let mainSeatSize = 512 << 10
    /// Seats for other threads, so many at a time.
    public static let threadSeats = 128
    public static let threadSeatSize = 8 << 10
    /// Room behind the workspace where vDSO and vvar wait for their place.
    public static let parkingSize: UInt64 = 256 << 10
    private static let workspaceSize = pageSize + UInt64(mainSeatSize + threadSeats * threadSeatSize)

    public init(base: UInt64) { self.base = base }

    /// What it takes in an address space, with a guard page's distance to its neighbours.
    public static var totalSize: UInt64 { pageSize + workspaceSize + parkingSize + 2 * pageSize }

    public var file: AddressRange { AddressRange(base, base + pageSize) }
    public var workspace: AddressRange { AddressRange(file.end, file.end + Self.workspaceSize) }
    public var interpreter: UInt64 { workspace.start }
    public var mainSeat: Seat { Seat(address: workspace.start + pageSize, size: Self.mainSeatSize) }
    public func threadSeat(_ index: Int) -> Seat {
      Seat(
        address: workspace.start + pageSize + UInt64(Self.mainSeatSize + index * Self.threadSeatSize),
        size: Self.threadSeatSize)
    }
    public var parking: AddressRange { AddressRange(workspace.end, workspace.end + Self.parkingSize) }
  }

  /// Makes a blank process, held at its first instruction: a child of ours, or of a foster parent.
  ///
  /// It inherits the descriptors of ours that lack FD_CLOEXEC.
  ///
  /// - Parameters:
  ///   - pid: the PID it shall have, or nil for any.
  ///   - base: where its memory lies; a multiple of the page size.
  ///   - fostered: whether it shall become an orphan once it is let go.
  /// - Throws: `.fileExists` where the PID is taken.
  public static func start(pid: ProcessID?, base: UInt64, fostered: Bool = false) throws(Errno) -> BlankProcess {
    let layout = Layout(base: base)
    let file = try makeFile(layout)
    var ends: [Int32] = [-1, -1]
    guard pipe2(&ends, O_CLOEXEC) == 0 else { throw Errno(rawValue: clinux_errno()) }
    let reading = Descriptor(owning: ends[0])
    let writing = Descriptor(owning: ends[1])
    let life = { enter(file: file.number, gate: reading.number, gateKeeper: writing.number) }
    let foster = fostered ? try FosterParent(bearing: pid, without: writing.number, life) : nil
    let child = if let foster { foster.child } else { try cloneProcess(pid, life) }
    do throws(Errno) {
      let tracee = try Tracee(
        seizing: child, options: Tracee.heldOptions | UInt32(CLINUX_PTRACE_O_TRACEEXEC))
      try [UInt8(1)].withBytes { byte throws(Errno) in try writing.write(byte) }
      while true {
        switch try tracee.wait() {
        case .event(Int32(CLINUX_PTRACE_EVENT_EXEC)):
          try tracee.setOptions(Tracee.heldOptions)
          let registers = try tracee.registers()
          let thread = ControlledThread(
            process: child, tracee: tracee, registers: registers, signalMask: .max)
          thread.useInterpreter(at: layout.interpreter)
          try Interpreter.code.withBytes { code throws(Errno) in
            try writeMemory(of: child, at: layout.interpreter, from: code)
          }
          return BlankProcess(thread: thread, layout: layout, foster: foster)
        case .exited(let code): throw Errno(rawValue: code)
        case .killed: throw .noSuchProcess
        default: try tracee.resume()
        }
      }
    } catch {
      kill(child, SIGKILL)
      waitpid(child, nil, __WALL)
      throw error
    }
  }

  /// A file in memory with an ELF program of one segment: a page of file, then the workspace as its zeros.
  private static func makeFile(_ layout: Layout) throws(Errno) -> Descriptor {
    var header = Elf64_Ehdr()
    withUnsafeMutableBytes(of: &header.e_ident) { $0.copyBytes(from: [0x7f, 0x45, 0x4c, 0x46, 2, 1, 1]) }
    header.e_type = Elf64_Half(ET_EXEC)
    header.e_machine = Elf64_Half(Interpreter.machine)
    header.e_version = 1
    header.e_entry = layout.interpreter
    header.e_phoff = UInt64(MemoryLayout<Elf64_Ehdr>.size)
    header.e_ehsize = Elf64_Half(MemoryLayout<Elf64_Ehdr>.size)
    header.e_phentsize = Elf64_Half(MemoryLayout<Elf64_Phdr>.size)
    header.e_phnum = 1
    var segment = Elf64_Phdr()
    segment.p_type = Elf64_Word(PT_LOAD)
    segment.p_flags = Elf64_Word(PF_R | PF_W | PF_X)
    segment.p_vaddr = layout.base
    segment.p_filesz = pageSize
    segment.p_memsz = layout.workspace.end - layout.base
    segment.p_align = pageSize
    var content = withUnsafeBytes(of: header) { [UInt8]($0) } + withUnsafeBytes(of: segment) { [UInt8]($0) }
    content += [UInt8](repeating: 0, count: Int(pageSize) - content.count)
    let number = memfd_create("torpor", UInt32(MFD_CLOEXEC))
    guard number >= 0 else { throw Errno(rawValue: clinux_errno()) }
    let file = Descriptor(owning: number)
    try content.withBytes { bytes throws(Errno) in try file.write(bytes) }
    return file
  }

  /// The child's life: waits at the gate, then turns into the program in `file`.
  private static func enter(file: Int32, gate: Int32, gateKeeper: Int32) {
    // Without its own copy of the gate's other end it sees Torpor die.
    _ = clinux_syscall(Int(SYS_close), Int(gateKeeper), 0, 0, 0, 0, 0)
    var byte: UInt8 = 0
    var noStrings: Int = 0
    withUnsafeMutablePointer(to: &byte) { byte in
      withUnsafeMutablePointer(to: &noStrings) { strings in
        let come = clinux_syscall(Int(SYS_read), Int(gate), Int(bitPattern: byte), 1, 0, 0, 0)
        guard come == 1 else {
          _ = clinux_syscall(Int(SYS_exit_group), Int(ECHILD), 0, 0, 0, 0, 0)
          return
        }
        // execveat(file, "", {NULL}, {NULL}, AT_EMPTY_PATH): `byte` is overwritten with the empty string.
        byte.pointee = 0
        let failure = clinux_syscall(
          Int(SYS_execveat), Int(file), Int(bitPattern: byte), Int(bitPattern: strings), Int(bitPattern: strings),
          Int(AT_EMPTY_PATH), 0)
        _ = clinux_syscall(Int(SYS_exit_group), -failure, 0, 0, 0, 0, 0)
      }
    }
  }
}

extension Tracee {
  /// The options under which a process is built: it dies if Torpor does.
  public static var heldOptions: UInt32 { UInt32(CLINUX_PTRACE_O_TRACESYSGOOD | CLINUX_PTRACE_O_EXITKILL) }
}

import CLinux
import Images
import Linux
import SystemPackage
import Tracing

/// A piece of vDSO or vvar that waits for its place.
public struct ParkedArea: Sendable {
  /// Where it is now.
  public var range: AddressRange
  public var isVDSO: Bool
  /// Its distance from the start of vvar, or of the vDSO.
  public var offset: UInt64
}

/// The kernel's code in every process, and the data that it reads: moved as a whole, since the code finds the data by
/// its distance. vdso(7)
enum VDSO {
  /// Moves vDSO and vvar of the blank root out of the way, and unmaps everything else but the workspace.
  static func park(root: ControlledThread, layout: BlankProcess.Layout) throws(Failure) -> [ParkedArea] {
    let areas = try attempt("Cannot read the memory map of the new process") { () throws(Errno) in
      try readMemoryMap(of: ProcDirectory(root.tid), withFlags: false)
    }
    let ours = areas.filter { ["[vvar]", "[vvar_vclock]", "[vdso]"].contains($0.name) }
    guard let first = ours.first, let last = ours.last, last.name == "[vdso]",
      last.range.end - first.range.start <= BlankProcess.Layout.parkingSize
    else {
      throw Failure("Cannot restore", why: "this kernel gives new processes no vDSO that torpor knows")
    }
    var program = SyscallProgram()
    var parked: [ParkedArea] = []
    for area in ours {
      let target = layout.parking.start + (area.range.start - first.range.start)
      move(area.range, to: target, &program)
      let isVDSO = area.name == "[vdso]"
      parked.append(
        ParkedArea(
          range: AddressRange(target, target + area.range.count), isVDSO: isVDSO,
          offset: isVDSO ? 0 : area.range.start - first.range.start))
    }
    program.call(Int32(SYS_munmap), 0, .init(layout.workspace.start))
    program.call(Int32(SYS_munmap), .init(layout.parking.end), .init(highestAddress - layout.parking.end))
    try root.run(program, in: layout.mainSeat)
    return parked
  }

  /// Adds the calls that put the parked areas where the image had them.
  static func unpark(_ parked: [ParkedArea], _ areas: [VmaEntry], into script: inout Script) {
    for area in parked {
      guard let place = areas.first(where: { $0.kind.contains(area.isVDSO ? .vdso : .vvar) }) else {
        script.call(Int32(SYS_munmap), .init(area.range.start), .init(area.range.count))
        continue
      }
      script.add(upTo: 64) { move(area.range, to: place.start + area.offset, &$0) }
    }
  }

  private static func move(_ range: AddressRange, to target: UInt64, _ program: inout SyscallProgram) {
    program.call(
      Int32(SYS_mremap), .init(range.start), .init(range.count), .init(range.count),
      .init(MREMAP_MAYMOVE | MREMAP_FIXED), .init(target))
  }

  /// The length of the ELF file in `image`; what follows is spare.
  static func length(of image: UnsafeRawBufferPointer) -> Int {
    guard image.count >= MemoryLayout<Elf64_Ehdr>.size else { return image.count }
    let header = image.loadUnaligned(as: Elf64_Ehdr.self)
    let (end, overflow) = header.e_shoff.addingReportingOverflow(UInt64(header.e_shnum) * UInt64(header.e_shentsize))
    return overflow || end > UInt64(image.count) ? image.count : Int(end)
  }

  /// Where in this kernel's vDSO an instruction lies that makes a system call.
  static func systemCallOffset() throws(Failure) -> Int? {
    let code = try ofThisKernel().code
    return (0..<max(code.count - 1, 0)).first { Registers.isSystemCall(code[$0], code[$0 + 1]) }
  }

  /// This kernel's own, as it is in every process.
  struct Own {
    var code: [UInt8] = []
    /// The length of the ELF file in it.
    var used = 0
    /// What it reads: how far before the code that starts, and how long it is.
    var dataDistance: UInt64 = 0
    var dataSize: UInt64 = 0
  }

  static func ofThisKernel() throws(Failure) -> Own { try own.get() }

  private static let own: Result<Own, Failure> = {
    do throws(Failure) { return .success(try readOwn()) } catch { return .failure(error) }
  }()

  private static func readOwn() throws(Failure) -> Own {
    let areas = try attempt("Cannot read /proc/self/maps") { () throws(Errno) in
      try readMemoryMap(of: ProcDirectory(getpid()), withFlags: false)
    }
    var own = Own()
    guard let code = areas.first(where: { $0.name == "[vdso]" })?.range,
      let start = UnsafeRawPointer(bitPattern: UInt(code.start))
    else { return own }
    let bytes = UnsafeRawBufferPointer(start: start, count: Int(code.count))
    own.code = [UInt8](bytes)
    own.used = length(of: bytes)
    let data = areas.filter { $0.name.hasPrefix("[vvar") && $0.range.end <= code.start }
    own.dataDistance = data.first.map { code.start - $0.range.start } ?? 0
    own.dataSize = data.reduce(0) { $0 + $1.range.count }
    return own
  }
}

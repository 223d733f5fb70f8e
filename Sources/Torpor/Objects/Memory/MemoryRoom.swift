import CLinux
import Images
import Linux
import SystemPackage

/// The address space of a process: what is mapped where, and what is in it.
enum MemoryRoom {
  /// Describes the address space of a process that stands still, and refuses what cannot be saved.
  static func collect(_ process: JobProcess, inside: InsideFacts, _ saving: Saving) throws(Failure) -> MmEntry {
    var entry = MmEntry()
    let statistics = process.statistics
    (entry.mmStartCode, entry.mmEndCode) = (statistics.startCode, statistics.endCode)
    (entry.mmStartData, entry.mmEndData) = (statistics.startData, statistics.endData)
    (entry.mmStartStack, entry.mmStartBrk, entry.mmBrk) = (statistics.startStack, statistics.startBreak, inside.brk)
    (entry.mmArgStart, entry.mmArgEnd) = (statistics.argumentsStart, statistics.argumentsEnd)
    (entry.mmEnvStart, entry.mmEnvEnd) = (statistics.environmentStart, statistics.environmentEnd)
    entry.exeFileID = try saving.files.namedLink(process, "exe", saving)
    entry.mmSavedAuxv = try auxiliaryVector(process)
    entry.dumpable = inside.dumpable
    entry.thpDisabled = inside.thpDisabled
    // Gathered apart: a message's array is copied at every access.
    var vmas: [VmaEntry] = []
    vmas.reserveCapacity(process.areas.count)
    for area in process.areas {
      if area.name == "[vvar_vclock]", let last = vmas.indices.last, vmas[last].kind.contains(.vvar) {
        // One area in the image, two in the kernel, always side by side. (arch/x86/entry/vdso/vma.c)
        vmas[last].end = area.range.end
      } else if let vma = try describe(area, of: process, saving) {
        vmas.append(vma)
      }
    }
    entry.vmas = vmas
    return entry
  }

  private static func auxiliaryVector(_ process: JobProcess) throws(Failure) -> [UInt64] {
    let bytes = try attempt("Cannot read the auxiliary vector of \(process.label)") { () throws(Errno) in
      try process.proc.read("auxv")
    }
    return bytes.withUnsafeBytes { bytes in
      (0..<(bytes.count / 8)).map { bytes.loadUnaligned(fromByteOffset: $0 * 8, as: UInt64.self) }
    }
  }

  private static func describe(
    _ area: MemoryArea, of process: JobProcess, _ saving: Saving
  ) throws(Failure) -> VmaEntry? {
    if let obstacle = obstacle(area) {
      saving.refuse(
        process, "the mapping at \(hex(area.range.start))-\(hex(area.range.end)) is \(obstacle.what)",
        advice: obstacle.advice)
      return nil
    }
    var vma = VmaEntry()
    (vma.start, vma.end) = (area.range.start, area.range.end)
    (vma.pgoff, vma.shmid, vma.fd) = (0, 0, -1)
    vma.prot = UInt32(area.protection)
    vma.flags = UInt32(area.isShared ? MAP_SHARED : MAP_PRIVATE)
    if area.flags.contains(.growsDown) { vma.flags |= UInt32(MAP_GROWSDOWN) }
    if area.flags.contains(.locked) { vma.flags |= UInt32(MAP_LOCKED) }
    if area.flags.contains(.noReserve) { vma.flags |= UInt32(MAP_NORESERVE) }
    let advice = Advice.bits(area.flags)
    if advice != 0 { vma.madv = advice }
    var kind: AreaStatus = .regular
    if area.isFileBacked {
      kind.insert(area.isShared ? .fileShared : .filePrivate)
      vma.pgoff = area.offset
      vma.shmid = UInt64(try saving.files.mappedFile(process, area, saving))
      vma.fdflags = UInt32(bitPattern: area.isShared && isOpenForWriting(area, process) ? O_RDWR : O_RDONLY)
    } else {
      vma.flags |= UInt32(MAP_ANONYMOUS)
      switch area.name {
      case "[heap]": kind.formUnion([.heap, .anonymousPrivate])
      case "[vdso]": kind.formUnion([.vdso, .anonymousPrivate])
      case "[vvar]", "[vvar_vclock]": kind.formUnion([.vvar, .anonymousPrivate])
      case "[vsyscall]": kind = [.vsyscall, .anonymousPrivate]
      default: kind.insert(.anonymousPrivate)
      }
    }
    vma.status = kind.rawValue
    return vma
  }

  /// Whether the mapped file was open for writing, so that the mapping may be made writable again. The link's mode shows
  /// the mode of opening. (proc_pid_map_files(5))
  private static func isOpenForWriting(_ area: MemoryArea, _ process: JobProcess) -> Bool {
    let name = "map_files/\(String(area.range.start, radix: 16))-\(String(area.range.end, radix: 16))"
    guard let status = try? fileStatus(name, followingLink: false, at: process.proc.directory.number) else {
      return area.isWritable
    }
    return status.st_mode & 0o200 != 0
  }

  private static func obstacle(_ area: MemoryArea) -> (what: String, advice: String)? {
    let later = "a later version of torpor will save it; for now run the program without it"
    if area.name == "[vvar]" || area.name == "[vvar_vclock]" || area.name == "[vdso]" { return nil }
    if area.flags.contains(.hugeTLB) { return ("made of huge pages (hugetlbfs, \(area.name))", later) }
    if !area.flags.isDisjoint(with: [.userfaultMissing, .userfaultMinor, .userfaultWriteProtect]) {
      return ("watched by a userfaultfd", "end the program's own page fault handling before the checkpoint")
    }
    if area.flags.contains(.shadowStack) { return ("a shadow stack", "start the program without shadow stacks") }
    if area.flags.contains(.sealed) { return ("sealed (mseal)", later) }
    if area.name.hasPrefix("/SYSV") { return ("System V shared memory (key \(area.name.dropFirst(5)))", later) }
    if area.name.hasPrefix("/[aio]") { return ("a ring for asynchronous I/O (io_setup)", later) }
    if area.name.hasPrefix("/memfd:") { return ("a file in memory (\(area.name.dropFirst(1)))", later) }
    if area.name.hasPrefix("/dev/zero") { return ("shared anonymous memory", later) }
    if area.name.hasPrefix("anon_inode:") || area.name == "[uprobes]" {
      return ("of a kernel object (\(area.name))", "close it before the checkpoint")
    }
    if !area.flags.isDisjoint(with: [.io, .pfnMap]) {
      return ("memory of a device (\(area.name))", "close the device before the checkpoint")
    }
    return nil
  }

  /// An address for people.
  static func hex(_ value: UInt64) -> String { "0x" + String(value, radix: 16) }

  /// Most words of an auxiliary vector that other readers of the image take; newer kernels give some more, and the whole
  /// vector then goes into `TaskExtras`.
  static let longestAuxiliaryVector = 44

  /// Writes the description and the content of an address space.
  static func save(
    _ entry: MmEntry, of process: JobProcess, pagesID: UInt32, _ saver: PageSaver
  ) throws(Failure) {
    var short = entry
    short.mmSavedAuxv = Array(entry.mmSavedAuxv.prefix(longestAuxiliaryVector))
    try saver.image.write(.memoryMap, UInt64(process.pid), short)
    try saver.save(entry.vmas, of: process, pagesID: pagesID)
  }
}

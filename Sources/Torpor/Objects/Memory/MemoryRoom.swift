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
    entry.vmas = try areas(of: process, saving)
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

  private static func areas(of process: JobProcess, _ saving: Saving) throws(Failure) -> [VmaEntry] {
    var result: [VmaEntry] = []
    result.reserveCapacity(process.areas.count)
    for area in process.areas {
      if area.name == "[vvar_vclock]", let last = result.indices.last, result[last].kind.contains(.vvar) {
        // One area in the image, two in the kernel, always side by side. (arch/x86/entry/vdso/vma.c)
        result[last].end = area.range.end
      } else if let obstacle = Obstacle(area) {
        saving.refuse(
          process, "the mapping at \(hex(area.range.start))-\(hex(area.range.end)) is \(obstacle.what)",
          advice: obstacle.advice)
      } else {
        result.append(try describe(area, of: process, saving))
      }
    }
    return result
  }

  private static func describe(
    _ area: MemoryArea, of process: JobProcess, _ saving: Saving
  ) throws(Failure) -> VmaEntry {
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
      vma.fdflags = UInt32(bitPattern: area.isShared && isOpenForWriting(area, process) ? O_RDWR : O_RDONLY)
      if SharedMemory.isUnder(area) {
        kind.insert(.memfd)
        vma.shmid = UInt64(try saving.files.sharedMemory.mapped(process, area, vma.fdflags, saving))
      } else {
        vma.shmid = UInt64(try saving.files.mappedFile(process, area, saving))
      }
    } else {
      vma.flags |= UInt32(MAP_ANONYMOUS)
      switch area.name {
      case "": kind.insert(.anonymousPrivate)
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
    guard let status = try? fileStatus(area.link, followingLink: false, at: process.proc.directory.number) else {
      return area.isWritable
    }
    return status.st_mode & 0o200 != 0
  }

  /// What stands against saving an area.
  private struct Obstacle {
    let what: String
    let advice: String

    private static let later = "a later version of torpor will save it; for now run the program without it"
    private static let flags: MemoryArea.Flags = [
      .hugeTLB, .userfaultMissing, .userfaultMinor, .userfaultWriteProtect, .shadowStack, .sealed, .io, .pfnMap,
    ]

    private init(_ what: String, _ advice: String) { (self.what, self.advice) = (what, advice) }

    /// nil where there is none.
    init?(_ area: MemoryArea) {
      if area.name.isEmpty, area.flags.isDisjoint(with: Self.flags), area.protectionKey == 0,
        area.range.end <= highestAddress
      {
        return nil
      }
      if let byFlags = Self.byFlags(area) ?? Self.byName(area.name) {
        self = byFlags
      } else if area.protectionKey != 0, area.protection != PROT_EXEC {
        // The kernel itself gives areas that can only be executed a key.
        self.init("protected by key \(area.protectionKey) (pkey_mprotect)", Self.later)
      } else if area.range.end > highestAddress, area.name != "[vsyscall]" {
        self.init("above the first 128 TiB of the address space", Self.later)
      } else {
        return nil
      }
    }

    private static func byFlags(_ area: MemoryArea) -> Obstacle? {
      if area.name == "[vdso]" || area.name.hasPrefix("[vvar") { return nil }
      let flags = area.flags
      if flags.contains(.hugeTLB) { return Obstacle("made of huge pages (hugetlbfs, \(area.name))", later) }
      if !flags.isDisjoint(with: [.userfaultMissing, .userfaultMinor, .userfaultWriteProtect]) {
        return Obstacle("watched by a userfaultfd", "end the program's own page fault handling before the checkpoint")
      }
      if flags.contains(.shadowStack) { return Obstacle("a shadow stack", "start the program without shadow stacks") }
      if flags.contains(.sealed) { return Obstacle("sealed (mseal)", later) }
      if flags.isDisjoint(with: [.io, .pfnMap]) || area.name.hasPrefix("anon_inode:") { return nil }
      return Obstacle("memory of a device (\(area.name))", "close the device before the checkpoint")
    }

    private static func byName(_ name: String) -> Obstacle? {
      if name.hasPrefix("/SYSV") { return Obstacle("System V shared memory (key \(name.dropFirst(5).prefix(8)))", later) }
      if name.hasPrefix("/[aio]") { return Obstacle("a ring for asynchronous I/O (io_setup)", later) }
      if name.hasPrefix("/secretmem") { return Obstacle("secret memory (memfd_secret)", later) }
      guard name.hasPrefix("anon_inode:") || name == "[uprobes]" else { return nil }
      return Obstacle("of a kernel object (\(name))", "close it before the checkpoint")
    }
  }

  /// An address for people.
  static func hex(_ value: UInt64) -> String { "0x" + String(value, radix: 16) }

  // MARK: Write

  /// Most words of an auxiliary vector that other readers of the image take; newer kernels give some more, and the whole
  /// vector then goes into `TaskExtras`.
  static let longestAuxiliaryVector = 44

  /// Writes descriptions and content of all address spaces, and of the memory that they share.
  ///
  /// - Returns: how many bytes of content that is.
  static func save(
    _ spaces: [(process: JobProcess, memory: MmEntry)], _ saving: Saving, _ image: ImageWriter, _ progress: Progress
  ) throws(Failure) -> UInt64 {
    let saver = try PageSaver(image, progress)
    var plans: [PagePlan] = []
    for (process, memory) in spaces {
      plans.append(
        try attempt("Cannot find the pages of \(process.label)") { () throws(Errno) in
          try PagePlan(memory.vmas, of: process)
        })
    }
    let segments = try saving.files.sharedMemory.contents()
    let bytes = plans.reduce(0) { $0 + $1.bytes } + segments.reduce(0) { $0 + $1.bytes }
    try saver.expect(bytes, in: plans.count + segments.count)
    var pagesID: UInt32 = 0
    for ((process, memory), plan) in zip(spaces, plans) {
      pagesID += 1
      try save(memory, plan, of: process, pagesID: pagesID, saver)
    }
    for segment in segments {
      pagesID += 1
      try saver.save(
        segment.runs, from: segment.source, as: .sharedPagemap, segment.id, pagesID: pagesID,
        "Cannot read shared memory \(segment.name)")
    }
    return try saver.finish()
  }

  private static func save(
    _ memory: MmEntry, _ plan: PagePlan, of process: JobProcess, pagesID: UInt32, _ saver: PageSaver
  ) throws(Failure) {
    var written = memory
    written.mmSavedAuxv = Array(memory.mmSavedAuxv.prefix(longestAuxiliaryVector))
    if !plan.guards.isEmpty { written.vmas = memory.vmas + plan.guardAreas }
    try saver.image.write(.memoryMap, UInt64(process.pid), written)
    try saver.save(
      plan.runs, from: ProcessPages(process), as: .pagemap, UInt64(process.pid), pagesID: pagesID,
      "Cannot read the memory of \(process.label)")
  }
}

extension MemoryArea {
  /// The name of its link in /proc/PID.
  var link: String { "map_files/\(String(range.start, radix: 16))-\(String(range.end, radix: 16))" }
}

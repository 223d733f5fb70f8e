import CLinux
import Images
import Linux
import SystemPackage
import Tracing

/// The calls that make an address space.
enum AreaScript {
  static func make(_ memory: MmEntry, _ space: AddressSpace, _ hand: MappingHand, parked: [ParkedArea]) -> Script {
    var script = Script()
    if memory.thpDisabled { script.call(Int32(SYS_prctl), 41 /* PR_SET_THP_DISABLE */, 1, 0, 0, 0) }
    map(space, hand, into: &script)
    // Which pages may be huge counts when they are filled.
    advise(space, HugePages.advice, into: &script)
    fill(space, file: hand.pagesFile, into: &script)
    protect(space, into: &script)
    advise(space, ~HugePages.advice, into: &script)
    for range in space.guards {
      script.call(Int32(SYS_madvise), .init(range.start), .init(range.count), 102 /* MADV_GUARD_INSTALL */)
    }
    lock(space, into: &script)
    VDSO.unpark(parked, space.areas, into: &script)
    describe(memory, executable: hand.executable, into: &script)
    script.call(Int32(SYS_close_range), 0, .init(hand.last), 0)
    return script
  }

  // MARK: Map

  /// Small anonymous areas are mapped writable at first even if nothing goes into them, so that neighbours can be made with one
  /// call; larger ones would count against the limit of committed memory.
  private static let smallArea: UInt64 = 1 << 20

  /// Areas side by side that one mmap(2) can make.
  private struct Group {
    var range: AddressRange
    var protection: Int32
    var flags: Int32
    var descriptor: Int32
    var offset: UInt64

    func takes(_ other: Group) -> Bool {
      range.end == other.range.start && protection == other.protection && flags == other.flags
        && descriptor == other.descriptor && flags & Int32(MAP_GROWSDOWN) == 0
        && (descriptor < 0 || offset + range.count == other.offset)
    }
  }

  private static func map(_ space: AddressSpace, _ hand: MappingHand, into script: inout Script) {
    var group: Group?
    func close(_ group: Group?) {
      guard let group else { return }
      script.call(
        Int32(SYS_mmap), .init(group.range.start), .init(group.range.count), .init(group.protection),
        .init(group.flags | Int32(MAP_FIXED)), .init(Int64(group.descriptor)), .init(group.offset))
    }
    let runs = space.pages.runs
    var run = 0
    for vma in space.areas where !vma.isOfKernel {
      while run < runs.count, runs[run].end <= vma.start { run += 1 }
      let hasPages = run < runs.count && runs[run].start < vma.end
      let descriptor = hand.number(of: vma)
      let next = Group(
        range: vma.range, protection: firstProtection(vma, hasPages: hasPages), flags: flags(vma, descriptor),
        descriptor: descriptor, offset: descriptor < 0 ? 0 : vma.pgoff)
      if let open = group, open.takes(next) {
        group?.range.end = next.range.end
      } else {
        close(group)
        group = next
      }
    }
    close(group)
  }

  private static func flags(_ vma: borrowing VmaEntry, _ descriptor: Int32) -> Int32 {
    let kept = Int32(MAP_GROWSDOWN | MAP_NORESERVE)
    var flags = Int32(bitPattern: vma.flags) & kept
    flags |= vma.isShared ? MAP_SHARED : MAP_PRIVATE
    if descriptor < 0 { flags |= Int32(MAP_ANONYMOUS) }
    return flags
  }

  private static func firstProtection(_ vma: borrowing VmaEntry, hasPages: Bool) -> Int32 {
    let final = Int32(vma.prot)
    guard vma.isPrivateMemory else { return final }
    let writable = hasPages || final & PROT_WRITE != 0 || (!vma.isFile && vma.count <= smallArea)
    return writable ? PROT_READ | PROT_WRITE : final
  }

  // MARK: Fill

  /// Reads of all pages, each into many places at once. preadv(2)
  private static func fill(_ space: AddressSpace, file: Int32, into script: inout Script) {
    var reads = Reads(file: file)
    let vdso = space.vdso
    for run in space.pages.runs {
      // The kernel's own vDSO is used; its pages are in the image for readers that look at its symbols. A run may hold
      // more than it.
      guard let vdso, run.overlaps(vdso) else {
        reads.add(run, &script)
        continue
      }
      if run.start < vdso.start { reads.add(AddressRange(run.start, vdso.start), &script) }
      reads.skip(min(run.end, vdso.end) - max(run.start, vdso.start), &script)
      if vdso.end < run.end { reads.add(AddressRange(vdso.end, run.end), &script) }
    }
    reads.flush(&script)
  }

  /// Gathers places for the next read.
  private struct Reads {
    let file: Int32
    private var offset: UInt64 = 0
    private var places: [UInt64] = []
    private var count: UInt64 = 0

    /// Most places of a read. (UIO_MAXIOV)
    private static let mostPlaces = 1024
    /// One read gives no more than 2 GiB. (MAX_RW_COUNT, linux/fs.h)
    private static let largest: UInt64 = 1 << 30

    init(file: Int32) { self.file = file }

    mutating func add(_ range: AddressRange, _ script: inout Script) {
      var start = range.start
      while start < range.end {
        let end = min(range.end, start + (Self.largest - count))
        places += [start, end - start]
        count += end - start
        start = end
        if places.count == 2 * Self.mostPlaces || count == Self.largest { flush(&script) }
      }
    }

    /// Passes over bytes of the file.
    mutating func skip(_ bytes: UInt64, _ script: inout Script) {
      flush(&script)
      offset += bytes
    }

    mutating func flush(_ script: inout Script) {
      guard count > 0 else { return }
      script.add(upTo: 64 + 16 + places.count * 8) { program in
        let vector = program.store(bytes: places.withUnsafeBytes { [UInt8]($0) })
        let index = program.call(Int32(SYS_preadv), .init(file), .data(vector), .init(places.count / 2), .init(offset))
        program.expect(Int64(count), of: index)
      }
      offset += count
      count = 0
      places.removeAll(keepingCapacity: true)
    }
  }

  // MARK: Finish

  private static func protect(_ space: AddressSpace, into script: inout Script) {
    var pending: (range: AddressRange, protection: Int32)?
    func flush() {
      guard let (range, protection) = pending else { return }
      script.call(Int32(SYS_mprotect), .init(range.start), .init(range.count), .init(protection))
      pending = nil
    }
    for vma in space.areas where vma.isPrivateMemory {
      let final = Int32(vma.prot)
      guard final != PROT_READ | PROT_WRITE else {
        flush()
        continue
      }
      if let open = pending, open.range.end == vma.start, open.protection == final {
        pending?.range.end = vma.end
      } else {
        flush()
        pending = (vma.range, final)
      }
    }
    flush()
  }

  private static func advise(_ space: AddressSpace, _ mask: UInt64, into script: inout Script) {
    for vma in space.areas where vma.hasMadv && vma.madv & mask != 0 && !vma.isOfKernel {
      for advice in Advice.numbers(vma.madv & mask) {
        // Kernels can be built without huge pages and without merging of equal pages; nothing is lost then.
        script.call(
          Int32(SYS_madvise), .init(vma.start), .init(vma.count), .init(advice),
          tolerant: Advice.isHint(advice))
      }
    }
  }

  /// mlock(2) says that it could not bring in all pages where an area must not be touched; it is locked all the same.
  private static func lock(_ space: AddressSpace, into script: inout Script) {
    for vma in space.areas where vma.flags & UInt32(MAP_LOCKED) != 0 && !vma.isOfKernel {
      script.call(Int32(SYS_mlock), .init(vma.start), .init(vma.count), tolerant: vma.prot & UInt32(PROT_READ) == 0)
    }
  }

  /// prctl(2) with PR_SET_MM_MAP: what /proc/PID/stat, cmdline, environ, auxv and exe show, and where brk goes on.
  private static func describe(_ memory: MmEntry, executable: Int32, into script: inout Script) {
    script.add(upTo: 512 + 64 * 8) { program in
      var map = clinux_prctl_mm_map()
      (map.start_code, map.end_code) = (memory.mmStartCode, memory.mmEndCode)
      (map.start_data, map.end_data) = (memory.mmStartData, memory.mmEndData)
      (map.start_brk, map.brk, map.start_stack) = (memory.mmStartBrk, memory.mmBrk, memory.mmStartStack)
      (map.arg_start, map.arg_end) = (memory.mmArgStart, memory.mmArgEnd)
      (map.env_start, map.env_end) = (memory.mmEnvStart, memory.mmEnvEnd)
      map.auxv_size = UInt32(memory.mmSavedAuxv.count * 8)
      map.exe_fd = UInt32(bitPattern: executable)
      let vector = program.store(bytes: memory.mmSavedAuxv.withUnsafeBytes { [UInt8]($0) })
      let structure = program.store(bytes: withUnsafeBytes(of: map) { [UInt8]($0) })
      program.link(from: structure + 88, to: vector)
      program.call(
        Int32(SYS_prctl), 35 /* PR_SET_MM */, 14 /* PR_SET_MM_MAP */, .data(structure),
        .init(MemoryLayout<clinux_prctl_mm_map>.size), 0)
    }
  }
}

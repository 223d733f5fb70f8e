import CLinux
import Images
import Linux
import SystemPackage
import Tracing

/// Whether an image's description of memory makes sense, before anything is built from it.
extension MemoryRoom {
  /// The kernel's own limit is 65530 unless an administrator has raised it; this only bounds our work.
  private static let mostAreas = 4_000_000

  /// Checks all address spaces, and notes in each process what it has been found to be.
  static func check(_ processes: [RestoredProcess], _ image: ImageReader, _ files: RestoredFiles) throws(Failure) {
    for process in processes {
      guard let memory = process.memory else { continue }
      var space = try check(memory, of: process, image, files)
      space.pages = try PageMap(image, .pagemap, UInt64(process.pid), limit: highestAddress)
      try checkRuns(space, process, image)
      try space.pages.checkLength(image)
      try checkVDSO(space, process, image)
      process.space = space
    }
    try files.sharedMemory.check()
  }

  private static func damaged(_ image: ImageReader, _ why: String) -> Failure {
    Failure(
      .badImage, "Cannot restore \(image.path)", why: why, advice: "use another image, or a good copy of this one")
  }

  private static func check(
    _ memory: MmEntry, of process: RestoredProcess, _ image: ImageReader, _ files: RestoredFiles
  ) throws(Failure) -> AddressSpace {
    let name = "mm-\(process.pid).img"
    guard memory.vmas.count <= mostAreas else { throw damaged(image, "\(name) has \(memory.vmas.count) mappings") }
    guard memory.mmSavedAuxv.count <= 64 else { throw damaged(image, "\(name) has an auxiliary vector that is too long") }
    var space = AddressSpace()
    space.areas.reserveCapacity(memory.vmas.count)
    var end: UInt64 = 0
    for vma in memory.vmas where !vma.isGate {
      guard vma.start % pageSize == 0, vma.end % pageSize == 0, vma.start < vma.end, vma.end <= highestAddress,
        vma.prot & ~7 == 0
      else { throw damaged(image, "\(name) has an impossible mapping at \(hex(vma.start))") }
      if vma.kind == .guardRegion {
        space.guards.append(vma.range)
        continue
      }
      guard vma.start >= end else { throw damaged(image, "\(name) has mappings that overlap at \(hex(vma.start))") }
      end = vma.end
      try checkKind(vma, process, image, files)
      space.areas.append(vma)
    }
    try checkGuards(space, name, image)
    return space
  }

  private static func checkKind(
    _ vma: VmaEntry, _ process: RestoredProcess, _ image: ImageReader, _ files: RestoredFiles
  ) throws(Failure) {
    let kind = vma.kind
    let missing: String? =
      if kind.contains(.systemV) {
        "System V shared memory"
      } else if kind.contains(.aioRing) {
        "a ring for asynchronous I/O"
      } else if vma.flags & UInt32(MAP_HUGETLB) != 0 {
        "huge pages"
      } else if !kind.contains(.regular)
        || kind.isDisjoint(with: [.anonymousPrivate, .anonymousShared, .filePrivate, .fileShared])
        || kind.contains(.guardRegion)
      {
        "a kind of memory unknown to this version"
      } else {
        nil
      }
    if let missing {
      throw Failure(
        .cannotRestore, "Cannot restore \(image.path)",
        why: "process \(process.label) has \(missing) at \(hex(vma.start)), which is not supported yet",
        advice: "use criu restore for this image")
    }
    if kind.contains(.anonymousShared) { try files.sharedMemory.note(vma) }
    guard vma.isFile else { return }
    guard vma.pgoff % pageSize == 0, vma.pgoff <= UInt64(Int64.max) - vma.count, let id = UInt32(exactly: vma.shmid),
      files.canMap(id, isShared: kind.contains(.memfd))
    else { throw damaged(image, "process \(process.label) has a mapping of no file at \(hex(vma.start))") }
  }

  /// Guarded pages must lie in areas.
  private static func checkGuards(_ space: AddressSpace, _ name: String, _ image: ImageReader) throws(Failure) {
    for range in space.guards {
      guard covers(space.areas, range, where: { !$0.isOfKernel }) else {
        throw damaged(image, "\(name) has guarded pages at \(hex(range.start)), where nothing is mapped")
      }
    }
  }

  /// Every page must lie in private memory.
  private static func checkRuns(
    _ space: AddressSpace, _ process: RestoredProcess, _ image: ImageReader
  ) throws(Failure) {
    for run in space.pages.runs {
      guard covers(space.areas, run, where: { $0.isPrivateMemory || $0.kind.contains(.vdso) }) else {
        throw damaged(
          image, "pagemap-\(process.pid).img has pages at \(hex(run.start)), where there is no private memory")
      }
    }
  }

  /// Whether areas that are as wanted lie under all of `range`.
  private static func covers(
    _ areas: [VmaEntry], _ range: AddressRange, where isWanted: (borrowing VmaEntry) -> Bool
  ) -> Bool {
    var (low, high) = (0, areas.count)
    while low < high {
      let middle = (low + high) / 2
      if areas[middle].end <= range.start { low = middle + 1 } else { high = middle }
    }
    var address = range.start
    while address < range.end {
      guard low < areas.count, areas[low].start <= address, isWanted(areas[low]) else { return false }
      address = areas[low].end
      low += 1
    }
    return true
  }

  /// The job's vDSO must be this kernel's: its code goes on from the middle of it, and finds data by distance.
  private static func checkVDSO(
    _ space: AddressSpace, _ process: RestoredProcess, _ image: ImageReader
  ) throws(Failure) {
    guard let area = space.vdso else { return }
    let kernel = try VDSO.ofThisKernel()
    let data = space.areas.filter { $0.kind.contains(.vvar) }
    guard area.count == kernel.code.count, data.reduce(0, { $0 + $1.count }) == kernel.dataSize,
      data.isEmpty || data[0].start + kernel.dataDistance == area.start,
      let saved = try savedPages(area, space.pages, image), saved.prefix(kernel.used) == kernel.code.prefix(kernel.used)
    else {
      throw Failure(
        .cannotRestore, "Cannot restore \(image.path)",
        why: "it was made under another kernel, whose vDSO differs from this one's",
        advice: "restore it under the kernel that `torpor show` names")
    }
  }

  /// The content of a small range of pages; nil where the image does not hold all of it in one run.
  private static func savedPages(
    _ range: AddressRange, _ pages: PageMap, _ image: ImageReader
  ) throws(Failure) -> [UInt8]? {
    var offset: UInt64 = 0
    for run in pages.runs {
      guard run.start <= range.start, range.end <= run.end else {
        offset += run.count
        continue
      }
      var bytes = [UInt8](repeating: 0, count: Int(range.count))
      let place = Int(offset + range.start - run.start)
      let name = ImageKind.pagesFileName(pages.pagesID)
      _ = try attempt("Cannot read \(image.path)/\(name)") { () throws(Errno) in
        let file = try image.openFile(name)
        return try bytes.withMutableBytes { bytes throws(Errno) in try file.read(into: bytes, at: place) }
      }
      return bytes
    }
    return nil
  }

  // MARK: A place for the interpreter

  /// An address at which every process of the job has room for the interpreter.
  static func freeBase(for spaces: [MmEntry]) throws(Failure) -> UInt64 {
    let size = BlankProcess.Layout.totalSize
    var ranges = spaces.flatMap { $0.vmas.lazy.filter { !$0.isGate }.map(\.range) }
    ranges.sort { $0.start < $1.start }
    ranges.append(AddressRange(highestAddress, highestAddress))
    // Above the lowest address that the kernel lets anybody map. (vm.mmap_min_addr)
    var base: UInt64 = 0x10_0000
    for range in ranges {
      if range.start > base, range.start - base > size + 2 * pageSize { return base + pageSize }
      base = max(base, range.end)
    }
    throw Failure(.cannotRestore, "Cannot restore", why: "the job's address spaces leave no room for the interpreter")
  }
}

import CLinux
import Images
import Linux
import SystemPackage
import Tracing

/// Which pages of an address space an image holds, in the order of its pages file.
struct PageMap {
  var pagesID: UInt32 = 0
  /// By rising address.
  var runs: [AddressRange] = []
  var bytes: UInt64 { runs.reduce(0) { $0 + $1.count } }
}

/// Whether an image's description of memory makes sense, before anything is built from it.
extension MemoryRoom {
  /// The kernel's own limit is 65530 unless an administrator has raised it; this only bounds our work.
  private static let mostAreas = 4_000_000

  /// Checks all address spaces, and gives each process its page map.
  static func check(_ processes: [RestoredProcess], _ image: ImageReader) throws(Failure) {
    for process in processes {
      guard let memory = process.memory else { continue }
      try check(memory, of: process, image)
      let pages = try readPageMap(of: process, memory, image)
      try checkVDSO(memory, pages, process, image)
      process.pages = pages
    }
  }

  private static func damaged(_ image: ImageReader, _ why: String) -> Failure {
    Failure(
      .badImage, "Cannot restore \(image.path)", why: why, advice: "use another image, or a good copy of this one")
  }

  private static func check(_ memory: MmEntry, of process: RestoredProcess, _ image: ImageReader) throws(Failure) {
    let name = "mm-\(process.pid).img"
    guard memory.vmas.count <= mostAreas else { throw damaged(image, "\(name) has \(memory.vmas.count) mappings") }
    var end: UInt64 = 0
    for vma in memory.vmas where !vma.kind.contains(.vsyscall) {
      guard vma.start % pageSize == 0, vma.end % pageSize == 0, vma.start < vma.end, vma.start >= end,
        vma.end <= highestAddress, vma.prot & ~7 == 0
      else { throw damaged(image, "\(name) has an impossible mapping at \(hex(vma.start))") }
      end = vma.end
      try checkSupported(vma, process, image)
    }
    guard memory.mmSavedAuxv.count <= 64 else { throw damaged(image, "\(name) has an auxiliary vector that is too long") }
  }

  private static func checkSupported(
    _ vma: VmaEntry, _ process: RestoredProcess, _ image: ImageReader
  ) throws(Failure) {
    let kind = vma.kind
    let missing: String? =
      if !kind.isDisjoint(with: [.anonymousShared, .memfd]) {
        "shared anonymous memory"
      } else if kind.contains(.systemV) {
        "System V shared memory"
      } else if kind.contains(.aioRing) {
        "a ring for asynchronous I/O"
      } else if kind.contains(.guardRegion) {
        "guard regions"
      } else if vma.flags & UInt32(MAP_HUGETLB) != 0 {
        "huge pages"
      } else if kind.intersection([.regular, .vsyscall]).isEmpty {
        "a kind of memory unknown to this version"
      } else {
        nil
      }
    guard let missing else { return }
    throw Failure(
      .cannotRestore, "Cannot restore \(image.path)",
      why: "process \(process.label) has \(missing) at \(hex(vma.start)), which is not supported yet",
      advice: "use criu restore for this image")
  }

  private static func readPageMap(
    of process: RestoredProcess, _ memory: MmEntry, _ image: ImageReader
  ) throws(Failure) -> PageMap {
    let name = "pagemap-\(process.pid).img"
    var cursor = try image.open(.pagemap, UInt64(process.pid))
    guard let head = try cursor.next(PagemapHead.self) else { throw damaged(image, "\(name) has no entry") }
    var map = PageMap(pagesID: head.pagesID)
    var end: UInt64 = 0
    while let entry = try cursor.next(PagemapEntry.self) {
      let pages = entry.hasNrPages ? entry.nrPages : UInt64(entry.compatNrPages)
      guard entry.vaddr % pageSize == 0, entry.vaddr >= end, entry.vaddr < highestAddress, pages > 0,
        pages <= (highestAddress - entry.vaddr) / pageSize
      else { throw damaged(image, "\(name) has an impossible run of pages at \(hex(entry.vaddr))") }
      end = entry.vaddr + pages * pageSize
      guard entry.inParent == false, entry.flags & PageFlags.parent == 0,
        !entry.hasFlags || entry.flags & PageFlags.present != 0
      else {
        throw Failure(
          .cannotRestore, "Cannot restore \(image.path)", why: "it builds on an earlier image, which is not supported yet",
          advice: "use criu restore for this image")
      }
      map.runs.append(AddressRange(entry.vaddr, end))
    }
    try checkRuns(map, memory, name, image)
    return map
  }

  /// Every page must lie in private memory, and the pages file must hold all of them.
  private static func checkRuns(
    _ map: PageMap, _ memory: MmEntry, _ name: String, _ image: ImageReader
  ) throws(Failure) {
    var index = 0
    for run in map.runs {
      var address = run.start
      while address < run.end {
        while index < memory.vmas.count, memory.vmas[index].end <= address { index += 1 }
        guard index < memory.vmas.count, memory.vmas[index].start <= address,
          memory.vmas[index].isPrivateMemory || memory.vmas[index].kind.contains(.vdso)
        else { throw damaged(image, "\(name) has pages at \(hex(address)), where there is no private memory") }
        address = memory.vmas[index].end
      }
    }
    let pagesName = ImageKind.pagesFileName(map.pagesID)
    let size: Int
    do throws(Errno) { size = Int(try image.openFile(pagesName).status().st_size) } catch {
      throw Failure(.badImage, "Cannot restore \(image.path)", why: "\(pagesName): \(error.words)", advice: "use another image")
    }
    guard UInt64(size) >= map.bytes else {
      throw damaged(image, "\(pagesName) is too short: \(map.bytes) bytes are needed and it has \(size)")
    }
  }

  /// The job's vDSO must be this kernel's: its code goes on from the middle of it, and finds data by distance.
  private static func checkVDSO(
    _ memory: MmEntry, _ pages: PageMap, _ process: RestoredProcess, _ image: ImageReader
  ) throws(Failure) {
    guard let area = memory.vmas.first(where: { $0.kind.contains(.vdso) }) else { return }
    let kernel = try VDSO.ofThisKernel()
    let data = memory.vmas.filter { $0.kind.contains(.vvar) }.reduce(0) { $0 + $1.count }
    var saved = [UInt8](repeating: 0, count: min(Int(area.count), 1 << 20))
    var offset: UInt64 = 0
    for run in pages.runs {
      if run.start <= area.start, area.end <= run.end {
        offset += area.start - run.start
        let name = ImageKind.pagesFileName(pages.pagesID)
        _ = try attempt("Cannot read \(image.path)/\(name)") { () throws(Errno) in
          let file = try image.openFile(name)
          return try saved.withMutableBytes { bytes throws(Errno) in try file.read(into: bytes, at: Int(offset)) }
        }
        break
      }
      offset += run.count
    }
    let used = kernel.code.withUnsafeBytes { VDSO.length(of: $0) }
    guard saved.count == kernel.code.count, data == kernel.dataSize, saved.prefix(used) == kernel.code.prefix(used) else {
      throw Failure(
        .cannotRestore, "Cannot restore \(image.path)",
        why: "it was made under another kernel, whose vDSO differs from this one's",
        advice: "restore it under the kernel that `torpor show` names")
    }
  }

  // MARK: A place for the interpreter

  /// An address at which every process of the job has room for the interpreter.
  static func freeBase(for spaces: [MmEntry]) throws(Failure) -> UInt64 {
    let size = BlankProcess.Layout.totalSize
    var ranges = spaces.flatMap { $0.vmas.map(\.range) }
    ranges.sort { $0.start < $1.start }
    var base: UInt64 = 0x10_0000
    for range in ranges {
      if range.start > base, range.start - base > size + 2 * pageSize { return base + pageSize }
      base = max(base, range.end)
    }
    guard base + size + 2 * pageSize < highestAddress else {
      throw Failure(.cannotRestore, "Cannot restore", why: "the job's address spaces leave no room for the interpreter")
    }
    return base + pageSize
  }
}

import CLinux
import Glibc
import Images
import Linux
import Testing
import Tracing

@testable import Torpor

/// A folder of its own with an image in it, removed at the end.
private func withImage(_ write: (ImageWriter) throws -> Void, _ body: (ImageReader) throws -> Void) throws {
  var template = Array("/tmp/torpor-memory-XXXXXX".utf8CString)
  try #require(mkdtemp(&template) != nil)
  let folder = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
  let path = folder + "/image"
  defer {
    removeDirectory(path)
    rmdir(folder)
  }
  let writer = try ImageWriter(at: path)
  try write(writer)
  try writer.commit(.with { $0.version = 1 })
  try body(try ImageReader(at: path))
}

/// This process, as if it were one of a job.
private func ownProcess() throws -> JobProcess {
  let proc = try ProcDirectory(getpid())
  let memory = try proc.open("mem", O_RDWR)
  let statistics = try TaskStatistics(of: proc)
  let status = try TaskStatus(of: proc)
  return JobProcess(
    pid: getpid(), proc: proc, handle: try openProcess(getpid()), memory: memory, statistics: statistics, status: status,
    parent: nil)
}

/// Anonymous private memory of this process.
private final class Pages {
  let start: UInt64
  let count: Int
  let memory: UnsafeMutableRawPointer

  init(_ count: Int) throws {
    self.count = count
    let address = try systemCall(
      Int32(SYS_mmap), 0, count * Int(pageSize), Int(PROT_READ | PROT_WRITE), Int(MAP_PRIVATE | Int32(MAP_ANONYMOUS)), -1, 0)
    start = UInt64(address)
    memory = try #require(UnsafeMutableRawPointer(bitPattern: address))
    madvise(memory, count * Int(pageSize), MADV_NOHUGEPAGE)
  }

  deinit { munmap(memory, count * Int(pageSize)) }

  func address(_ page: Int) -> UInt64 { start + UInt64(page) * pageSize }

  func fill(_ page: Int, _ value: UInt8) { memset(memory + page * Int(pageSize), Int32(value), Int(pageSize)) }

  func area(_ pages: Range<Int>, _ protection: Int32 = PROT_READ | PROT_WRITE) -> VmaEntry {
    mprotect(memory + pages.lowerBound * Int(pageSize), pages.count * Int(pageSize), protection)
    return anonymous(AddressRange(address(pages.lowerBound), address(pages.upperBound)), protection)
  }
}

private func anonymous(_ range: AddressRange, _ protection: Int32 = PROT_READ | PROT_WRITE) -> VmaEntry {
  .with {
    ($0.start, $0.end, $0.prot) = (range.start, range.end, UInt32(protection))
    ($0.pgoff, $0.shmid, $0.fd) = (0, 0, -1)
    $0.flags = UInt32(MAP_PRIVATE | Int32(MAP_ANONYMOUS))
    $0.status = AreaStatus([.regular, .anonymousPrivate]).rawValue
  }
}

@Suite struct PageSavingTests {
  @Test func pagesAreStoredOnceAndInOrder() throws {
    let pages = try Pages(4096)
    // More than one buffer, with holes, and with memory that may not be read.
    for page in 0..<2000 { pages.fill(page, UInt8(page % 251)) }
    for page in stride(from: 2000, to: 4096, by: 2) { pages.fill(page, UInt8(page % 251)) }
    let areas = [
      pages.area(0..<1000), pages.area(1000..<1500, PROT_NONE), pages.area(1500..<3000, PROT_READ),
      // From 3000 to 3100 nothing that the image would describe.
      pages.area(3100..<4096, PROT_WRITE),
    ]
    let process = try ownProcess()
    let plan = try PagePlan(areas, of: process)
    let stored = Array(0..<2000) + stride(from: 2000, to: 3000, by: 2) + stride(from: 3100, to: 4096, by: 2)
    #expect(plan.bytes == UInt64(stored.count) * pageSize)
    try withImage({ image in
      let saver = try PageSaver(image, Progress())
      try saver.expect(plan.bytes, in: 1)
      try saver.save(plan.runs, from: ProcessPages(process), as: .pagemap, 1, pagesID: 1, "Cannot test")
      #expect(try saver.finish() == plan.bytes)
    }) { image in
      let map = try PageMap(image, .pagemap, 1, limit: highestAddress)
      try map.checkLength(image)
      let addresses = map.runs.flatMap { stride(from: $0.start, to: $0.end, by: Int(pageSize)) }
      #expect(addresses == stored.map(pages.address))
      let content = try readWholeFile("\(image.path)/pages-1.img")
      try #require(content.count == stored.count * Int(pageSize))
      for (index, page) in stored.enumerated() {
        let part = content[(index * Int(pageSize))..<((index + 1) * Int(pageSize))]
        #expect(part.allSatisfy { $0 == UInt8(page % 251) }, "page \(page)")
      }
    }
  }

  @Test func manySmallFilesAreComplete() throws {
    let pages = try Pages(300)
    for page in 0..<300 { pages.fill(page, UInt8(page % 251)) }
    let process = try ownProcess()
    try withImage({ image in
      let saver = try PageSaver(image, Progress())
      for page in 0..<300 {
        let runs = [PageRun(range: AddressRange(pages.address(page), pages.address(page + 1)), way: .vector)]
        try saver.save(
          runs, from: ProcessPages(process), as: .pagemap, UInt64(page), pagesID: UInt32(page), "Cannot test")
      }
      _ = try saver.finish()
    }) { image in
      #expect(image.manifest?.files.count == 600)
      for page in 0..<300 {
        let content = try readWholeFile("\(image.path)/pages-\(page).img")
        #expect(content.count == Int(pageSize) && content.allSatisfy { $0 == UInt8(page % 251) })
      }
    }
  }

  @Test func holesOfFilesInMemoryAreNotStored() throws {
    let file = Descriptor(owning: memfd_create("test", UInt32(MFD_CLOEXEC)))
    try #require(ftruncate(file.number, 100 * Int(pageSize) + 100) == 0)
    try [UInt8](repeating: 5, count: 10).withUnsafeBytes { bytes in
      try file.write(bytes, at: 7 * Int(pageSize) + 50)
      try file.write(bytes, at: 100 * Int(pageSize) + 90)
    }
    let source = FilePages(file)
    let runs = try source.runs()
    #expect(runs.map(\.range.start) == [7 * pageSize, 100 * pageSize])
    #expect(runs.map(\.range.count) == [pageSize, pageSize])
    var content = [UInt8](repeating: 1, count: 2 * Int(pageSize))
    try content.withUnsafeMutableBytes { try source.read(runs, into: $0) }
    #expect(content[50] == 5 && content[60] == 0)
    #expect(content[Int(pageSize) + 99] == 5 && content[Int(pageSize) + 100] == 0)
  }
}

@Suite struct MemoryCheckTests {
  private static let base: UInt64 = 0x5500_0000_0000

  /// The memory of a small process.
  private func memory() -> MmEntry {
    .with {
      ($0.mmStartCode, $0.mmEndCode, $0.mmStartData, $0.mmEndData) = (Self.base, Self.base + 4096, Self.base, Self.base)
      ($0.mmStartStack, $0.mmStartBrk, $0.mmBrk) = (Self.base, Self.base, Self.base)
      ($0.mmArgStart, $0.mmArgEnd, $0.mmEnvStart, $0.mmEnvEnd) = (Self.base, Self.base, Self.base, Self.base)
      $0.exeFileID = 1
      $0.mmSavedAuxv = [6, 4096, 0, 0]
      $0.vmas = (0..<20).map { index in
        let start = Self.base + UInt64(index) * 16 * pageSize
        return anonymous(AddressRange(start, start + 8 * pageSize), index % 3 == 0 ? PROT_READ : PROT_READ | PROT_WRITE)
      }
    }
  }

  private func pageMap() -> [PagemapEntry] {
    (0..<20).map { index in
      .with {
        ($0.vaddr, $0.nrPages, $0.compatNrPages) = (Self.base + UInt64(index) * 16 * pageSize, 2, 2)
        $0.flags = PageFlags.present
      }
    }
  }

  /// Checks an image with this memory, and makes the calls that would build it.
  private func check(
    _ memory: MmEntry, _ pageMap: [PagemapEntry], pages: Int = 40, segments: [MemfdInodeEntry] = []
  ) throws {
    try withImage({ image in
      try image.write(.pagemap, 10, head: PagemapHead.with { $0.pagesID = 1 }, all: pageMap)
      try image.writeFile("pages-1.img", [UInt8](repeating: 1, count: pages * Int(pageSize)))
      let file = FileEntry.with {
        ($0.type, $0.id) = (.reg, 1)
        $0.reg = .with { ($0.id, $0.flags, $0.pos, $0.fown, $0.name) = (1, 0, 0, .none, "/bin/true") }
      }
      let shared = FileEntry.with {
        ($0.type, $0.id) = (.memfd, 2)
        $0.memfd = .with { ($0.id, $0.flags, $0.pos, $0.fown, $0.inodeID) = (2, 2, 0, .none, 1) }
      }
      try image.write(.files, all: [file, shared])
      if !segments.isEmpty { try image.write(.memfd, all: segments) }
      if pageMap.count == 20 {
        try image.write(.sharedPagemap, 1, head: PagemapHead.with { $0.pagesID = 1 }, all: pageMap.prefix(1))
      }
    }) { image in
      let process = RestoredProcess(
        entry: .with { ($0.pid, $0.ppid, $0.pgid, $0.sid, $0.threads) = (10, 0, 10, 10, [10]) }, cores: [],
        ids: .with { $0.filesID = 2 }, memory: memory)
      let files = try RestoredFiles(image: image, processes: [process])
      try MemoryRoom.check([process], image, files)
      let space = try #require(process.space)
      let base = try MemoryRoom.freeBase(for: [memory])
      let layout = BlankProcess.Layout(base: base)
      let own = AddressRange(layout.file.start, layout.parking.end)
      #expect(space.areas.allSatisfy { !$0.range.overlaps(own) })
      _ = AreaScript.make(memory, space, MappingHand(memory, space), parked: [])
    }
  }

  @Test func aGoodImageIsTaken() throws { try check(memory(), pageMap()) }

  @Test func pagesMustBeWhereMemoryIs() throws {
    var map = pageMap()
    map[5].nrPages = 9
    #expect(throws: Failure.self) { try check(memory(), map, pages: 100) }
  }

  @Test func thePagesFileMustBeLongEnough() {
    #expect(throws: Failure.self) { try check(memory(), pageMap(), pages: 39) }
  }

  @Test func areasMustNotOverlap() {
    var memory = memory()
    memory.vmas[3].end = memory.vmas[4].start + pageSize
    #expect(throws: Failure.self) { try check(memory, pageMap()) }
  }

  @Test func guardsMustLieInAreas() throws {
    var memory = memory()
    func guardArea(_ start: UInt64) -> VmaEntry {
      .with {
        ($0.start, $0.end, $0.status) = (start, start + pageSize, AreaStatus.guardRegion.rawValue)
        ($0.pgoff, $0.shmid, $0.prot, $0.flags, $0.fd) = (0, 0, 0, 0, -1)
      }
    }
    memory.vmas.append(guardArea(memory.vmas[1].start))
    try check(memory, pageMap())
    memory.vmas.append(guardArea(memory.vmas[1].end))
    #expect(throws: Failure.self) { try check(memory, pageMap()) }
  }

  @Test func thePageCountOfOlderImagesIsRead() throws {
    var map = pageMap()
    for index in map.indices {
      map[index].clearNrPages()
      map[index].clearFlags()
    }
    try check(memory(), map)
  }

  @Test func pagesInAnEarlierImageAreRefused() {
    var map = pageMap()
    map[2].flags = PageFlags.parent
    #expect(throws: Failure.self) { try check(memory(), map) }
  }

  /// Whatever the numbers are: an error or none, but no crash and no end of memory.
  @Test func wildNumbersDoNoHarm() throws {
    var generator = Wild(state: 4711)
    for _ in 0..<400 {
      var memory = memory()
      var map = pageMap()
      for _ in 0..<Int.random(in: 1...3, using: &generator) {
        let value = generator.number(near: Self.base)
        var vma = memory.vmas[Int.random(in: 0..<20, using: &generator)]
        switch Int.random(in: 0..<12, using: &generator) {
        case 0: vma.start = value
        case 1: vma.end = value
        case 2: vma.pgoff = value
        case 3: vma.shmid = value % 4
        case 4: vma.prot = UInt32(truncatingIfNeeded: value)
        case 5: vma.flags = UInt32(truncatingIfNeeded: value)
        case 6: vma.status = UInt32(truncatingIfNeeded: value)
        case 7: vma.madv = value
        case 8: (vma.status, vma.shmid) = (AreaStatus([.regular, .fileShared, .memfd]).rawValue, 2)
        case 9: (vma.status, vma.pgoff) = (AreaStatus([.regular, .anonymousShared]).rawValue, value)
        case 10: memory.mmBrk = value
        default:
          let index = Int.random(in: 0..<20, using: &generator)
          if value % 2 == 0 { map[index].vaddr = value } else { map[index].nrPages = value }
        }
        memory.vmas[Int.random(in: 0..<20, using: &generator)] = vma
      }
      let segment = MemfdInodeEntry.with {
        ($0.name, $0.uid, $0.gid, $0.shmid, $0.seals, $0.inodeID) = ("x", 0, 0, 1, 1, 1)
        $0.size = generator.number(near: 1 << 20)
      }
      do { try check(memory, map, segments: [segment]) } catch is Failure {}
    }
  }

  /// Numbers from a fixed seed, many of them at the edges.
  private struct Wild: RandomNumberGenerator {
    var state: UInt64

    mutating func next() -> UInt64 {
      state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
      return state ^ state >> 29
    }

    mutating func number(near base: UInt64) -> UInt64 {
      let edges: [UInt64] = [
        0, 1, 4096, .max, .max - 4095, 1 << 63, UInt64(UInt32.max), highestAddress, highestAddress - 4096, base,
        base &+ (next() % 512) &* 4096, next(), next() & ~4095,
      ]
      return edges[Int(next() % UInt64(edges.count))]
    }
  }
}

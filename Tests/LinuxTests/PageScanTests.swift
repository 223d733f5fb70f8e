import CLinux
import Linux
import Testing

/// Which pages of this process the kernel says are its own.
@Suite struct PageScanTests {
  /// The runs in `count` fresh pages of memory, after `prepare`; counted in pages from their start.
  private func runs(
    of count: Int, _ prepare: (UnsafeMutableRawPointer) -> Void
  ) throws -> [(pages: Range<Int>, kind: PageScan.Kind)] {
    let size = Int(pageSize)
    let address = try systemCall(
      Int32(SYS_mmap), 0, count * size, Int(PROT_READ | PROT_WRITE), Int(MAP_PRIVATE | Int32(MAP_ANONYMOUS)), -1, 0)
    let memory = try #require(UnsafeMutableRawPointer(bitPattern: address))
    defer { munmap(memory, count * size) }
    madvise(memory, count * size, MADV_NOHUGEPAGE)
    prepare(memory)
    var result: [(pages: Range<Int>, kind: PageScan.Kind)] = []
    let start = UInt64(address)
    let scan = try PageScan(ProcDirectory(getpid()))
    try scan.forEachOwnRun(in: AddressRange(start, start + UInt64(count * size))) { run, kind in
      result.append((Int((run.start - start) / pageSize)..<Int((run.end - start) / pageSize), kind))
    }
    return result
  }

  private func touch(_ memory: UnsafeMutableRawPointer, _ page: Int) {
    memory.storeBytes(of: 1, toByteOffset: page * Int(pageSize), as: UInt8.self)
  }

  @Test func onlyWrittenPagesAreFound() throws {
    var sum: UInt8 = 0
    let found = try runs(of: 64) { memory in
      for page in [0, 1, 2, 10, 63] { touch(memory, page) }
      // Reading gives the page of zeros that all processes share.
      for page in 20..<30 { sum &+= memory.load(fromByteOffset: page * Int(pageSize), as: UInt8.self) }
    }
    #expect(sum == 0)
    #expect(found.map(\.pages) == [0..<3, 10..<11, 63..<64])
    #expect(found.allSatisfy { $0.kind == .data })
  }

  @Test func manyRunsComeOnceEach() throws {
    // More than fit one answer of the kernel.
    let count = 20_000
    let found = try runs(of: count) { memory in
      for page in stride(from: 0, to: count, by: 2) { touch(memory, page) }
    }
    #expect(found.count == count / 2)
    #expect(zip(found, stride(from: 0, to: count, by: 2)).allSatisfy { $0.pages == $1..<($1 + 1) })
  }

  @Test func guardedPagesAreToldFromData() throws {
    var isKnown = false
    let found = try runs(of: 16) { memory in
      for page in 0..<16 { touch(memory, page) }
      isKnown = madvise(memory + 4 * Int(pageSize), 2 * Int(pageSize), 102 /* MADV_GUARD_INSTALL */) == 0
    }
    guard isKnown else { return }
    #expect(found.map(\.pages) == [0..<4, 4..<6, 6..<16])
    #expect(found.map { $0.kind == .guarded } == [false, true, false])
  }
}

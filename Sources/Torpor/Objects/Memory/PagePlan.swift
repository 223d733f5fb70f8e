import Images
import Linux
import SystemPackage

/// A run of pages to store, and how they are read.
struct PageRun {
  enum Way {
    /// Many runs with one process_vm_readv(2).
    case vector
    /// Through /proc/PID/mem, for memory that may not be read by the process itself.
    case memoryFile
    /// The whole vDSO, without what we may have left in its spare bytes.
    case vdso
  }

  var range: AddressRange
  var way: Way
}

/// Which pages of a process are stored: those that are its own, and the vDSO for readers that look at its symbols.
struct PagePlan {
  private(set) var runs: [PageRun] = []
  /// Pages that fault at any touch. (MADV_GUARD_INSTALL)
  private(set) var guards: [AddressRange] = []
  private(set) var bytes: UInt64 = 0

  /// Scans the address space once.
  ///
  /// - Parameter areas: those that the image describes, by rising address.
  init(_ areas: [VmaEntry], of process: JobProcess) throws(Errno) {
    let scan = try PageScan(process.proc)
    var plan = PagePlan()
    var index = 0
    try scan.forEachOwnRun(in: AddressRange(0, highestAddress)) { found, kind in
      while index < areas.count, areas[index].end <= found.start { plan.leave(areas, &index) }
      while index < areas.count, areas[index].start < found.end {
        let piece = AddressRange(max(found.start, areas[index].start), min(found.end, areas[index].end))
        plan.add(piece, kind, in: areas[index])
        guard areas[index].end <= found.end else { break }
        plan.leave(areas, &index)
      }
    }
    while index < areas.count { plan.leave(areas, &index) }
    plan.bytes = plan.runs.reduce(0) { $0 + $1.range.count }
    self = plan
  }

  private init() {}

  private mutating func add(_ piece: AddressRange, _ kind: PageScan.Kind, in area: borrowing VmaEntry) {
    switch kind {
    case .guarded: guards.append(piece)
    case .data:
      guard area.isPrivateMemory else { return }
      let way = area.isReadable ? PageRun.Way.vector : .memoryFile
      if let last = runs.last, last.range.end == piece.start, last.way == way {
        runs[runs.count - 1].range.end = piece.end
      } else {
        runs.append(PageRun(range: piece, way: way))
      }
    }
  }

  /// Goes on to the next area.
  private mutating func leave(_ areas: [VmaEntry], _ index: inout Int) {
    if areas[index].kind.contains(.vdso) { runs.append(PageRun(range: areas[index].range, way: .vdso)) }
    index += 1
  }

  /// How the image describes guarded pages: as areas of a kind of their own, behind all others.
  var guardAreas: [VmaEntry] {
    guards.map { range in
      .with {
        ($0.start, $0.end, $0.status) = (range.start, range.end, AreaStatus.guardRegion.rawValue)
        ($0.pgoff, $0.shmid, $0.prot, $0.flags, $0.fd) = (0, 0, 0, 0, -1)
      }
    }
  }
}

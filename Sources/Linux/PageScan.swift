import CLinux
import SystemPackage

/// Which pages of an address space hold something of the process's own. PAGEMAP_SCAN (Linux 6.7)
public struct PageScan: ~Copyable {
  /// What a run of pages is.
  public enum Kind: Sendable {
    /// Anonymous (private memory, or a private copy of a file's page), in memory or swapped out, with data in it: not the
    /// kernel's shared page of zeros.
    case data
    /// Made to fault at any touch, with MADV_GUARD_INSTALL.
    case guarded
  }

  private let pagemap: Descriptor

  public init(_ process: borrowing ProcDirectory) throws(Errno) { pagemap = try process.open("pagemap") }

  /// Calls `body` for each run of pages in `range` that are the process's own.
  ///
  /// Runs come in ascending order and may cross the borders of areas.
  public func forEachOwnRun(in range: AddressRange, _ body: (AddressRange, Kind) -> Void) throws(Errno) {
    do { try scan(range, guardBit: UInt64(CLINUX_PAGE_IS_GUARD), body) } catch .invalidArgument {
      // Before Linux 6.15 nothing tells guarded pages.
      try scan(range, guardBit: 0, body)
    }
  }

  private func scan(
    _ range: AddressRange, guardBit: UInt64, _ body: (AddressRange, Kind) -> Void
  ) throws(Errno) {
    let capacity = 4096
    let regions = UnsafeMutablePointer<clinux_page_region>.allocate(capacity: capacity)
    defer { regions.deallocate() }
    // A page is wanted when it is present or swapped (as those that are guarded seem to be), not of a file, and not the
    // zero page: the mask is of those categories that must hold after the inversion, the other mask of those of which
    // one must.
    let unwanted = UInt64(CLINUX_PAGE_IS_FILE | CLINUX_PAGE_IS_PFNZERO)
    var argument = clinux_pm_scan_arg()
    argument.size = UInt64(MemoryLayout<clinux_pm_scan_arg>.size)
    argument.start = range.start
    argument.end = range.end
    argument.vec = UInt64(UInt(bitPattern: regions))
    argument.vec_len = UInt64(capacity)
    argument.category_inverted = unwanted
    argument.category_mask = unwanted
    argument.category_anyof_mask = UInt64(CLINUX_PAGE_IS_PRESENT | CLINUX_PAGE_IS_SWAPPED)
    // What is returned divides runs: data from guarded pages, and nothing else.
    argument.return_mask = guardBit
    var pending: (run: AddressRange, categories: UInt64) = (AddressRange(0, 0), 0)
    func flush() {
      if pending.run.count > 0 { body(pending.run, pending.categories == 0 ? .data : .guarded) }
    }
    while argument.start < range.end {
      let count = try retrying { () throws(Errno) in
        try withUnsafeMutableBytes(of: &argument) { bytes throws(Errno) in
          try systemCall(
            SYS_ioctl, Int(pagemap.number), Int(CLINUX_PAGEMAP_SCAN), Int(bitPattern: bytes.baseAddress))
        }
      }
      for index in 0..<count {
        // The kernel fills its answer in pieces of its own, and where one of them ends with the walk it gives the last
        // region twice.
        let region = AddressRange(max(regions[index].start, pending.run.end), regions[index].end)
        if region.start >= region.end { continue }
        if region.start == pending.run.end, regions[index].categories == pending.categories {
          pending.run.end = region.end
        } else {
          flush()
          pending = (region, regions[index].categories)
        }
      }
      guard argument.walk_end > argument.start else { break }
      argument.start = argument.walk_end
    }
    flush()
  }
}

import CLinux
import SystemPackage

/// Which pages of an address space hold something of the process's own. PAGEMAP_SCAN (Linux 6.7)
public struct PageScan: ~Copyable {
  private let pagemap: Descriptor

  public init(_ process: borrowing ProcDirectory) throws(Errno) { pagemap = try process.open("pagemap") }

  /// Calls `body` for each run of pages in `range` that are anonymous (private memory, or a private copy of a
  /// file's page) and hold data: in memory or swapped out, and not the kernel's shared page of zeros.
  ///
  /// Runs come in ascending order and may cross the borders of areas.
  public func forEachOwnRun(in range: AddressRange, _ body: (AddressRange) -> Void) throws(Errno) {
    // A page is wanted when (present or swapped), not of a file, and not the zero page: the mask is of those
    // categories that must hold after the inversion, the other mask of those of which one must.
    let file = UInt64(CLINUX_PAGE_IS_FILE)
    let zero = UInt64(CLINUX_PAGE_IS_PFNZERO)
    let present = UInt64(CLINUX_PAGE_IS_PRESENT | CLINUX_PAGE_IS_SWAPPED)
    try scan(range, inverted: file | zero, all: file | zero, any: present, body)
  }

  /// The same for the pages of a shared area: those that this process has in its page table.
  public func forEachPresentRun(in range: AddressRange, _ body: (AddressRange) -> Void) throws(Errno) {
    let present = UInt64(CLINUX_PAGE_IS_PRESENT | CLINUX_PAGE_IS_SWAPPED)
    try scan(range, inverted: 0, all: 0, any: present, body)
  }

  private func scan(
    _ range: AddressRange, inverted: UInt64, all: UInt64, any: UInt64, _ body: (AddressRange) -> Void
  ) throws(Errno) {
    let capacity = 4096
    let regions = UnsafeMutablePointer<clinux_page_region>.allocate(capacity: capacity)
    defer { regions.deallocate() }
    var argument = clinux_pm_scan_arg()
    argument.size = UInt64(MemoryLayout<clinux_pm_scan_arg>.size)
    argument.start = range.start
    argument.end = range.end
    argument.vec = UInt64(UInt(bitPattern: regions))
    argument.vec_len = UInt64(capacity)
    argument.category_inverted = inverted
    argument.category_mask = all
    argument.category_anyof_mask = any
    // What is returned divides runs: with nothing to tell apart, neighbours come as one.
    argument.return_mask = UInt64(CLINUX_PAGE_IS_PRESENT | CLINUX_PAGE_IS_SWAPPED)
    var pending = AddressRange(0, 0)
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
        let run = AddressRange(max(regions[index].start, pending.end), regions[index].end)
        if run.start >= run.end { continue }
        if run.start == pending.end {
          pending.end = run.end
        } else {
          if pending.count > 0 { body(pending) }
          pending = run
        }
      }
      guard argument.walk_end > argument.start else { break }
      argument.start = argument.walk_end
    }
    if pending.count > 0 { body(pending) }
  }
}

import CLinux
import Images
import Linux

/// The bits by which the image tells one kind of area from another. (`VmaEntry.status`)
struct AreaStatus: OptionSet {
  let rawValue: UInt32
  static let regular = AreaStatus(rawValue: 1 << 0)
  static let vsyscall = AreaStatus(rawValue: 1 << 2)
  static let vdso = AreaStatus(rawValue: 1 << 3)
  static let heap = AreaStatus(rawValue: 1 << 5)
  static let filePrivate = AreaStatus(rawValue: 1 << 6)
  static let fileShared = AreaStatus(rawValue: 1 << 7)
  static let anonymousShared = AreaStatus(rawValue: 1 << 8)
  static let anonymousPrivate = AreaStatus(rawValue: 1 << 9)
  static let systemV = AreaStatus(rawValue: 1 << 10)
  static let vvar = AreaStatus(rawValue: 1 << 12)
  static let aioRing = AreaStatus(rawValue: 1 << 13)
  static let memfd = AreaStatus(rawValue: 1 << 14)
  static let guardRegion = AreaStatus(rawValue: 1 << 16)
}

extension VmaEntry {
  var kind: AreaStatus { AreaStatus(rawValue: status) }
  var range: AddressRange { AddressRange(start, end) }
  var count: UInt64 { end - start }
  var isReadable: Bool { prot & UInt32(PROT_READ) != 0 }
  var isPrivateMemory: Bool {
    kind.contains(.regular) && !kind.contains(.vvar) && !kind.contains(.vdso)
      && (kind.contains(.anonymousPrivate) || kind.contains(.filePrivate))
  }
  var isFile: Bool { kind.contains(.filePrivate) || kind.contains(.fileShared) }
  var isShared: Bool { kind.contains(.fileShared) || kind.contains(.anonymousShared) }
  /// The page of [vsyscall], above all address spaces and in none.
  var isGate: Bool { kind.contains(.vsyscall) && !kind.contains(.regular) }
  /// Not ours to map: the kernel puts it there.
  var isOfKernel: Bool { kind.contains(.vsyscall) || kind.contains(.vdso) || kind.contains(.vvar) }
}

/// What must be known of a process's address space from inside it.
public struct InsideFacts {
  public var brk: UInt64
  public var dumpable: Int32
  public var thpDisabled: Bool
}

/// The sticky advice that an area's flags show, as bits of `VmaEntry.madv` by the number of the advice. madvise(2)
enum Advice {
  private static let table: [(MemoryArea.Flags, Int32)] = [
    (.random, 1), (.sequential, 2), (.dontFork, 10), (.mergeable, 12), (.hugePages, 14), (.noHugePages, 15),
    (.dontDump, 16), (.wipeOnFork, 18),
  ]

  static func bits(_ flags: MemoryArea.Flags) -> UInt64 {
    table.reduce(0) { flags.contains($1.0) ? $0 | 1 << UInt64($1.1) : $0 }
  }

  /// Advice without which a program works as well.
  static func isHint(_ number: Int32) -> Bool { number != 10 && number != 18 }

  /// The advice in `bits` that is sticky; anything else an image may ask for would change memory.
  static func numbers(_ bits: UInt64) -> [Int32] { table.map(\.1).filter { bits >> UInt64($0) & 1 == 1 } }
}

/// The advice that says which memory may be made of huge pages: MADV_HUGEPAGE, MADV_NOHUGEPAGE.
enum HugePages {
  static let advice: UInt64 = 1 << 14 | 1 << 15
}

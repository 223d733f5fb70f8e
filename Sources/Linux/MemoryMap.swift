import CLinux
import SystemPackage

/// One line of /proc/PID/maps with the flags that /proc/PID/smaps adds. proc_pid_smaps(5)
public struct MemoryArea: Sendable {
  /// The sticky properties of an area, from the `VmFlags:` line of smaps.
  public struct Flags: OptionSet, Sendable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
    public static let growsDown = Flags(rawValue: 1 << 0)  // gd
    public static let locked = Flags(rawValue: 1 << 1)  // lo
    public static let lockedOnFault = Flags(rawValue: 1 << 2)  // lf
    public static let noReserve = Flags(rawValue: 1 << 3)  // nr
    public static let hugeTLB = Flags(rawValue: 1 << 4)  // ht
    public static let io = Flags(rawValue: 1 << 5)  // io
    public static let pfnMap = Flags(rawValue: 1 << 6)  // pf
    public static let dontFork = Flags(rawValue: 1 << 7)  // dc
    public static let dontDump = Flags(rawValue: 1 << 8)  // dd
    public static let wipeOnFork = Flags(rawValue: 1 << 9)  // wf
    public static let hugePages = Flags(rawValue: 1 << 10)  // hg
    public static let noHugePages = Flags(rawValue: 1 << 11)  // nh
    public static let mergeable = Flags(rawValue: 1 << 12)  // mg
    public static let userfaultMissing = Flags(rawValue: 1 << 13)  // um
    public static let userfaultWriteProtect = Flags(rawValue: 1 << 14)  // uw
    public static let userfaultMinor = Flags(rawValue: 1 << 15)  // ui
    public static let sealed = Flags(rawValue: 1 << 16)  // sl
    public static let shadowStack = Flags(rawValue: 1 << 17)  // ss
    public static let sequential = Flags(rawValue: 1 << 18)  // sr
    public static let random = Flags(rawValue: 1 << 19)  // rr
    public static let mayShare = Flags(rawValue: 1 << 20)  // ms
    public static let account = Flags(rawValue: 1 << 21)  // ac
    public static let guardRegion = Flags(rawValue: 1 << 22)  // gu
  }

  public var range: AddressRange
  /// PROT_READ, PROT_WRITE, PROT_EXEC.
  public var protection: Int32
  public var isShared: Bool
  /// Offset into the file in bytes; of no meaning for anonymous memory.
  public var offset: UInt64
  public var deviceMajor: UInt32
  public var deviceMinor: UInt32
  public var inode: UInt64
  /// The path, `[heap]` and the like; empty for anonymous memory.
  public var name: String
  public var flags: Flags
  /// Bytes of it that are in memory now (`Rss:`).
  public var residentBytes: UInt64
  /// The protection key of the area (`ProtectionKey:`).
  public var protectionKey: Int32

  public var isReadable: Bool { protection & PROT_READ != 0 }
  public var isWritable: Bool { protection & PROT_WRITE != 0 }
  /// Whether a file (or shared anonymous memory, which is a file of the kernel's own) lies under it.
  public var isFileBacked: Bool { inode != 0 }
}

/// Every area of the process's address space, in ascending order.
///
/// - Parameter withFlags: read smaps, which walks the page tables, rather than maps; without it `flags`,
///   `residentBytes` and `protectionKey` are empty.
public func readMemoryMap(of process: borrowing ProcDirectory, withFlags: Bool) throws(Errno) -> [MemoryArea] {
  let text = try process.read(withFlags ? "smaps" : "maps")
  return text.withUnsafeBytes { parseMemoryMap($0) }
}

/// The same from the text of the file.
public func parseMemoryMap(_ bytes: UnsafeRawBufferPointer) -> [MemoryArea] {
  var areas: [MemoryArea] = []
  var scanner = TextScanner(bytes)
  // Neighbours often lie on the same file: its name is made into a string once.
  var lastName = UnsafeRawBufferPointer(start: nil, count: 0)
  var lastString = ""
  while !scanner.isAtEnd {
    // An area's first line starts with a hexadecimal digit in lower case, a property's with a capital.
    if let byte = scanner.current, byte >= 0x41, byte <= 0x5a {
      parseProperty(&scanner, into: &areas)
      scanner.skipLine()
      continue
    }
    guard let start = scanner.hexadecimal(), scanner.accept("-"), let end = scanner.hexadecimal() else {
      scanner.skipLine()
      continue
    }
    scanner.skipSpaces()
    let permissions = scanner.word()
    scanner.skipSpaces()
    let offset = scanner.hexadecimal() ?? 0
    scanner.skipSpaces()
    let major = scanner.hexadecimal() ?? 0
    scanner.skip()
    let minor = scanner.hexadecimal() ?? 0
    scanner.skipSpaces()
    let inode = UInt64(bitPattern: scanner.decimal() ?? 0)
    scanner.skipSpaces()
    let name = scanner.restOfLine()
    if name.count != lastName.count || !name.elementsEqual(lastName) {
      lastName = name
      lastString = String(decoding: name, as: UTF8.self)
    }
    scanner.skipLine()
    var protection: Int32 = 0
    if permissions.count >= 4 {
      if permissions[0] == UInt8(ascii: "r") { protection |= PROT_READ }
      if permissions[1] == UInt8(ascii: "w") { protection |= PROT_WRITE }
      if permissions[2] == UInt8(ascii: "x") { protection |= PROT_EXEC }
    }
    areas.append(
      MemoryArea(
        range: AddressRange(start, end), protection: protection,
        isShared: permissions.count >= 4 && permissions[3] == UInt8(ascii: "s"), offset: offset,
        deviceMajor: UInt32(truncatingIfNeeded: major), deviceMinor: UInt32(truncatingIfNeeded: minor), inode: inode,
        name: lastString, flags: [], residentBytes: 0, protectionKey: 0))
  }
  return areas
}

private func parseProperty(_ scanner: inout TextScanner, into areas: inout [MemoryArea]) {
  guard let last = areas.indices.last else { return }
  if scanner.accept("VmFlags:") {
    areas[last].flags = parseFlags(scanner.restOfLine())
  } else if scanner.accept("Rss:") {
    scanner.skipSpaces()
    areas[last].residentBytes = UInt64(bitPattern: scanner.decimal() ?? 0) * 1024
  } else if scanner.accept("ProtectionKey:") {
    scanner.skipSpaces()
    areas[last].protectionKey = Int32(truncatingIfNeeded: scanner.decimal() ?? 0)
  }
}

private func parseFlags(_ text: UnsafeRawBufferPointer) -> MemoryArea.Flags {
  var flags: MemoryArea.Flags = []
  var index = 0
  while index + 1 < text.count {
    if text[index] == 0x20 {
      index += 1
      continue
    }
    switch (UnicodeScalar(text[index]), UnicodeScalar(text[index + 1])) {
    case ("g", "d"): flags.insert(.growsDown)
    case ("l", "o"): flags.insert(.locked)
    case ("l", "f"): flags.insert(.lockedOnFault)
    case ("n", "r"): flags.insert(.noReserve)
    case ("h", "t"): flags.insert(.hugeTLB)
    case ("i", "o"): flags.insert(.io)
    case ("p", "f"): flags.insert(.pfnMap)
    case ("d", "c"): flags.insert(.dontFork)
    case ("d", "d"): flags.insert(.dontDump)
    case ("w", "f"): flags.insert(.wipeOnFork)
    case ("h", "g"): flags.insert(.hugePages)
    case ("n", "h"): flags.insert(.noHugePages)
    case ("m", "g"): flags.insert(.mergeable)
    case ("u", "m"): flags.insert(.userfaultMissing)
    case ("u", "w"): flags.insert(.userfaultWriteProtect)
    case ("u", "i"): flags.insert(.userfaultMinor)
    case ("s", "l"): flags.insert(.sealed)
    case ("s", "s"): flags.insert(.shadowStack)
    case ("s", "r"): flags.insert(.sequential)
    case ("r", "r"): flags.insert(.random)
    case ("m", "s"): flags.insert(.mayShare)
    case ("a", "c"): flags.insert(.account)
    case ("g", "u"): flags.insert(.guardRegion)
    default: break
    }
    index += 3
  }
  return flags
}

import CLinux
import Images
import Linux
import SystemPackage

/// One descriptor of a frozen process, and what /proc tells of the open file behind it. proc_pid_fdinfo(5)
final class OpenFile {
  let process: JobProcess
  let number: Int32
  /// What the link in /proc/PID/fd says.
  let link: String
  let status: stat
  /// The whole of /proc/PID/fdinfo/N.
  let information: [UInt8]
  let position: UInt64
  /// O_ bits without O_CLOEXEC, which is the descriptor's.
  let flags: Int32
  let closesOnExec: Bool
  let mount: Int32
  private var copy: Descriptor?

  init(_ process: JobProcess, _ number: Int32) throws(Errno) {
    self.process = process
    self.number = number
    link = try process.proc.link("fd/\(number)")
    status = try fileStatus("fd/\(number)", at: process.proc.directory.number)
    information = try process.proc.read("fdinfo/\(number)")
    var facts: (position: UInt64, flags: Int32, mount: Int32) = (0, 0, 0)
    information.withUnsafeBytes { bytes in
      var scanner = TextScanner(bytes)
      while !scanner.isAtEnd {
        if scanner.accept("pos:\t") {
          facts.position = UInt64(bitPattern: scanner.decimal() ?? 0)
        } else if scanner.accept("flags:\t") {
          facts.flags = Int32(truncatingIfNeeded: scanner.octal() ?? 0)
        } else if scanner.accept("mnt_id:\t") {
          facts.mount = Int32(truncatingIfNeeded: scanner.decimal() ?? 0)
        }
        scanner.skipLine()
      }
    }
    position = facts.position
    closesOnExec = facts.flags & O_CLOEXEC != 0
    flags = facts.flags & ~O_CLOEXEC
    mount = facts.mount
  }

  var type: UInt32 { status.kind }
  /// Whether it was opened with O_PATH: it only names a file.
  var isPathOnly: Bool { flags & O_PATH != 0 }

  /// Runs `body` with a duplicate of the descriptor in this process.
  func withDuplicate<Value>(_ body: (borrowing Descriptor) throws(Errno) -> Value) throws(Errno) -> Value {
    if copy == nil { copy = try copyDescriptor(number, from: process.handle) }
    guard copy != nil else { throw .badFileDescriptor }
    return try body(copy!)
  }

  /// Gives the duplicate up, for a job may have more files than we may have open.
  func closeDuplicate() { copy = nil }

  /// The number after `name` in the information, of the given base.
  func value(of name: StaticString, hexadecimal: Bool = false) -> UInt64? {
    information.withUnsafeBytes { bytes in
      var scanner = TextScanner(bytes)
      while !scanner.isAtEnd {
        if scanner.accept(name) {
          scanner.skipSpaces()
          return hexadecimal ? scanner.hexadecimal() : scanner.decimal().map { UInt64(bitPattern: $0) }
        }
        scanner.skipLine()
      }
      return nil
    }
  }

  /// Who gets signals for the file, and which. fcntl(2), F_GETOWN_EX and F_GETSIG
  func owner() throws(Errno) -> FownEntry {
    var entry = FownEntry.with { ($0.uid, $0.euid, $0.signum, $0.pidType, $0.pid) = (0, 0, 0, 0, 0) }
    guard !isPathOnly else { return entry }
    try withDuplicate { copy throws(Errno) in
      var owner: (type: Int32, pid: Int32) = (0, 0)
      let number = Int(copy.number)
      try withUnsafeMutableBytes(of: &owner) { bytes throws(Errno) in
        _ = try systemCall(Int32(SYS_fcntl), number, 16 /* F_GETOWN_EX */, Int(bitPattern: bytes.baseAddress))
      }
      entry.signum = UInt32(try systemCall(Int32(SYS_fcntl), number, 11 /* F_GETSIG */))
      guard owner.pid != 0 else { return }
      (entry.pidType, entry.pid) = (UInt32(owner.type), UInt32(owner.pid))
    }
    return entry
  }
}

/// One kind of open file: how it is recognised, saved, checked and made again.
protocol FileRoom: SendableMetatype {
  static var type: FdTypes { get }
  static func recognises(_ file: OpenFile) -> Bool
  /// The entry for the image, under `id`; nil where it was refused.
  static func save(_ file: OpenFile, id: UInt32, _ saving: Saving) throws(Failure) -> FileEntry?
  /// Looks, before anything is built, whether the file can be had on this machine.
  static func check(_ entry: FileEntry, _ files: RestoredFiles) throws(Failure)
  /// Makes the open file anew, in this process.
  static func open(_ entry: FileEntry, _ files: RestoredFiles) throws(Failure) -> Descriptor
}

extension FileRoom {
  static func check(_ entry: FileEntry, _ files: RestoredFiles) throws(Failure) {}
}

/// All kinds, the first that recognises a file has it.
let fileRooms: [any FileRoom.Type] = [
  RegularFileRoom.self, TerminalRoom.self, PipeRoom.self, EventfdRoom.self, EventpollRoom.self, ListeningSocketRoom.self,
]

extension Descriptor {
  /// Gives an open file the owner and signal it had.
  func setOwner(_ owner: FownEntry) throws(Errno) {
    if owner.signum != 0 { try systemCall(Int32(SYS_fcntl), Int(number), 10 /* F_SETSIG */, Int(owner.signum)) }
    guard owner.pid != 0 else { return }
    let value: (Int32, Int32) = (Int32(bitPattern: owner.pidType), Int32(bitPattern: owner.pid))
    try withUnsafeBytes(of: value) { bytes throws(Errno) in
      _ = try systemCall(Int32(SYS_fcntl), Int(number), 15 /* F_SETOWN_EX */, Int(bitPattern: bytes.baseAddress))
    }
  }

  /// A new open file description of what this descriptor refers to.
  func reopen(_ flags: Int32) throws(Errno) -> Descriptor { try .open("/proc/self/fd/\(number)", flags) }
}

import CLinux
import Images
import Linux
import SystemPackage

/// What can be seen of one descriptor of a frozen process from outside.
struct DescriptorFacts {
  let process: JobProcess
  let number: Int32
  /// What its link in /proc/PID/fd says: a path, or the like of `pipe:[1234]`.
  let link: String
  let status: stat
  let info: DescriptorInfo
  /// The address family of a socket.
  let family: Int32?
  /// It is on its way to the process in a socket, and `number` is our own.
  let isInFlight: Bool

  init(_ process: JobProcess, _ number: Int32, isInFlight: Bool = false) throws(Failure) {
    self.process = process
    self.number = number
    self.isInFlight = isInFlight
    do throws(Errno) {
      info = try DescriptorInfo(of: process.proc, number)
      link = try process.proc.link("fd/\(number)")
      status = try fileStatus("fd/\(number)", at: process.proc.directory.number)
      let isSocket = status.kind == FileKind.socket && link.hasPrefix("socket:[") && info.flags & O_PATH == 0
      family = isSocket ? try copyDescriptor(number, from: process.handle).option(SOL_SOCKET, SO_DOMAIN) : nil
    } catch { throw Failure("Cannot checkpoint \(process.label): descriptor \(number)", error) }
  }

  /// The numbers of all descriptors of a process.
  static func numbers(of process: JobProcess) throws(Failure) -> [Int32] {
    try attempt("Cannot read the descriptors of \(process.label)") { () throws(Errno) in
      try process.proc.numbers(in: "fd")
    }
  }

  var flags: Int32 { info.flags }
  var fileType: UInt32 { status.kind }
  var isPathOnly: Bool { flags & O_PATH != 0 }
  var canRead: Bool { flags & O_ACCMODE != O_WRONLY }
  var canWrite: Bool { flags & O_ACCMODE != O_RDONLY }
  /// CRIU numbers sockets and pipes by the lower half of their inode's number.
  var inode: UInt32 { UInt32(truncatingIfNeeded: status.st_ino) }
  /// For messages: `descriptor 17`.
  var label: String { isInFlight ? "a descriptor on its way to it in a unix socket" : "descriptor \(number)" }

  /// A duplicate of ours.
  func duplicate() throws(Failure) -> Descriptor {
    try attempt("Cannot look at \(label) of \(process.label)") { () throws(Errno) in
      try copyDescriptor(number, from: process.handle)
    }
  }

  /// Whom the kernel signals when the file becomes ready.
  func owner(_ duplicate: borrowing Descriptor) throws(Failure) -> FownEntry {
    var entry = FownEntry.none
    guard !isPathOnly else { return entry }
    do throws(Errno) {
      entry.signum = UInt32(try duplicate.ownerSignal())
      let owner = try duplicate.owner()
      guard owner.id != 0 else { return entry }
      let users = try duplicate.ownerUsers()
      (entry.pid, entry.pidType) = (UInt32(bitPattern: owner.id), UInt32(owner.kind))
      (entry.uid, entry.euid) = (users.real, users.effective)
      return entry
    } catch { throw Failure("Cannot look at \(label) of \(process.label)", error) }
  }

  func owner() throws(Failure) -> FownEntry {
    guard !isPathOnly else { return .none }
    return try owner(duplicate())
  }
}

extension FownEntry {
  /// Nobody is signalled.
  static var none: FownEntry {
    .with { ($0.uid, $0.euid, $0.signum, $0.pidType, $0.pid) = (0, 0, 0, 0, 0) }
  }
}

extension stat {
  func isSameFile(as other: stat) -> Bool { st_dev == other.st_dev && st_ino == other.st_ino }
}

/// The word for a file's type, for messages.
func typeName(_ mode: UInt32) -> String {
  switch mode & FileKind.mask {
  case FileKind.regular: "regular file"
  case FileKind.directory: "directory"
  case FileKind.characterDevice: "character device"
  case FileKind.blockDevice: "block device"
  case FileKind.pipe: "FIFO"
  case FileKind.socket: "socket"
  case 0o120000: "symbolic link"
  default: "file of an unknown kind"
  }
}

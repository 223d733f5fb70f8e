import CLinux
import Images
import Linux
import SystemPackage

/// Whether the name of a unix socket can be had on this machine.
struct UnixNameCheck {
  private var holders: [[UInt8]: UInt32]?

  /// - Parameter base: the directory from which its path starts.
  mutating func check(_ entry: UnixSkEntry, base: String, _ what: String) throws(Failure) {
    let name = Array(entry.name)
    guard !name.isEmpty else { return }
    if let path = entry.path {
      try checkFile(UnixSocketName.join(base, path), entry, what)
    } else if let holder = try socket(named: name) {
      throw taken(name, holder, what)
    }
  }

  /// Whether somebody receives datagrams under the name.
  func checkReceiver(_ entry: UnixSkEntry, _ what: String) throws(Failure) {
    do throws(Errno) {
      try Descriptor.socket(AF_UNIX, Int32(entry.type), 0).connect(to: unixAddress(Array(entry.name)))
    } catch {
      throw Failure(
        .cannotRestore, what,
        why: "the job sends to a unix socket\(entry.place), and nobody receives there: \(error.words)",
        advice: "start the program that does (for /dev/log, the system's logger)")
    }
  }

  private mutating func socket(named name: [UInt8]) throws(Failure) -> UInt32? {
    if holders == nil {
      let sockets = try attempt("Cannot ask the kernel about unix sockets") { () throws(Errno) in try readUnixSockets()
      }
      holders = Dictionary(sockets.values.map { ($0.name, $0.inode) }, uniquingKeysWith: { first, _ in first })
    }
    return holders?[name]
  }

  private mutating func checkFile(_ path: String, _ entry: UnixSkEntry, _ what: String) throws(Failure) {
    guard let status = try? fileStatus(path, followingLink: false) else {
      let parent = path.lastIndex(of: "/").map { String(path[..<$0]) } ?? "."
      guard (try? fileStatus(parent.isEmpty ? "/" : parent))?.kind == FileKind.directory else {
        throw Failure(
          .cannotRestore, what, why: "the job has a unix socket at \(path), and that directory does not exist",
          advice: "make the directory \(parent)")
      }
      return
    }
    guard status.kind == FileKind.socket else {
      throw Failure(
        .cannotRestore, what, why: "the job has a unix socket at \(path), where there is another file now",
        advice: "move that file away")
    }
    if isAlive(path, entry) { throw taken(Array(entry.name), try socket(named: Array(entry.name)), what) }
  }

  /// Whether a socket that somebody has open is bound to the file. One of another type is told so, without a connection
  /// being made.
  private func isAlive(_ path: String, _ entry: UnixSkEntry) -> Bool {
    let other = entry.isDatagram ? Int32(SOCK_STREAM.rawValue) : Int32(SOCK_DGRAM.rawValue)
    guard let handle = try? Descriptor.open(path, O_PATH | O_NOFOLLOW),
      let socket = try? Descriptor.socket(AF_UNIX, other, 0)
    else { return false }
    do throws(Errno) { try socket.connect(to: unixAddress(Array("/proc/self/fd/\(handle.number)".utf8))) } catch {
      return error != .connectionRefused
    }
    return true
  }

  private func taken(_ name: [UInt8], _ inode: UInt32?, _ what: String) -> Failure {
    let links = inode.map { ["socket:[\($0)]"] } ?? []
    let holder = FileHolders.find(Set(links), except: []).values.first
    return Failure(
      .cannotRestore, what,
      why:
        "the job has a unix socket\(UnixSocketName.place(name)), and that name is in use\(holder.map { " by \($0)" } ?? "")",
      advice: "end that program first")
  }
}

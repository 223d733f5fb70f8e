import CLinux
import Images
import Linux
import SystemPackage

/// Where the file is that a unix socket is bound to.
enum UnixSocketName {
  /// Where a name leads to.
  enum Place {
    /// To the socket, when it starts from this directory.
    case file(base: String, status: stat)
    /// The file has been deleted, or replaced by another.
    case deleted
    /// It cannot be found again; in words.
    case lost(String)
  }

  /// For messages: ` at /run/x.sock`, or nothing.
  static func place(_ name: [UInt8]) -> String {
    guard let first = name.first else { return "" }
    let text = first == 0 ? name.dropFirst() : name.prefix { $0 != 0 }
    return " at \(first == 0 ? "@" : "")"
      + String(decoding: text.map { $0 == 0 ? UInt8(ascii: "@") : $0 }, as: UTF8.self)
  }

  /// Finds the file of a socket that is bound to `path`.
  static func find(
    _ path: String, _ socket: borrowing Descriptor, _ process: JobProcess, _ job: Job
  ) throws(Errno) -> Place {
    let handle: Descriptor
    do throws(Errno) {
      handle = Descriptor(
        owning: Int32(try systemCall(Int32(SYS_ioctl), Int(socket.number), 0x89e0 /* SIOCUNIXFILE */)))
    } catch { return withoutHandle(path, process) }
    let status = try handle.status()
    let link = try readLink("/proc/self/fd/\(handle.number)")
    if status.st_nlink == 0 || link.hasSuffix(FileName.deletedMark) { return .deleted }
    for base in candidates(path, link, process, job) {
      guard let found = try? fileStatus(join(base, path), followingLink: false), found.isSameFile(as: status) else {
        continue
      }
      return .file(base: base, status: status)
    }
    return .lost(link)
  }

  /// Only CAP_NET_ADMIN may ask the kernel which file it is: the name decides alone.
  private static func withoutHandle(_ path: String, _ process: JobProcess) -> Place {
    guard let base = try? process.proc.link(path.hasPrefix("/") ? "root" : "cwd"),
      let status = try? fileStatus(join(base, path), followingLink: false), status.kind == FileKind.socket
    else { return .deleted }
    return .file(base: base, status: status)
  }

  static func join(_ base: String, _ path: String) -> String {
    let start = base.hasSuffix("/") ? String(base.dropLast()) : base
    return path.hasPrefix("/") ? start + path : start + "/" + path
  }

  /// Directories from which the name may lead to the file.
  private static func candidates(_ path: String, _ link: String, _ process: JobProcess, _ job: Job) -> [String] {
    var result: [String] = []
    let kind = path.hasPrefix("/") ? "root" : "cwd"
    for process in [process] + job.living {
      if let directory = try? process.proc.link(kind), !result.contains(directory) { result.append(directory) }
    }
    let tail = path.hasPrefix("/") ? path : "/" + path
    if link.hasSuffix(tail) {
      let base = String(link.dropLast(tail.count))
      result.append(base.isEmpty ? "/" : base)
    }
    return result
  }
}

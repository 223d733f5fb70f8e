import CLinux
import Images
import Linux
import SystemPackage

/// Gives unix sockets their names.
///
/// The kernel keeps a name as it was given to bind(2), relative or seen from another root directory, and so it has to be
/// given again. Names whose file is gone are given inside of an empty directory, with that as root.
final class UnixBinder {
  enum Place {
    /// The file shall be there again, seen from this directory.
    case file(base: String, FilePermsEntry?)
    case nowhere
  }

  private var root: Int32 = -1
  private var directory: Int32 = -1
  /// An empty directory, open; and its path, where it has one.
  private var scratch: Int32 = -1
  private var scratchPath: String?
  private var created: [String] = []

  /// Removes what was made for a while, and, unless `keepFiles` was called, all sockets in the file system.
  deinit {
    for path in created { unlink(path) }
    if let scratchPath { removeTree(scratchPath) }
    if scratch >= 0 { close(scratch) }
    if root >= 0 { close(root) }
    if directory >= 0 { close(directory) }
  }

  func keepFiles() { created = [] }

  /// bind(2).
  ///
  /// - Returns: the file, open as a path only, by which others can connect to it; nil for abstract names.
  func bind(_ socket: borrowing Descriptor, _ entry: UnixSkEntry, _ place: Place) throws(Errno) -> Descriptor? {
    let name = Array(entry.name)
    guard let path = entry.path else {
      if !name.isEmpty { try socket.bind(to: unixAddress(name)) }
      return nil
    }
    switch place {
    case .nowhere:
      let base = try scratchDirectory()
      makeParents(of: path, in: base)
      return try insideScratch(base, path) { () throws(Errno) in
        try socket.bind(to: unixAddress(name))
        let handle = try Descriptor.open(path, O_PATH | O_NOFOLLOW)
        unlink(path)
        return handle
      }
    case .file(let base, let permissions):
      let whole = UnixSocketName.join(base, path)
      let handle = try inside(base, path) { () throws(Errno) in
        if (try? fileStatus(path, followingLink: false))?.kind == FileKind.socket { unlink(path) }
        try socket.bind(to: unixAddress(name))
        if let permissions {
          lchown(path, permissions.uid, permissions.gid)
          chmod(path, mode_t(permissions.mode & 0o7777))
        }
        return try Descriptor.open(path, O_PATH | O_NOFOLLOW)
      }
      created.append(whole)
      return handle
    }
  }

  // MARK: Directories

  /// A file system in memory that has no place in the tree: it goes when nobody has it open any more.
  private func scratchDirectory() throws(Errno) -> Int32 {
    guard scratch < 0 else { return scratch }
    if let directory = try? detachedDirectory() {
      scratch = directory.release()
      return scratch
    }
    var template = Array("/tmp/.torpor-names-XXXXXX".utf8CString)
    guard mkdtemp(&template) != nil else { throw Errno(rawValue: clinux_errno()) }
    let path = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
    scratchPath = path
    scratch = try Descriptor.open(path, O_PATH | O_DIRECTORY).release()
    return scratch
  }

  /// fsopen(2), fsconfig(2), fsmount(2).
  private func detachedDirectory() throws(Errno) -> Descriptor {
    let name = Array("tmpfs".utf8) + [0]
    let number = try name.withBytes { name throws(Errno) in
      try systemCall(430, Int(bitPattern: name.baseAddress), 1 /* FSOPEN_CLOEXEC */)
    }
    let context = Descriptor(owning: Int32(number))
    try systemCall(431, Int(context.number), 6 /* FSCONFIG_CMD_CREATE */, 0, 0, 0)
    return Descriptor(owning: Int32(try systemCall(432, Int(context.number), 1 /* FSMOUNT_CLOEXEC */, 0)))
  }

  private func makeParents(of path: String, in base: Int32) {
    var current = "."
    for part in path.split(separator: "/").dropLast() where part != ".." && part != "." {
      current += "/\(part)"
      mkdirat(base, current, 0o700)
    }
  }

  /// Runs `body` where `path`, relative or absolute, starts from `base`.
  private func inside<Value: ~Copyable>(
    _ base: String, _ path: String, _ body: () throws(Errno) -> Value
  ) throws(Errno) -> Value {
    try separate()
    let isRelative = !path.hasPrefix("/")
    if !isRelative, base == "/" { return try body() }
    guard chdir(base) == 0 else { throw Errno(rawValue: clinux_errno()) }
    defer { fchdir(directory) }
    return isRelative ? try body() : try withRootHere(body)
  }

  private func insideScratch<Value: ~Copyable>(
    _ base: Int32, _ path: String, _ body: () throws(Errno) -> Value
  ) throws(Errno) -> Value {
    try separate()
    guard fchdir(base) == 0 else { throw Errno(rawValue: clinux_errno()) }
    defer { fchdir(directory) }
    return try withRootHere(body)
  }

  private func withRootHere<Value: ~Copyable>(_ body: () throws(Errno) -> Value) throws(Errno) -> Value {
    guard chroot(".") == 0 else { throw Errno(rawValue: clinux_errno()) }
    defer {
      fchdir(root)
      chroot(".")
    }
    return try body()
  }

  /// Gives this thread a working and a root directory of its own, and remembers both.
  private func separate() throws(Errno) {
    guard root < 0 else { return }
    guard unshare(CLONE_FS) == 0 else { throw Errno(rawValue: clinux_errno()) }
    root = try Descriptor.open("/", O_PATH | O_DIRECTORY).release()
    directory = try Descriptor.open(".", O_PATH | O_DIRECTORY).release()
  }

  private func removeTree(_ path: String) {
    guard let stream = opendir(path) else { return }
    while let entry = readdir(stream) {
      let name = withUnsafeBytes(of: entry.pointee.d_name) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
      guard name != ".", name != ".." else { continue }
      if unlink("\(path)/\(name)") != 0 { removeTree("\(path)/\(name)") }
    }
    closedir(stream)
    rmdir(path)
  }
}

import CLinux
import SystemPackage

/// The owner of one file descriptor of this process; closes it at the end of its life.
public struct Descriptor: ~Copyable, Sendable {
  public let number: Int32

  /// Takes over an open descriptor.
  public init(owning number: Int32) { self.number = number }

  deinit { if number >= 0 { _ = CLinux.close(number) } }

  /// Gives the descriptor away without closing it.
  public consuming func release() -> Int32 {
    let number = self.number
    discard self
    return number
  }

  /// Lends `body` a descriptor that somebody else closes.
  public static func lending<Value: ~Copyable, Problem: Error>(
    _ number: Int32, _ body: (borrowing Descriptor) throws(Problem) -> Value
  ) throws(Problem) -> Value {
    let descriptor = Descriptor(owning: number)
    do throws(Problem) {
      let value = try body(descriptor)
      _ = descriptor.release()
      return value
    } catch {
      _ = descriptor.release()
      throw error
    }
  }

  /// openat(2), always with O_CLOEXEC.
  public static func open(
    _ path: String, _ flags: Int32, mode: UInt32 = 0o600, at directory: Int32 = AT_FDCWD
  ) throws(Errno) -> Descriptor {
    let result = path.withCString { name in
      clinux_syscall(
        Int(SYS_openat), Int(directory), UnsafeRawPointer(name).word, Int(flags | O_CLOEXEC), Int(mode), 0, 0)
    }
    guard result >= 0 else { throw Errno(rawValue: CInt(-result)) }
    return Descriptor(owning: Int32(result))
  }

  /// read(2) into `buffer`; 0 at the end of the file.
  public func read(into buffer: UnsafeMutableRawBufferPointer) throws(Errno) -> Int {
    try retrying { () throws(Errno) in
      try systemCall(SYS_read, Int(number), Int(bitPattern: buffer.baseAddress), buffer.count)
    }
  }

  /// pread(2) into `buffer`; fewer bytes than asked for only at the end of the file.
  public func read(into buffer: UnsafeMutableRawBufferPointer, at offset: Int) throws(Errno) -> Int {
    var done = 0
    while done < buffer.count {
      let count = try retrying { () throws(Errno) in
        try systemCall(
          SYS_pread64, Int(number), Int(bitPattern: buffer.baseAddress) + done, buffer.count - done, offset + done)
      }
      if count == 0 { break }
      done += count
    }
    return done
  }

  /// Writes all of `bytes` at the file's offset.
  public func write(_ bytes: UnsafeRawBufferPointer) throws(Errno) { try Self.write(bytes, to: number) }

  /// The same for a descriptor that nobody owns.
  public static func write(_ bytes: UnsafeRawBufferPointer, to number: Int32) throws(Errno) {
    var done = 0
    while done < bytes.count {
      done += try retrying { () throws(Errno) in
        try systemCall(SYS_write, Int(number), Int(bitPattern: bytes.baseAddress) + done, bytes.count - done)
      }
    }
  }

  /// Writes all of `bytes` at `offset`.
  public func write(_ bytes: UnsafeRawBufferPointer, at offset: Int) throws(Errno) {
    var done = 0
    while done < bytes.count {
      done += try retrying { () throws(Errno) in
        try systemCall(
          SYS_pwrite64, Int(number), Int(bitPattern: bytes.baseAddress) + done, bytes.count - done, offset + done)
      }
    }
  }

  /// fstat(2).
  public func status() throws(Errno) -> stat {
    var result = stat()
    guard fstat(number, &result) == 0 else { throw Errno(rawValue: clinux_errno()) }
    return result
  }

  /// fsync(2): what was written is on disk when this returns.
  public func synchronize() throws(Errno) { try systemCall(SYS_fsync, Int(number)) }

  /// Has reads and writes go past the page cache, or not. O_DIRECT of open(2)
  ///
  /// - Returns: whether it is as wanted now; not every file system can.
  public func setDirect(_ isDirect: Bool) -> Bool {
    guard let flags = try? systemCall(SYS_fcntl, Int(number), Int(F_GETFL)) else { return false }
    let wanted = isDirect ? flags | Int(O_DIRECT) : flags & ~Int(O_DIRECT)
    return (try? systemCall(SYS_fcntl, Int(number), Int(F_SETFL), wanted)) != nil
  }

  /// dup3(2) to a free number, with FD_CLOEXEC.
  public func duplicate() throws(Errno) -> Descriptor {
    Descriptor(owning: Int32(try systemCall(SYS_fcntl, Int(number), Int(F_DUPFD_CLOEXEC), 0)))
  }
}

/// stat(2) of `path`, following its last symbolic link or not.
public func fileStatus(_ path: String, followingLink: Bool = true, at directory: Int32 = AT_FDCWD) throws(Errno) -> stat
{
  var result = stat()
  guard fstatat(directory, path, &result, followingLink ? 0 : AT_SYMLINK_NOFOLLOW) == 0 else {
    throw Errno(rawValue: clinux_errno())
  }
  return result
}

/// readlink(2): the text of a symbolic link.
public func readLink(_ path: String, at directory: Int32 = AT_FDCWD) throws(Errno) -> String {
  try withUnsafeTemporaryAllocation(byteCount: 4200, alignment: 1) { buffer throws(Errno) in
    let count = path.withCString { name in
      clinux_syscall(
        Int(SYS_readlinkat), Int(directory), UnsafeRawPointer(name).word, Int(bitPattern: buffer.baseAddress), 4200, 0, 0)
    }
    guard count >= 0 else { throw Errno(rawValue: CInt(-count)) }
    return String(decoding: UnsafeRawBufferPointer(rebasing: buffer[0..<count]), as: UTF8.self)
  }
}

/// The kind of a file, in the bits of `st_mode`. inode(7)
public enum FileKind {
  public static let mask = UInt32(S_IFMT)
  public static let regular = UInt32(S_IFREG)
  public static let directory = UInt32(S_IFDIR)
  public static let characterDevice = UInt32(S_IFCHR)
  public static let blockDevice = UInt32(S_IFBLK)
  public static let pipe = UInt32(S_IFIFO)
  public static let socket = UInt32(S_IFSOCK)
}

extension stat {
  /// One of `FileKind`.
  public var kind: UInt32 { st_mode & FileKind.mask }
}

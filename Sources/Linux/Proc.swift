import CLinux
import SystemPackage

/// The directory /proc/PID of one process, held open so that another process that takes the PID later is never
/// mistaken for it.
public struct ProcDirectory: ~Copyable, Sendable {
  public let pid: ProcessID
  public let directory: Descriptor

  /// - Throws: `.noSuchFileOrDirectory` where there is no such process.
  public init(_ pid: ProcessID) throws(Errno) {
    self.pid = pid
    directory = try .open("/proc/\(pid)", O_RDONLY | O_DIRECTORY)
  }

  /// The whole content of one of its files.
  public func read(_ name: String) throws(Errno) -> [UInt8] {
    try readWholeFile(name, at: directory.number)
  }

  public func link(_ name: String) throws(Errno) -> String { try readLink(name, at: directory.number) }

  public func open(_ name: String, _ flags: Int32 = O_RDONLY) throws(Errno) -> Descriptor {
    try .open(name, flags, at: directory.number)
  }

  /// The numbers that name the entries of one of its directories (`fd`, `task`), ascending.
  public func numbers(in name: String) throws(Errno) -> [Int32] {
    try numericEntries(of: .open(name, O_RDONLY | O_DIRECTORY, at: directory.number))
  }
}

/// Reads a file whose size stat(2) does not tell, as those of /proc.
///
/// Those give a page or so at a time, however long they are: the room for them doubles, and moves without being copied.
public func readWholeFile(_ path: String, at directory: Int32 = AT_FDCWD) throws(Errno) -> [UInt8] {
  let file = try Descriptor.open(path, O_RDONLY, at: directory)
  var room = 16384
  var used = 0
  var buffer = malloc(room)
  defer { free(buffer) }
  while true {
    if room - used < 8192 {
      room *= 2
      buffer = realloc(buffer, room)
    }
    guard let buffer else { throw .noMemory }
    let count = try file.read(into: UnsafeMutableRawBufferPointer(start: buffer + used, count: room - used))
    if count == 0 { return [UInt8](UnsafeRawBufferPointer(start: buffer, count: used)) }
    used += count
  }
}

/// The entries of a directory whose names are numbers, ascending. getdents64(2)
public func numericEntries(of directory: consuming Descriptor) throws(Errno) -> [Int32] {
  var result: [Int32] = []
  let number = directory.number
  try withUnsafeTemporaryAllocation(byteCount: 32768, alignment: 8) { buffer throws(Errno) in
    while true {
      let count = try systemCall(SYS_getdents64, Int(number), Int(bitPattern: buffer.baseAddress), buffer.count)
      if count == 0 { break }
      var offset = 0
      while offset < count {
        // struct linux_dirent64: d_ino 8, d_off 8, d_reclen 2, d_type 1, d_name.
        let length = Int(buffer.loadUnaligned(fromByteOffset: offset + 16, as: UInt16.self))
        var scanner = TextScanner(UnsafeRawBufferPointer(rebasing: buffer[(offset + 19)..<(offset + length)]))
        if let value = scanner.decimal(), scanner.isAtZero { result.append(Int32(truncatingIfNeeded: value)) }
        offset += length
      }
    }
  }
  return result.sorted()
}

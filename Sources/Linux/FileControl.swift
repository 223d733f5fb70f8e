import CLinux
import SystemPackage

/// Who gets a signal when an open file becomes ready. F_SETOWN_EX in fcntl(2)
public struct FileOwner: Sendable, Equatable {
  /// F_OWNER_TID, F_OWNER_PID or F_OWNER_PGRP.
  public var kind: Int32
  /// 0 where nobody does.
  public var id: Int32
  public init(kind: Int32, id: Int32) {
    self.kind = kind
    self.id = id
  }
}

/// fcntl(2), one operation each.
extension Descriptor {
  private func fileControl(_ operation: Int32, _ argument: Int = 0) throws(Errno) -> Int {
    try systemCall(SYS_fcntl, Int(number), Int(operation), argument)
  }

  private func fileControl<Value>(_ operation: Int32, filling value: inout Value) throws(Errno) {
    try withUnsafeMutableBytes(of: &value) { bytes throws(Errno) in
      _ = try fileControl(operation, Int(bitPattern: bytes.baseAddress))
    }
  }

  /// The O_ bits of the open file description. F_GETFL
  public func statusFlags() throws(Errno) -> Int32 { Int32(truncatingIfNeeded: try fileControl(F_GETFL)) }
  /// F_SETFL: O_APPEND, O_ASYNC, O_DIRECT, O_NOATIME and O_NONBLOCK.
  public func setStatusFlags(_ flags: Int32) throws(Errno) { _ = try fileControl(F_SETFL, Int(flags)) }

  /// F_GETOWN_EX
  public func owner() throws(Errno) -> FileOwner {
    var value: (Int32, Int32) = (0, 0)
    try fileControl(16, filling: &value)
    return FileOwner(kind: value.0, id: value.1)
  }

  /// F_SETOWN_EX
  public func setOwner(_ owner: FileOwner) throws(Errno) {
    var value = (owner.kind, owner.id)
    try fileControl(15, filling: &value)
  }

  /// Real and effective user ID of whoever has set the owner. F_GETOWNER_UIDS
  public func ownerUsers() throws(Errno) -> (real: UInt32, effective: UInt32) {
    var value: (UInt32, UInt32) = (0, 0)
    try fileControl(17, filling: &value)
    return (real: value.0, effective: value.1)
  }

  /// The signal that the owner gets, 0 for SIGIO. F_GETSIG
  public func ownerSignal() throws(Errno) -> Int32 { Int32(try fileControl(11)) }
  /// F_SETSIG
  public func setOwnerSignal(_ signal: Int32) throws(Errno) { _ = try fileControl(10, Int(signal)) }

  /// How many bytes a pipe takes. F_GETPIPE_SZ
  public func pipeSize() throws(Errno) -> Int { try fileControl(1032) }
  /// F_SETPIPE_SZ
  public func setPipeSize(_ size: Int) throws(Errno) { _ = try fileControl(1031, size) }

  /// lseek(2) from the start of the file.
  public func seek(to offset: Int64) throws(Errno) { try systemCall(SYS_lseek, Int(number), Int(offset), 0) }

  /// flock(2).
  public func lock(_ operation: Int32) throws(Errno) { try systemCall(SYS_flock, Int(number), Int(operation)) }

  /// ioctl(2) with a pointer to `value`.
  public func control<Value>(_ request: UInt, _ value: inout Value) throws(Errno) {
    try withUnsafeMutableBytes(of: &value) { bytes throws(Errno) in
      _ = try systemCall(SYS_ioctl, Int(number), Int(bitPattern: request), Int(bitPattern: bytes.baseAddress))
    }
  }
}

/// pipe2(2), with O_CLOEXEC.
public struct Pipe: ~Copyable {
  public let reading: Descriptor
  public let writing: Descriptor

  public init(_ flags: Int32 = 0) throws(Errno) {
    var ends: [Int32] = [-1, -1]
    guard pipe2(&ends, flags | O_CLOEXEC) == 0 else { throw Errno(rawValue: clinux_errno()) }
    reading = Descriptor(owning: ends[0])
    writing = Descriptor(owning: ends[1])
  }
}

/// tee(2): puts what is in the pipe `source` into the pipe `target` too, and leaves it there.
///
/// - Returns: how many bytes.
public func tee(from source: borrowing Descriptor, to target: borrowing Descriptor, _ count: Int) throws(Errno) -> Int {
  try systemCall(SYS_tee, Int(source.number), Int(target.number), count, 2 /* SPLICE_F_NONBLOCK */)
}

/// How many descriptors a process may have. getrlimit(2), RLIMIT_NOFILE
public func descriptorLimit() -> (soft: UInt64, hard: UInt64) {
  var limit = rlimit()
  getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
  return (soft: UInt64(limit.rlim_cur), hard: UInt64(limit.rlim_max))
}

/// Lets this process have as many descriptors as it may give itself.
public func raiseDescriptorLimit() {
  var limit = rlimit()
  guard getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit) == 0, limit.rlim_cur < limit.rlim_max else {
    return
  }
  limit.rlim_cur = limit.rlim_max
  setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
}

import CLinux
import SystemPackage

/// process_vm_readv(2): copies `buffer.count` bytes from `address` of the process `pid` into `buffer`.
///
/// - Throws: `.badAddress` where the range is not mapped readable.
public func readMemory(of pid: ProcessID, at address: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(Errno)
{
  var local = iovec(iov_base: buffer.baseAddress, iov_len: buffer.count)
  var remote = iovec(iov_base: UnsafeMutableRawPointer(bitPattern: UInt(address)), iov_len: buffer.count)
  let count = process_vm_readv(pid, &local, 1, &remote, 1, 0)
  guard count >= 0 else { throw Errno(rawValue: clinux_errno()) }
  guard count == buffer.count else { throw .badAddress }
}

/// process_vm_writev(2): copies `bytes` to `address` of the process `pid`.
public func writeMemory(of pid: ProcessID, at address: UInt64, from bytes: UnsafeRawBufferPointer) throws(Errno) {
  var local = iovec(iov_base: UnsafeMutableRawPointer(mutating: bytes.baseAddress), iov_len: bytes.count)
  var remote = iovec(iov_base: UnsafeMutableRawPointer(bitPattern: UInt(address)), iov_len: bytes.count)
  let count = process_vm_writev(pid, &local, 1, &remote, 1, 0)
  guard count >= 0 else { throw Errno(rawValue: clinux_errno()) }
  guard count == bytes.count else { throw .badAddress }
}

/// A run of a process's address space, in bytes.
public struct AddressRange: Sendable, Equatable, Hashable {
  public var start: UInt64
  public var end: UInt64
  public init(_ start: UInt64, _ end: UInt64) {
    self.start = start
    self.end = end
  }
  public var count: UInt64 { end - start }
  public func contains(_ address: UInt64) -> Bool { start <= address && address < end }
  public func overlaps(_ other: AddressRange) -> Bool { start < other.end && other.start < end }
}

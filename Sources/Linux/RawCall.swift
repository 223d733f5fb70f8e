import CLinux
import SystemPackage

/// Makes the system call `number` with up to six arguments.
///
/// - Returns: what the kernel returned, never negative.
/// - Throws: the kernel's error. A call that was interrupted is not repeated.
@discardableResult
public func systemCall(
  _ number: Int32, _ a: Int = 0, _ b: Int = 0, _ c: Int = 0, _ d: Int = 0, _ e: Int = 0, _ f: Int = 0
) throws(Errno) -> Int {
  let result = clinux_syscall(Int(number), a, b, c, d, e, f)
  guard result >= 0 else { throw Errno(rawValue: CInt(-result)) }
  return result
}

/// The same for a call that a signal may interrupt: it is made again until it ends otherwise.
@discardableResult
public func retrying<Value>(_ call: () throws(Errno) -> Value) throws(Errno) -> Value {
  while true {
    do { return try call() } catch .interrupted { continue }
  }
}

extension UnsafeRawPointer {
  /// The address as a system call argument.
  public var word: Int { Int(bitPattern: self) }
}
extension UnsafeMutableRawPointer {
  /// The address as a system call argument.
  public var word: Int { Int(bitPattern: self) }
}

/// A process or thread ID, as the kernel counts them.
public typealias ProcessID = Int32

/// The size of a page of memory in bytes.
public let pageSize: UInt64 = UInt64(sysconf(Int32(_SC_PAGESIZE)))

extension UInt64 {
  /// Rounded up to a whole number of pages.
  public var pageCeiling: UInt64 { (self &+ pageSize &- 1) & ~(pageSize - 1) }
  /// Rounded down to a whole number of pages.
  public var pageFloor: UInt64 { self & ~(pageSize - 1) }
}

extension Array where Element: BitwiseCopyable {
  /// The bytes of the elements; like `withUnsafeBytes`, with a typed error.
  @inline(__always)
  public func withBytes<Value, Problem: Error>(
    _ body: (UnsafeRawBufferPointer) throws(Problem) -> Value
  ) throws(Problem) -> Value {
    try withUnsafeBufferPointer { elements throws(Problem) in try body(UnsafeRawBufferPointer(elements)) }
  }

  /// The bytes of the elements, to be changed; like `withUnsafeMutableBytes`, with a typed error.
  @inline(__always)
  public mutating func withMutableBytes<Value, Problem: Error>(
    _ body: (UnsafeMutableRawBufferPointer) throws(Problem) -> Value
  ) throws(Problem) -> Value {
    try withUnsafeMutableBufferPointer { elements throws(Problem) in
      try body(UnsafeMutableRawBufferPointer(elements))
    }
  }
}

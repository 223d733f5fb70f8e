import CLinux
import SystemPackage

/// How the kernel objects behind two resources compare. kcmp(2)
public enum KernelOrder: Int32, Sendable {
  case same = 0
  case before = 1
  case after = 2
  case different = 3
}

/// Compares the open file descriptions behind descriptor `a` of `first` and `b` of `second`.
public func compareFiles(_ first: ProcessID, _ a: Int32, _ second: ProcessID, _ b: Int32) throws(Errno) -> KernelOrder {
  let result = try systemCall(SYS_kcmp, Int(first), Int(second), Int(KCMP_FILE.rawValue), Int(a), Int(b))
  return KernelOrder(rawValue: Int32(result)) ?? .different
}

/// Compares what two tasks have of one kind (KCMP_VM, KCMP_FILES, KCMP_FS, KCMP_SIGHAND, ...).
public func compareTasks(_ kind: kcmp_type, _ first: ProcessID, _ second: ProcessID) throws(Errno) -> KernelOrder {
  let result = try systemCall(SYS_kcmp, Int(first), Int(second), Int(kind.rawValue))
  return KernelOrder(rawValue: Int32(result)) ?? .different
}

/// Whether descriptor `number` of `process` is the file that the epoll instance `instance` of `owner` watches.
///
/// - Parameters:
///   - registeredAs: the number that the file had when it was added.
///   - place: which of the files that were added under this number, counted from 0.
public func isWatched(
  _ number: Int32, of process: ProcessID, by instance: Int32, of owner: ProcessID, registeredAs: UInt32, place: UInt32
) throws(Errno) -> Bool {
  // struct kcmp_epoll_slot
  var slot = (UInt32(bitPattern: instance), registeredAs, place)
  return try withUnsafeMutableBytes(of: &slot) { bytes throws(Errno) in
    let result = try systemCall(
      SYS_kcmp, Int(process), Int(owner), Int(KCMP_EPOLL_TFD.rawValue), Int(number), Int(bitPattern: bytes.baseAddress))
    return result == 0
  }
}

/// pidfd_open(2).
///
/// - Parameter isThread: `pid` is the ID of any thread, not only of a process. (PIDFD_THREAD, Linux 6.9)
public func openProcess(_ pid: ProcessID, isThread: Bool = false) throws(Errno) -> Descriptor {
  Descriptor(owning: Int32(try systemCall(SYS_pidfd_open, Int(pid), isThread ? Int(O_EXCL) : 0)))
}

/// pidfd_getfd(2): a duplicate, in this process, of descriptor `number` of the process behind `process`.
public func copyDescriptor(_ number: Int32, from process: borrowing Descriptor) throws(Errno) -> Descriptor {
  Descriptor(owning: Int32(try systemCall(SYS_pidfd_getfd, Int(process.number), Int(number), 0)))
}

import CLinux
import Linux
import SystemPackage

/// A child of ours that outlives us by a moment: whatever happens, it puts SO_PEEK_OFF of the job's sockets back.
///
/// Looking at more than the first message of a queue takes that option, and it belongs to the socket, not to whoever
/// looks.
final class PeekKeeper {
  private let pipe: Descriptor
  private let pid: ProcessID

  /// - Parameter sockets: descriptors of ours, and what their option is now.
  init(_ sockets: [(number: Int32, offset: Int32)]) throws(Errno) {
    let ends = try Pipe()
    let reading = ends.reading.number
    let ours = ends.writing.number
    var arguments = clinux_clone_args()
    arguments.exit_signal = UInt64(SIGCHLD)
    var word: UInt8 = 0
    // struct sched_param. Woken by our death, it is to be faster than the job, which our death sets free.
    var priority: Int32 = 1
    var offsets = sockets.map(\.offset)
    let numbers = sockets.map(\.number)
    let child = offsets.withUnsafeMutableBufferPointer { offsets in
      numbers.withUnsafeBufferPointer { numbers in
        withUnsafeMutablePointer(to: &word) { word in
          withUnsafeMutablePointer(to: &arguments) { arguments in
            withUnsafeMutablePointer(to: &priority) { priority in
              let result = clinux_syscall(
                Int(SYS_clone3), Int(bitPattern: arguments), MemoryLayout<clinux_clone_args>.size, 0, 0, 0, 0)
              guard result == 0 else { return result }
              _ = clinux_syscall(
                Int(SYS_sched_setscheduler), 0, 1 /* SCHED_FIFO */, Int(bitPattern: priority), 0, 0, 0)
              Self.keep(numbers, offsets, reading, ours, word)
              return 0
            }
          }
        }
      }
    }
    guard child > 0 else { throw Errno(rawValue: CInt(-child)) }
    pid = ProcessID(child)
    pipe = try ends.writing.duplicate()
  }

  /// The child's whole life: system calls only, since other threads of ours may have held locks.
  private static func keep(
    _ numbers: UnsafeBufferPointer<Int32>, _ offsets: UnsafeMutableBufferPointer<Int32>, _ pipe: Int32, _ keeper: Int32,
    _ word: UnsafeMutablePointer<UInt8>
  ) {
    _ = clinux_syscall(Int(SYS_setsid), 0, 0, 0, 0, 0, 0)
    _ = clinux_syscall(Int(SYS_close), Int(keeper), 0, 0, 0, 0, 0)
    var count = 0
    repeat {
      count = clinux_syscall(Int(SYS_read), Int(pipe), Int(bitPattern: word), 1, 0, 0, 0)
    } while count == -Int(EINTR)
    for index in numbers.indices {
      _ = clinux_syscall(
        Int(SYS_setsockopt), Int(numbers[index]), Int(SOL_SOCKET), Int(SO_PEEK_OFF),
        Int(bitPattern: offsets.baseAddress?.advanced(by: index)), 4, 0)
    }
    _ = clinux_syscall(Int(SYS_exit_group), 0, 0, 0, 0, 0, 0)
  }

  /// Has everything put back, and waits for it.
  deinit {
    _ = try? [UInt8(1)].withBytes { bytes throws(Errno) in try pipe.write(bytes) }
    waitpid(pid, nil, 0)
  }
}

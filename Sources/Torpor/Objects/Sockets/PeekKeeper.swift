import CLinux
import Linux
import SystemPackage

/// A child of ours that outlives us by a moment: whatever happens, it puts SO_PEEK_OFF of the job's sockets back.
///
/// Looking at more than the first message of a queue takes that option, and it belongs to the socket, not to whoever
/// looks. The child waits for a robust mutex that we hold: of all that happens when a thread dies, the kernel wakes those
/// who wait for its mutexes early, before it lets go of whom the thread traces, and the child is of the kind that runs at
/// once. (get_robust_list(2), sched(7))
final class PeekKeeper {
  private let page: UnsafeMutableRawPointer
  private let mutex: UnsafeMutablePointer<pthread_mutex_t>
  private let pid: ProcessID

  /// The bit of a futex that says that somebody waits. (linux/futex.h)
  private static let waiters: UInt32 = 0x8000_0000

  /// - Parameter sockets: descriptors of ours, and what their option is now.
  init(_ sockets: [(number: Int32, offset: Int32)]) throws(Errno) {
    let address = try systemCall(
      Int32(SYS_mmap), 0, Int(pageSize), Int(PROT_READ | PROT_WRITE), Int(MAP_SHARED | MAP_ANONYMOUS), -1)
    guard let page = UnsafeMutableRawPointer(bitPattern: address) else { throw .noMemory }
    self.page = page
    mutex = page.bindMemory(to: pthread_mutex_t.self, capacity: 1)
    Self.take(mutex)
    // The first word of the mutex is its futex: the ID of the thread that has it.
    let word = UnsafeMutableRawPointer(mutex).assumingMemoryBound(to: UInt32.self)
    word.pointee |= Self.waiters
    let held = word.pointee
    var arguments = clinux_clone_args()
    arguments.exit_signal = UInt64(SIGCHLD)
    // struct sched_param.
    var priority: Int32 = 1
    var offsets = sockets.map(\.offset)
    let numbers = sockets.map(\.number)
    let child = offsets.withUnsafeMutableBufferPointer { offsets in
      numbers.withUnsafeBufferPointer { numbers in
        withUnsafeMutablePointer(to: &priority) { priority in
          withUnsafeMutablePointer(to: &arguments) { arguments in
            let result = clinux_syscall(
              Int(SYS_clone3), Int(bitPattern: arguments), MemoryLayout<clinux_clone_args>.size, 0, 0, 0, 0)
            guard result == 0 else { return result }
            _ = clinux_syscall(
              Int(SYS_sched_setscheduler), 0, 1 /* SCHED_FIFO */, Int(bitPattern: priority), 0, 0, 0)
            Self.keep(numbers, offsets, word, held)
            return 0
          }
        }
      }
    }
    pid = ProcessID(child)
    guard child > 0 else { throw Errno(rawValue: CInt(-child)) }
  }

  private static func take(_ mutex: UnsafeMutablePointer<pthread_mutex_t>) {
    var attributes = pthread_mutexattr_t()
    pthread_mutexattr_init(&attributes)
    pthread_mutexattr_setpshared(&attributes, Int32(PTHREAD_PROCESS_SHARED))
    pthread_mutexattr_setrobust(&attributes, Int32(PTHREAD_MUTEX_ROBUST))
    pthread_mutex_init(mutex, &attributes)
    pthread_mutex_lock(mutex)
  }

  /// The child's whole life: system calls only, since other threads of ours may have held locks.
  private static func keep(
    _ numbers: UnsafeBufferPointer<Int32>, _ offsets: UnsafeMutableBufferPointer<Int32>,
    _ word: UnsafeMutablePointer<UInt32>, _ held: UInt32
  ) {
    _ = clinux_syscall(Int(SYS_setsid), 0, 0, 0, 0, 0, 0)
    var result = 0
    repeat {
      result = clinux_syscall(Int(SYS_futex), Int(bitPattern: word), 0 /* FUTEX_WAIT */, Int(held), 0, 0, 0)
    } while result == -Int(EINTR)
    for index in numbers.indices {
      _ = clinux_syscall(
        Int(SYS_setsockopt), Int(numbers[index]), Int(SOL_SOCKET), Int(SO_PEEK_OFF),
        Int(bitPattern: offsets.baseAddress?.advanced(by: index)), 4, 0)
    }
    _ = clinux_syscall(Int(SYS_exit_group), 0, 0, 0, 0, 0, 0)
  }

  /// Has everything put back, and waits for it.
  deinit {
    pthread_mutex_unlock(mutex)
    if pid > 0 { waitpid(pid, nil, 0) }
    munmap(page, Int(pageSize))
  }
}

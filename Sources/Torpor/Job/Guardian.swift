import CLinux
import Linux
import SystemPackage

/// A child of ours that outlives us by a moment: it sees our death and ends a set of processes, or lets them be.
///
/// Two things need it, since they take more than one system call and must be done wholly or not at all: ending a job,
/// and letting a restored one go.
final class Guardian {
  /// What it does when Torpor dies without a word.
  enum Action: Sendable {
    case nothing
    case killAll
  }

  private enum Word {
    static let kill: UInt8 = 1
    static let leave: UInt8 = 2
  }

  private let pipe: Descriptor
  private let pid: ProcessID
  private var isDone = false

  /// - Parameters:
  ///   - processes: whom it watches, by PID now and by pidfd from then on.
  init(watching processes: [ProcessID], onDeath action: Action) throws(Failure) {
    let what = "Cannot start the guardian of \(processes.count) processes"
    var handles: [Int32] = []
    defer { for handle in handles { close(handle) } }
    for process in processes {
      handles.append(try attempt(what) { () throws(Errno) in try openProcess(process).release() })
    }
    var ends: [Int32] = [-1, -1]
    guard pipe2(&ends, O_CLOEXEC) == 0 else { throw Failure(what, Errno(rawValue: clinux_errno())) }
    let reading = Descriptor(owning: ends[0])
    pipe = Descriptor(owning: ends[1])
    let ours = ends[1]
    let number = reading.number
    let kills = action == .killAll
    // clone3(2) with nothing but an exit signal: a fork that runs no handlers of the library's.
    var arguments = clinux_clone_args()
    arguments.exit_signal = UInt64(SIGCHLD)
    var word: UInt8 = 0
    let child = handles.withUnsafeBufferPointer { handles in
      withUnsafeMutablePointer(to: &word) { word in
        withUnsafeMutablePointer(to: &arguments) { arguments in
          let result = clinux_syscall(
            Int(SYS_clone3), Int(bitPattern: arguments), MemoryLayout<clinux_clone_args>.size, 0, 0, 0, 0)
          if result == 0 { Self.watch(handles, number, ours, word, kills) }
          return result
        }
      }
    }
    guard child > 0 else { throw Failure(what, Errno(rawValue: CInt(-child))) }
    pid = ProcessID(child)
  }

  deinit {
    if !isDone { try? say(Word.leave) }
  }

  /// The child's whole life: system calls only, since other threads of ours may have held locks.
  private static func watch(
    _ handles: UnsafeBufferPointer<Int32>, _ pipe: Int32, _ keeper: Int32, _ word: UnsafeMutablePointer<UInt8>,
    _ kills: Bool
  ) {
    // A session of its own: a Ctrl-C at the terminal, or a signal to Torpor's group, is not meant for it.
    _ = clinux_syscall(Int(SYS_setsid), 0, 0, 0, 0, 0, 0)
    _ = clinux_syscall(Int(SYS_close), Int(keeper), 0, 0, 0, 0, 0)
    var count = 0
    repeat {
      count = clinux_syscall(Int(SYS_read), Int(pipe), Int(bitPattern: word), 1, 0, 0, 0)
    } while count == -Int(EINTR)
    if count == 1 ? word.pointee == Word.kill : kills {
      for handle in handles {
        _ = clinux_syscall(Int(SYS_pidfd_send_signal), Int(handle), Int(SIGKILL), 0, 0, 0, 0)
      }
    }
    _ = clinux_syscall(Int(SYS_exit_group), 0, 0, 0, 0, 0, 0)
  }

  /// Has all of them killed, whether we live on or not.
  func killAll() throws(Failure) { try say(Word.kill) }

  /// Tells it that there is nothing left to watch.
  func dismiss() throws(Failure) { try say(Word.leave) }

  private func say(_ word: UInt8) throws(Failure) {
    isDone = true
    try attempt("Cannot talk to the guardian") { () throws(Errno) in
      try [word].withBytes { bytes throws(Errno) in try pipe.write(bytes) }
    }
    waitpid(pid, nil, 0)
  }
}

import CLinux
import Linux
import SystemPackage

/// The parent, for as long as it is being built, of a process that shall be left to whoever reaps orphans.
///
/// Were it a child of Torpor, its parent would change while it runs already. Should the building fail or Torpor die, the
/// foster parent reaps what is killed, so that no ID stays taken where the reaper of orphans is slow.
public final class FosterParent {
  /// The child it bore.
  let child: ProcessID
  private let pid: ProcessID
  private var words: Descriptor?

  /// Starts a foster parent, and has it clone a child that runs `life`, which makes system calls only and never returns.
  ///
  /// - Parameters:
  ///   - childID: the PID that the child shall have, or nil for any.
  ///   - keeper: a descriptor of ours that the foster parent shall not keep.
  init(bearing childID: ProcessID?, without keeper: Int32, _ life: () -> Void) throws(Errno) {
    var ends: [Int32] = [-1, -1]
    guard pipe2(&ends, O_CLOEXEC) == 0 else { throw Errno(rawValue: clinux_errno()) }
    let listening = Descriptor(owning: ends[0])
    words = Descriptor(owning: ends[1])
    let answers = try Pipe()
    let unneeded = (ends[1], answers.reading.number, keeper)
    let (hearing, answering) = (listening.number, answers.writing.number)
    var answer = 0
    pid = try withUnsafeMutablePointer(to: &answer) { answer throws(Errno) in
      try cloneProcess(nil) {
        _ = clinux_syscall(Int(SYS_close), Int(unneeded.0), 0, 0, 0, 0, 0)
        _ = clinux_syscall(Int(SYS_close), Int(unneeded.1), 0, 0, 0, 0, 0)
        _ = clinux_syscall(Int(SYS_close), Int(unneeded.2), 0, 0, 0, 0, 0)
        do throws(Errno) { answer.pointee = Int(try cloneProcess(childID, life)) } catch {
          answer.pointee = -Int(error.rawValue)
        }
        Self.watch(hearing, answering, answer)
      }
    }
    _ = try withUnsafeMutableBytes(of: &answer) { bytes throws(Errno) in try answers.reading.read(into: bytes) }
    child = ProcessID(max(answer, 0))
    guard answer > 0 else {
      end()
      throw Errno(rawValue: CInt(-answer))
    }
  }

  deinit { end() }

  /// Ends it: its child is an orphan now.
  public func release() throws(Errno) {
    var word: UInt8 = 1
    guard let number = words?.number, write(number, &word, 1) == 1 else { throw .noChildProcess }
    end()
  }

  /// At the end of the pipe it waits for what has been killed, then ends; after a word it ends at once.
  private func end() {
    guard words != nil else { return }
    words = nil
    waitpid(pid, nil, 0)
  }

  /// Its life. It takes over what its child leaves behind (`PR_SET_CHILD_SUBREAPER`), for the case that all is killed.
  private static func watch(_ listening: Int32, _ answering: Int32, _ answer: UnsafeMutablePointer<Int>) {
    // A Ctrl-C at the terminal is not meant for it.
    _ = clinux_syscall(Int(SYS_setsid), 0, 0, 0, 0, 0, 0)
    _ = clinux_syscall(Int(SYS_prctl), 36, 1, 0, 0, 0, 0)
    let size = MemoryLayout<Int>.size
    _ = clinux_syscall(Int(SYS_write), Int(answering), Int(bitPattern: answer), size, 0, 0, 0)
    var result = 0
    repeat {
      result = clinux_syscall(Int(SYS_read), Int(listening), Int(bitPattern: answer), 1, 0, 0, 0)
    } while result == -Int(EINTR)
    if result == 0 {
      repeat {
        result = clinux_syscall(Int(SYS_wait4), -1, 0, Int(__WALL), 0, 0, 0)
      } while result > 0 || result == -Int(EINTR)
    }
    _ = clinux_syscall(Int(SYS_exit_group), 0, 0, 0, 0, 0, 0)
  }
}

/// clone3(2) with SIGCHLD as exit signal: a fork that runs no handlers of the library's.
///
/// - Parameters:
///   - pid: the ID that the child shall have, or nil for any.
///   - flags: CLONE_NEW flags.
///   - life: what the child does. Unless Torpor is known to have one thread only, it makes system calls only, since others may
///     have held locks. It ends with a call that does not return.
public func cloneProcess(_ pid: ProcessID?, flags: UInt64 = 0, _ life: () -> Void) throws(Errno) -> ProcessID {
  var chosen = pid ?? 0
  var arguments = clinux_clone_args()
  arguments.flags = flags
  arguments.exit_signal = UInt64(SIGCHLD)
  let result = withUnsafeMutablePointer(to: &chosen) { chosen in
    if pid != nil {
      arguments.set_tid = UInt64(UInt(bitPattern: chosen))
      arguments.set_tid_size = 1
    }
    return withUnsafeMutablePointer(to: &arguments) { arguments in
      let result = clinux_syscall(
        Int(SYS_clone3), Int(bitPattern: arguments), MemoryLayout<clinux_clone_args>.size, 0, 0, 0, 0)
      if result == 0 { life() }
      return result
    }
  }
  guard result > 0 else { throw Errno(rawValue: CInt(-result)) }
  return ProcessID(result)
}

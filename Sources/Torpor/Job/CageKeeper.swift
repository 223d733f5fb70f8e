import CLinux
import Linux
import SystemPackage
import Tracing

/// A child of ours that outlives us by a moment, should we die with a job frozen.
final class CageKeeper {
  private let pid: ProcessID
  private var line: Descriptor?

  /// - Parameters:
  ///   - word: what it writes into the group's switch, should we die.
  ///   - heals: whether it also puts right the calls that freezing has cut short.
  init(_ group: FreezableGroup, word: String, heals: Bool) throws(Failure) {
    let what = "Cannot start the keeper of the cgroup \(group.path)"
    let toggle = try attempt(what) { () throws(Errno) in try group.openSwitch() }
    var lists: [Int32] = []
    defer { for list in lists { close(list) } }
    for directory in group.directories {
      lists.append(
        try attempt(what) { () throws(Errno) in try Descriptor.open("\(directory)/\(group.threadList)", O_RDONLY).release() })
    }
    var ends: [Int32] = [-1, -1]
    guard pipe2(&ends, O_CLOEXEC) == 0 else { throw Failure(what, Errno(rawValue: clinux_errno())) }
    let listening = Descriptor(owning: ends[0])
    line = Descriptor(owning: ends[1])
    var duty = Duty(
      toggle: toggle.number, listening: listening.number, unneeded: ends[1], heals: heals,
      room: UnsafeMutableRawBufferPointer.allocate(byteCount: 1 << 20, alignment: 16))
    defer { duty.room.deallocate() }
    let word = Array(word.utf8)
    pid = try lists.withUnsafeBufferPointer { lists throws(Failure) in
      try word.withBytes { word throws(Failure) in
        try attempt(what) { () throws(Errno) in try cloneProcess(nil) { duty.stand(lists, word) } }
      }
    }
  }

  deinit {
    var word: UInt8 = 1
    if let number = line?.number { _ = write(number, &word, 1) }
    line = nil
    waitpid(pid, nil, 0)
  }

  /// The child's life: system calls only, since other threads of ours may have held locks.
  private struct Duty {
    let toggle: Int32
    let listening: Int32
    let unneeded: Int32
    let heals: Bool
    let room: UnsafeMutableRawBufferPointer

    mutating func stand(_ lists: UnsafeBufferPointer<Int32>, _ word: UnsafeRawBufferPointer) {
      _ = clinux_syscall(Int(SYS_setsid), 0, 0, 0, 0, 0, 0)
      _ = clinux_syscall(Int(SYS_close), Int(unneeded), 0, 0, 0, 0, 0)
      var count = 0
      repeat {
        count = clinux_syscall(Int(SYS_read), Int(listening), Int(bitPattern: room.baseAddress), 1, 0, 0, 0)
      } while count == -Int(EINTR)
      if count == 0 { heal(lists, word) }
      _ = clinux_syscall(Int(SYS_exit_group), 0, 0, 0, 0, 0, 0)
    }

    private func heal(_ lists: UnsafeBufferPointer<Int32>, _ word: UnsafeRawBufferPointer) {
      if heals { forEachThread(lists, seize) }
      _ = clinux_syscall(Int(SYS_write), Int(toggle), Int(bitPattern: word.baseAddress), word.count, 0, 0, 0)
      if heals { forEachThread(lists, settle) }
    }

    private func seize(_ tid: ProcessID) {
      // The end of the pipe comes a moment before the kernel takes the threads from their dead tracer.
      for _ in 0..<1000 {
        if clinux_ptrace(CLINUX_PTRACE_SEIZE, tid, 0, 0) != -Int(EPERM) { break }
        usleep(500)
      }
      _ = clinux_ptrace(CLINUX_PTRACE_INTERRUPT, tid, 0, 0)
    }

    /// Waits until the thread stands, has a call that was cut short made again, and lets it go.
    private func settle(_ tid: ProcessID) {
      var status: Int32 = 0
      while waitpid(tid, &status, __WALL) == tid {
        switch Stop(status: status) {
        case .exited, .killed: return
        case .signal(let signal): _ = clinux_ptrace(CLINUX_PTRACE_CONT, tid, 0, UInt(UInt32(bitPattern: signal)))
        case .interrupted:
          let tracee = Tracee(born: tid)
          if var registers = try? tracee.registers(), registers.isInterrupted, !hasSignalToTake(tid) {
            registers.reissueSystemCall()
            try? tracee.setRegisters(registers)
          }
          try? tracee.detach()
          return
        default: _ = clinux_ptrace(CLINUX_PTRACE_CONT, tid, 0, 0)
        }
      }
    }

    /// Whether a signal waits that the thread does not block: then its EINTR belongs to the program.
    private func hasSignalToTake(_ tid: ProcessID) -> Bool {
      withUnsafeTemporaryAllocation(byteCount: 8192, alignment: 1) { buffer in
        guard let count = read("/proc/", tid, "/status", into: buffer) else { return false }
        var scanner = TextScanner(UnsafeRawBufferPointer(rebasing: buffer[..<count]))
        var (waiting, blocked): (UInt64, UInt64) = (0, 0)
        while !scanner.isAtEnd {
          if scanner.accept("SigPnd:\t") || scanner.accept("ShdPnd:\t") { waiting |= scanner.hexadecimal() ?? 0 }
          if scanner.accept("SigBlk:\t") { blocked = scanner.hexadecimal() ?? 0 }
          scanner.skipLine()
        }
        return waiting & ~blocked != 0
      }
    }

    /// Reads a file with a number in its path, without a String.
    private func read(
      _ start: StaticString, _ number: Int32, _ end: StaticString, into buffer: UnsafeMutableRawBufferPointer
    ) -> Int? {
      var used = 0
      func add(_ text: StaticString) {
        for index in 0..<text.utf8CodeUnitCount { buffer[used + index] = text.utf8Start[index] }
        used += text.utf8CodeUnitCount
      }
      add(start)
      var divisor: Int32 = 1
      while number / divisor >= 10 { divisor *= 10 }
      while divisor > 0 {
        buffer[used] = UInt8(ascii: "0") + UInt8(number / divisor % 10)
        used += 1
        divisor /= 10
      }
      add(end)
      buffer[used] = 0
      let file = clinux_syscall(
        Int(SYS_openat), Int(AT_FDCWD), Int(bitPattern: buffer.baseAddress), Int(O_RDONLY), 0, 0, 0)
      guard file >= 0 else { return nil }
      let count = clinux_syscall(Int(SYS_read), file, Int(bitPattern: buffer.baseAddress), buffer.count, 0, 0, 0)
      _ = clinux_syscall(Int(SYS_close), file, 0, 0, 0, 0, 0)
      return count > 0 ? count : nil
    }

    private func forEachThread(_ lists: UnsafeBufferPointer<Int32>, _ body: (ProcessID) -> Void) {
      for list in lists {
        _ = clinux_syscall(Int(SYS_lseek), Int(list), 0, Int(SEEK_SET), 0, 0, 0)
        var used = 0
        while used < room.count {
          let count = clinux_syscall(
            Int(SYS_read), Int(list), Int(bitPattern: room.baseAddress) + used, room.count - used, 0, 0, 0)
          if count <= 0 { break }
          used += count
        }
        var scanner = TextScanner(UnsafeRawBufferPointer(rebasing: room[..<used]))
        while let tid = scanner.decimal() {
          body(ProcessID(truncatingIfNeeded: tid))
          scanner.skipLine()
        }
      }
    }
  }
}

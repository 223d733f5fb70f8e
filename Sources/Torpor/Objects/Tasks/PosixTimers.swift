import CLinux
import Images
import Linux
import SystemPackage
import Tracing

/// A timer of timer_create(2), as /proc/PID/timers shows it.
struct PosixTimer: Sendable, Equatable {
  var id: Int32 = 0
  var signal: Int32 = 0
  /// What comes with the signal.
  var value: UInt64 = 0
  /// SIGEV_SIGNAL 0, SIGEV_NONE 1, SIGEV_THREAD 2, and SIGEV_THREAD_ID 4 on top. (asm-generic/siginfo.h)
  var notify: UInt32 = 0
  /// The thread or process that is told.
  var target: ProcessID = 0
  var clock: Int32 = 0

  static let notifiesThread: UInt32 = 4

  /// All timers of a process, from four lines each. proc_pid_timers(5)
  static func parse(_ text: [UInt8]) -> [PosixTimer] {
    var timers: [PosixTimer] = []
    text.withUnsafeBytes { bytes in
      var scanner = TextScanner(bytes)
      while !scanner.isAtEnd {
        if scanner.accept("ID: ") {
          timers.append(PosixTimer())
          timers[timers.count - 1].id = int(&scanner)
        } else if let last = timers.indices.last {
          timers[last].parseLine(&scanner)
        }
        scanner.skipLine()
      }
    }
    return timers
  }

  private mutating func parseLine(_ scanner: inout TextScanner) {
    if scanner.accept("signal: ") {
      signal = Self.int(&scanner)
      if scanner.accept("/") { value = scanner.hexadecimal() ?? 0 }
    } else if scanner.accept("notify: ") {
      if scanner.accept("none") { notify = 1 } else if scanner.accept("thread") { notify = 2 } else { _ = scanner.accept("signal") }
      if scanner.accept("/tid.") { notify |= Self.notifiesThread } else { _ = scanner.accept("/pid.") }
      target = Self.int(&scanner)
    } else if scanner.accept("ClockID: ") {
      clock = Self.int(&scanner)
    }
  }

  private static func int(_ scanner: inout TextScanner) -> Int32 { Int32(truncatingIfNeeded: scanner.decimal() ?? 0) }
}

/// Timers of timer_create(2): their numbers, whom they tell and how, what is left of their time.
enum PosixTimerRoom {
  /// So many fit a seat.
  static let timersAtATime = 64

  // MARK: Save

  /// The program that asks how far these timers are.
  struct Questions {
    private(set) var program = SyscallProgram()
    private let timers: ArraySlice<PosixTimer>
    private let times: Int
    private var overruns: [Int] = []

    init(_ timers: ArraySlice<PosixTimer>) {
      self.timers = timers
      times = program.reserve(timers.count * 32)
      for (index, timer) in timers.enumerated() {
        program.call(Int32(SYS_timer_gettime), .init(timer.id), .data(times + index * 32))
        overruns.append(program.call(Int32(SYS_timer_getoverrun), .init(timer.id)))
      }
    }

    func answers(_ results: Results) -> [PosixTimerEntry] {
      timers.enumerated().map { index, timer in
        func time(_ word: Int) -> UInt64 { results.load(times + index * 32 + word * 8, as: UInt64.self) }
        return .with {
          $0.itID = UInt32(bitPattern: timer.id)
          $0.clockID = UInt32(bitPattern: timer.clock)
          $0.siSigno = UInt32(bitPattern: timer.signal)
          $0.itSigevNotify = timer.notify
          $0.sivalPtr = timer.value
          $0.overrun = UInt32(truncatingIfNeeded: results[overruns[index]])
          ($0.isec, $0.insec, $0.vsec, $0.vnsec) = (time(0), time(1), time(2), time(3))
          if timer.notify & PosixTimer.notifiesThread != 0 { $0.notifyThreadID = timer.target }
        }
      }
    }
  }

  // MARK: Restore

  /// PR_TIMER_CREATE_RESTORE_IDS of linux/prctl.h (Linux 6.15): timer_create(2) takes the ID that is wanted.
  private static let restoreIDs = 77

  static var canChooseIDs: Bool { (try? systemCall(Int32(SYS_prctl), restoreIDs, 2 /* GET */)) != nil }

  /// - Throws: where this kernel cannot make the timers again.
  static func check(_ entry: TaskCoreEntry, _ process: RestoredProcess, _ path: String) throws(Failure) {
    guard !entry.timers.posix.isEmpty else { return }
    let what = "Cannot restore \(path)"
    guard canChooseIDs else {
      throw Failure(
        .cannotRestore, what, why: "process \(process.label) has POSIX timers, and this kernel does not let them keep their IDs",
        advice: "use Linux 6.15 or newer")
    }
    for timer in entry.timers.posix where timer.itSigevNotify & PosixTimer.notifiesThread != 0 {
      guard process.entry.threads.contains(UInt32(bitPattern: timer.notifyThreadID)) else {
        throw Failure(
          .badImage, what, why: "a timer of process \(process.label) tells a thread that is not there",
          advice: "use another image, or a good copy of this one")
      }
    }
  }

  /// The programs that make a process's timers and set them going.
  static func programs(_ entry: TaskCoreEntry) -> [SyscallProgram] {
    let timers = entry.timers.posix
    return stride(from: 0, to: timers.count, by: 500).map { start in
      var program = SyscallProgram()
      program.call(Int32(SYS_prctl), .init(restoreIDs), 1)
      for timer in timers[start..<min(start + 500, timers.count)] { add(timer, to: &program) }
      program.call(Int32(SYS_prctl), .init(restoreIDs), 0)
      return program
    }
  }

  private static func add(_ timer: PosixTimerEntry, to program: inout SyscallProgram) {
    // struct sigevent: value, signal, notification, thread; 64 bytes in all.
    let event = program.store((timer.sivalPtr, timer.siSigno, timer.itSigevNotify, timer.notifyThreadID, Int32(0)))
    _ = program.store((UInt64(0), UInt64(0), UInt64(0), UInt64(0), UInt64(0)))
    let id = program.store((timer.itID, UInt32(0)))
    program.call(Int32(SYS_timer_create), .init(Int32(bitPattern: timer.clockID)), event, id)
    guard timer.vsec != 0 || timer.vnsec != 0 else { return }
    let times = program.store((timer.isec, timer.insec, timer.vsec, timer.vnsec))
    program.call(Int32(SYS_timer_settime), .init(Int32(bitPattern: timer.itID)), 0, times, 0)
  }
}

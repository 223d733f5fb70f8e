import CLinux
import Linux
import SystemPackage
import Tracing

/// A job that stands still: a process, its threads, its descendants.
public final class Job {
  /// Parents before their children; the first is the root.
  public internal(set) var processes: [JobProcess] = []
  /// The cgroup that holds it and nothing else, thawed again.
  var cage: Cage?

  public init() {}

  /// The processes that still run, as opposed to zombies.
  public var living: [JobProcess] { processes.filter { !$0.isZombie } }
  public var threadCount: Int { processes.reduce(0) { $0 + $1.threads.count } }
  public func process(_ pid: ProcessID) -> JobProcess? { processes.first { $0.pid == pid } }
}

/// One process of a frozen job.
public final class JobProcess {
  public let pid: ProcessID
  /// The thread by which the kernel is asked about the process: its first, or any that lives should that one have ended.
  public let witness: ProcessID
  /// The witness's directory in /proc, held open since before it was frozen.
  public let proc: ProcDirectory
  /// A pidfd.
  public let handle: Descriptor
  /// /proc/PID/mem, open for reading and writing.
  public internal(set) var memory: Descriptor
  public internal(set) var statistics: TaskStatistics
  public internal(set) var status: TaskStatus
  public internal(set) weak var parent: JobProcess?
  public internal(set) var children: [JobProcess] = []
  /// The leader first; none for a zombie.
  public internal(set) var threads: [JobThread] = []
  /// Its address space, read while it stood still.
  public internal(set) var areas: [MemoryArea] = []
  /// Its timers of timer_create(2).
  var timers: [PosixTimer] = []
  /// What its descriptors look like from outside, where that has been read ahead.
  var descriptors: [DescriptorFacts]?

  init(
    pid: ProcessID, proc: consuming ProcDirectory, handle: consuming Descriptor, memory: consuming Descriptor,
    statistics: TaskStatistics, status: TaskStatus, parent: JobProcess?
  ) {
    self.pid = pid
    witness = proc.pid
    self.proc = proc
    self.handle = handle
    self.memory = memory
    self.statistics = statistics
    self.status = status
    self.parent = parent
  }

  public var name: String { statistics.command }
  public var isZombie: Bool { statistics.state == "Z" }
  /// Whether job control has stopped it.
  public var isStopped: Bool { threads.contains { $0.control.stoppedBySignal != nil } }
  /// The first thread: any that lives, should the leader have exited.
  public var anyThread: JobThread? { threads.first { !$0.isDead } }
  /// For messages: `4242 (firefox)`.
  public var label: String { "\(pid) (\(name))" }
}

extension JobProcess {
  /// A stand-in that holds, in our own descriptor table, what is on its way to this process.
  func carrier() throws(Failure) -> JobProcess {
    try attempt("Cannot look at torpor's own descriptors") { () throws(Errno) in
      JobProcess(
        pid: pid, proc: try ProcDirectory(getpid()), handle: try openProcess(getpid()),
        memory: try .open("/proc/self/mem", O_RDONLY), statistics: statistics, status: status, parent: nil)
    }
  }
}

/// One thread of a frozen process.
public final class JobThread {
  public let tid: ProcessID
  public let control: ControlledThread
  /// The extended registers, as `Tracee.extendedState` gives them.
  public internal(set) var extendedState: [UInt8] = []
  /// A leader that has exited while other threads live on.
  public let isDead: Bool

  init(tid: ProcessID, control: ControlledThread, isDead: Bool = false) {
    self.tid = tid
    self.control = control
    self.isDead = isDead
  }
}

/// Stops of job control, as against those of tracing.
enum JobControl {
  /// A stopped process that is no longer traced wakes for a moment to enter its stop again; waits until it has.
  static func awaitStop(of pid: ProcessID) {
    for _ in 0..<1000 {
      guard let proc = try? ProcDirectory(pid), let statistics = try? TaskStatistics(of: proc),
        statistics.state != "T", statistics.state != "Z"
      else { return }
      usleep(100)
    }
  }
}

import CVictims
import Glibc
import Synchronization

enum ExitStatus: Equatable, CustomStringConvertible {
  case code(Int32)
  case signal(Int32)
  case overtime

  init(waitStatus: Int32) {
    let signal = waitStatus & 0x7f
    self = signal == 0 ? .code(waitStatus >> 8 & 0xff) : .signal(signal)
  }

  var description: String {
    switch self {
    case .code(let code): "exit code \(code)"
    case .signal(let signal): "killed by signal \(signal)"
    case .overtime: "did not end in time"
    }
  }
}

/// A program to start: nothing of this process reaches it but what is said here.
struct Launch {
  var program: String
  var arguments: [String]
  var environment: [String: String] = [:]
  var folder: String?
  var input = "/dev/null"
  var output: String
  var errors: String
  var ownSession = true
  /// Environment entries that come from here unless said otherwise.
  static let inherited = ["PATH", "HOME", "LANG", "TMPDIR", "USER"]

  init(
    _ program: String, _ arguments: [String] = [], environment: [String: String] = [:], folder: String? = nil,
    output: String = "/dev/null", errors: String = "/dev/null"
  ) {
    self.program = program
    self.arguments = arguments
    self.environment = environment
    self.folder = folder
    self.output = output
    self.errors = errors
  }

  func start() throws -> pid_t {
    _ = Host.prepared
    guard let path = program.contains("/") ? program : Host.program(program) else {
      throw TestFailure("there is no program \(program)")
    }
    var actions = posix_spawn_file_actions_t()
    posix_spawn_file_actions_init(&actions)
    defer { posix_spawn_file_actions_destroy(&actions) }
    posix_spawn_file_actions_addopen(&actions, 0, input, O_RDONLY, 0)
    posix_spawn_file_actions_addopen(&actions, 1, output, O_WRONLY | O_CREAT | O_APPEND, 0o644)
    posix_spawn_file_actions_addopen(&actions, 2, errors, O_WRONLY | O_CREAT | O_APPEND, 0o644)
    posix_spawn_file_actions_addclosefrom_np(&actions, 3)
    if let folder { posix_spawn_file_actions_addchdir_np(&actions, folder) }

    var attributes = posix_spawnattr_t()
    posix_spawnattr_init(&attributes)
    defer { posix_spawnattr_destroy(&attributes) }
    var none = sigset_t()
    var all = sigset_t()
    sigemptyset(&none)
    sigfillset(&all)
    posix_spawnattr_setsigmask(&attributes, &none)
    posix_spawnattr_setsigdefault(&attributes, &all)
    let flags = POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | (ownSession ? 0x80 /* POSIX_SPAWN_SETSID */ : 0)
    posix_spawnattr_setflags(&attributes, Int16(flags))

    var variables = environment
    for name in Self.inherited where variables[name] == nil {
      if let value = getenv(name) { variables[name] = String(cString: value) }
    }
    var pid: pid_t = 0
    let result = withCStrings([path] + arguments) { argv in
      withCStrings(variables.sorted { $0.key < $1.key }.map { "\($0.key)=\($0.value)" }) { envp in
        Reaper.registering({ pid in posix_spawn(&pid, path, &actions, &attributes, argv, envp) }, into: &pid)
      }
    }
    guard result == 0 else { throw TestFailure("cannot start \(path): \(errorText(result))") }
    return pid
  }

  private func withCStrings<Result>(
    _ strings: [String], _ body: ([UnsafeMutablePointer<CChar>?]) -> Result
  ) -> Result {
    let copies = strings.map { strdup($0) }
    defer { copies.forEach { free($0) } }
    return body(copies + [nil])
  }
}

/// Waits for processes. This process is the child subreaper, so what our jobs leave behind comes here and keeps its PID until it is
/// reaped; and PIDs that stay taken stand in the way of a restore.
enum Reaper {
  /// PIDs that a test waits for itself.
  private static let registered = Mutex<Set<pid_t>>([])

  /// Starts and registers in one, so that no sweep comes between.
  static func registering(_ start: (inout pid_t) -> Int32, into pid: inout pid_t) -> Int32 {
    var started: pid_t = 0
    let result = registered.withLock { set in
      let result = start(&started)
      if result == 0 { set.insert(started) }
      return result
    }
    pid = started
    return result
  }

  static func register(_ pids: some Sequence<pid_t>) { registered.withLock { $0.formUnion(pids) } }
  static func forget(_ pids: some Sequence<pid_t>) { registered.withLock { $0.subtract(pids) } }

  /// The exit status when the process is a child of ours that has ended; nil when not yet, or not ours.
  static func status(of pid: pid_t) -> ExitStatus? {
    var status: Int32 = 0
    let result = waitpid(pid, &status, WNOHANG | Int32(bitPattern: 0x4000_0000) /* __WALL */)
    return result == pid ? ExitStatus(waitStatus: status) : nil
  }

  /// Reaps what has ended and belongs to nobody here: half-built processes of a killed restore, orphans of a job.
  static func sweep() {
    for thread in Files.names(in: "/proc/self/task") {
      let children = (Files.text("/proc/self/task/\(thread)/children") ?? "").split(separator: " ").compactMap { pid_t($0) }
      registered.withLock { set in
        for pid in children where !set.contains(pid) && Processes.state(pid) == "Z" { _ = status(of: pid) }
      }
    }
  }

  /// Waits until the process has ended and its PID is free; returns its status if it was a child of ours.
  static func wait(for pid: pid_t, within limit: Duration) async -> ExitStatus {
    var found: ExitStatus?
    let ended = await eventually(within: limit, every: .milliseconds(2)) {
      if found == nil { found = status(of: pid) }
      return found != nil || !Processes.exists(pid)
    }
    return found ?? (ended ? .code(-1) : .overtime)
  }

  /// Waits until every one of these PIDs is free.
  static func waitUntilGone(_ pids: [pid_t], within limit: Duration = .seconds(10)) async -> [pid_t] {
    var left = pids
    _ = await eventually(within: limit, every: .milliseconds(2)) {
      left = left.filter { pid in
        _ = status(of: pid)
        return Processes.exists(pid)
      }
      if !left.isEmpty { sweep() }
      return left.isEmpty
    }
    return left
  }
}

/// For the few places outside of tasks.
func waitBlocking(_ pid: pid_t) -> ExitStatus {
  var status: Int32 = 0
  while waitpid(pid, &status, 0) < 0 && errno == EINTR {}
  Reaper.forget([pid])
  return ExitStatus(waitStatus: status)
}

import CVictims
import Glibc
import Synchronization

/// The machine and the checkout that the tests run on.
enum Host {
  /// The root of the package, found from where this file lies.
  static let packageRoot: String = {
    var parts = #filePath.split(separator: "/", omittingEmptySubsequences: false)
    parts.removeLast(4) // Tests/IntegrationTests/Harness/Host.swift
    return parts.joined(separator: "/")
  }()

  /// The command under test: $TORPOR_BINARY, else the one built beside these tests, else the newest in `.build`.
  static let torpor: String = {
    if let given = getenv("TORPOR_BINARY") { return absolute(String(cString: given)) }
    let beside = Files.link("/proc/self/exe").map { "\($0[..<($0.lastIndex(of: "/") ?? $0.startIndex)])/torpor" }
    if let beside, access(beside, X_OK) == 0 { return beside }
    let built = ["release", "debug"].map { (name: String) -> String in "\(packageRoot)/.build/\(name)/torpor" }.filter { access($0, X_OK) == 0 }
    func age(_ path: String) -> Int {
      var status = stat()
      stat(path, &status)
      return status.st_mtim.tv_sec
    }
    return built.max { age($0) < age($1) } ?? "\(packageRoot)/.build/debug/torpor"
  }()

  static let fixtures = "\(packageRoot)/Tests/Fixtures"
  static let isRoot = geteuid() == 0

  /// How many tests have a job at the same time. Most of their time is waiting.
  static let gate = Gate(places: getenv("TORPOR_TEST_JOBS").flatMap { Int(String(cString: $0)) } ?? 6)

  /// Done once: orphans of our jobs come to us, and the victims are built.
  static let prepared: Void = {
    _ = clinux_become_subreaper()
    signal(SIGPIPE, SIG_IGN)
  }()

  static let victims: Result<String, TestFailure> = {
    _ = prepared
    let folder = "\(packageRoot)/Tests/Victims"
    let log = "/tmp/torpor-victims-\(getpid()).log"
    defer { unlink(log) }
    do {
      let pid = try Launch("make", ["-s", "-j2", "-C", folder], output: log, errors: log).start()
      let status = waitBlocking(pid)
      guard status == .code(0) else { return .failure(TestFailure("make -C \(folder): \(status)\n\(Files.text(log) ?? "")")) }
      return .success("\(folder)/bin")
    } catch {
      return .failure(TestFailure("make -C \(folder): \(error)"))
    }
  }()

  /// The real path of a program in PATH that is no script (a pyenv shim is one).
  static func program(_ name: String) -> String? {
    if name.contains("/") { return access(name, X_OK) == 0 ? name : nil }
    let path = getenv("PATH").map { String(cString: $0) } ?? "/usr/bin:/bin"
    for folder in ["/usr/bin", "/bin"] + path.split(separator: ":").map(String.init) {
      let candidate = "\(folder)/\(name)"
      guard access(candidate, X_OK) == 0, let start = head(candidate), start != Array("#!".utf8) else { continue }
      // Not the real path: some programs are told by their name what to do.
      return candidate
    }
    return nil
  }

  private static func head(_ path: String) -> [UInt8]? {
    let descriptor = open(path, O_RDONLY | O_CLOEXEC)
    guard descriptor >= 0 else { return nil }
    defer { close(descriptor) }
    var start: [UInt8] = [0, 0]
    return read(descriptor, &start, 2) == 2 ? start : nil
  }

  private static func absolute(_ path: String) -> String {
    guard !path.hasPrefix("/"), let here = getcwd(nil, 0) else { return path }
    defer { free(here) }
    return "\(String(cString: here))/\(path)"
  }
}

/// Lets so many through at a time, in the order in which they came.
actor Gate {
  private var places: Int
  private var queue: [CheckedContinuation<Void, Never>] = []

  init(places: Int) { self.places = places }

  func enter() async {
    if places > 0 {
      places -= 1
    } else {
      await withCheckedContinuation { queue.append($0) }
    }
  }

  func leave() {
    if queue.isEmpty {
      places += 1
    } else {
      queue.removeFirst().resume()
    }
  }
}

import Glibc

/// A cgroup of a test's own, under the root of a hierarchy that can freeze it.
struct ControlGroup {
  enum Version: String, CaseIterable, Sendable {
    case one, two
  }

  let version: Version
  let path: String

  /// The root of the hierarchy of this version; nil where this machine has none that we may use.
  static func root(_ version: Version) -> String? {
    for line in (Files.text("/proc/self/mountinfo") ?? "").split(separator: "\n") {
      let words = line.split(separator: " ")
      guard let dash = words.firstIndex(of: "-"), words.count > dash + 3 else { continue }
      let isIt =
        version == .two
        ? words[dash + 1] == "cgroup2" : words[dash + 1] == "cgroup" && words[dash + 3].split(separator: ",").contains("freezer")
      if isIt, access(String(words[4]), W_OK) == 0 { return String(words[4]) }
    }
    return nil
  }

  static let versions = Version.allCases.filter { root($0) != nil }

  init(_ version: Version) throws {
    guard let root = Self.root(version) else { throw TestFailure("there is no freezer of version \(version)") }
    self.version = version
    path = "\(root)/torpor-test-\(getpid())-\(UInt32.random(in: 0...UInt32.max))"
    try Files.makeFolder(path)
  }

  func freeze() throws {
    try Files.write("\(path)/\(version == .one ? "freezer.state" : "cgroup.freeze")", text: version == .one ? "FROZEN" : "1")
  }

  func thaw() throws {
    try Files.write("\(path)/\(version == .one ? "freezer.state" : "cgroup.freeze")", text: version == .one ? "THAWED" : "0")
  }

  var isFrozen: Bool {
    version == .one
      ? Files.text("\(path)/freezer.state")?.hasPrefix("FROZEN") == true
      : Files.text("\(path)/cgroup.events")?.contains("frozen 1") == true
  }

  /// Removes it, once all in it have ended.
  func remove() async {
    _ = await eventually { rmdir(path) == 0 || errno == ENOENT }
  }
}

extension Victim {
  /// Starts one of the programs of Tests/Victims in a cgroup.
  static func start(_ name: String, _ arguments: [String] = [], in workspace: Workspace, _ group: ControlGroup) async throws -> Victim {
    let program = "\(try Host.victims.get())/\(name)"
    let victim = try Victim(
      "/bin/sh", ["-c", "echo $$ > \"$0/cgroup.procs\" && exec \"$@\"", group.path, program] + arguments, in: workspace)
    try await victim.waitUntilReady()
    return victim
  }
}

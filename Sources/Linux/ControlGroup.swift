import CLinux
import SystemPackage

/// A cgroup that can be frozen, of version 1 (freezer) or 2. cgroups(7), Documentation/admin-guide/cgroup-v2.rst
public struct FreezableGroup: Sendable {
  public enum Version: Sendable {
    /// A frozen thread stands in the kernel's refrigerator: a tracer cannot look at it until it is thawed.
    case one
    /// A frozen thread can be traced while it is frozen.
    case two
  }

  public let version: Version
  /// Its directory.
  public let path: String
  /// It and those below it, parents first.
  public let directories: [String]

  /// The group of a process, unless it is the root of its hierarchy: version 2 where it has one in both.
  public init?(of process: borrowing ProcDirectory) {
    guard let memberships = try? process.read("cgroup"), let mounts = try? readWholeFile("/proc/self/mountinfo") else {
      return nil
    }
    let points = MountPoint.all(mounts)
    var found: (Version, String)?
    for line in String(decoding: memberships, as: UTF8.self).split(separator: "\n") {
      // hierarchy-ID:controllers:path
      let parts = line.split(separator: ":", maxSplits: 2, omittingEmptySubsequences: false)
      guard parts.count == 3, parts[2] != "/" else { continue }
      let version: Version = parts[0] == "0" ? .two : .one
      guard version == .two || parts[1].split(separator: ",").contains("freezer"),
        let point = points.first(where: { $0.version == version }), let path = point.locate(String(parts[2]))
      else { continue }
      if found == nil || version == .two { found = (version, path) }
    }
    guard let (version, path) = found else { return nil }
    self.version = version
    self.path = path
    directories = Self.below(path)
  }

  /// Where freezers can be seen here, in words.
  public static func mounts() -> [String] {
    MountPoint.all((try? readWholeFile("/proc/self/mountinfo")) ?? []).map {
      "version \($0.version == .one ? 1 : 2) at \($0.path)"
    }
  }

  private static func below(_ path: String) -> [String] {
    guard let stream = opendir(path) else { return [path] }
    defer { closedir(stream) }
    var result = [path]
    while let entry = readdir(stream) {
      let isDirectory = entry.pointee.d_type == UInt8(DT_DIR)
      let name = withUnsafeBytes(of: &entry.pointee.d_name) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
      if isDirectory, name != ".", name != ".." { result += below("\(path)/\(name)") }
    }
    return result
  }

  /// The processes in it and below it.
  public func processes() throws(Errno) -> [ProcessID] { try numbers("cgroup.procs") }

  /// The threads in it and below it.
  public func threads() throws(Errno) -> [ProcessID] { try numbers(threadList) }

  /// The file that lists the threads of one group.
  public var threadList: String { version == .one ? "tasks" : "cgroup.threads" }

  private func numbers(_ name: String) throws(Errno) -> [ProcessID] {
    var result: [ProcessID] = []
    for directory in directories {
      let text = try readWholeFile("\(directory)/\(name)")
      text.withUnsafeBytes { bytes in
        var scanner = TextScanner(bytes)
        while let number = scanner.decimal() {
          result.append(ProcessID(truncatingIfNeeded: number))
          scanner.skipLine()
        }
      }
    }
    return result
  }

  // MARK: Freezing

  /// What is written to `switchFile`.
  public var frozenWord: String { version == .one ? "FROZEN" : "1" }
  public var thawedWord: String { version == .one ? "THAWED" : "0" }

  /// The file that freezes and thaws it, for writing.
  public func openSwitch() throws(Errno) -> Descriptor {
    try .open("\(path)/\(version == .one ? "freezer.state" : "cgroup.freeze")", O_WRONLY)
  }

  /// Whether everything in it stands.
  public func isFrozen() throws(Errno) -> Bool {
    switch version {
    case .one: return try readWholeFile("\(path)/freezer.state").starts(with: Array("FROZEN".utf8))
    case .two:
      let events = try readWholeFile("\(path)/cgroup.events")
      return String(decoding: events, as: UTF8.self).split(separator: "\n").contains("frozen 1")
    }
  }

  /// Whether somebody wants it to be frozen, wherever it is on the way.
  public func shallBeFrozen() throws(Errno) -> Bool {
    switch version {
    case .one: return try !readWholeFile("\(path)/freezer.state").starts(with: Array("THAWED".utf8))
    case .two: return try readWholeFile("\(path)/cgroup.freeze").first == UInt8(ascii: "1")
    }
  }
}

/// Where a cgroup hierarchy can be seen.
private struct MountPoint {
  let version: FreezableGroup.Version
  /// The part of the hierarchy that is mounted.
  let root: String
  let path: String

  static func all(_ mounts: [UInt8]) -> [MountPoint] {
    String(decoding: mounts, as: UTF8.self).split(separator: "\n").compactMap { line in
      // ID, parent, device, root, mount point, options, optional fields, "-", type, source, options of the file system.
      let words = line.split(separator: " ")
      guard words.count > 6, let dash = words.firstIndex(of: "-"), words.count > dash + 3 else { return nil }
      let (root, path) = (String(words[3]), String(words[4]))
      switch words[dash + 1] {
      case "cgroup2": return MountPoint(version: .two, root: root, path: path)
      case "cgroup" where words[dash + 3].split(separator: ",").contains("freezer"):
        return MountPoint(version: .one, root: root, path: path)
      default: return nil
      }
    }
  }

  /// The directory of the group with this path in the hierarchy; nil where it cannot be seen here.
  func locate(_ group: String) -> String? {
    if root == "/" { return path + group }
    guard group == root || group.hasPrefix(root + "/") else { return nil }
    return path + group.dropFirst(root.count)
  }
}

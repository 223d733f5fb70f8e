import Glibc

/// Everything about a job that can be seen from outside and must be the same before and after, as one flat table from a name for
/// people ("pid 12 fd 3 flags") to a value.
struct Observation {
  private(set) var facts: [String: String] = [:]
  private let pids: Set<pid_t>
  /// Pipes, sockets and the like have other inode numbers afterwards; which descriptors lead to the same one must stay.
  private var objects: [String: String] = [:]

  init(_ pids: [pid_t]) {
    self.pids = Set(pids)
    for pid in pids {
      observe(pid)
    }
  }

  /// What differs, one line each.
  static func differences(_ before: Observation, _ after: Observation) -> [String] {
    Set(before.facts.keys).union(after.facts.keys).sorted().compactMap { name in
      let old = before.facts[name] ?? "(nothing)"
      let new = after.facts[name] ?? "(nothing)"
      return old == new ? nil : "\(name): before \(old), after \(new)"
    }
  }

  private mutating func observe(_ pid: pid_t) {
    let root = "/proc/\(pid)"
    let at = "pid \(pid)"
    for file in ["cmdline", "environ", "auxv"] {
      facts["\(at) \(file)"] = Files.bytes("\(root)/\(file)").map(Self.readable)
    }
    for link in ["exe", "cwd", "root"] { facts["\(at) \(link)"] = Files.link("\(root)/\(link)") }
    for line in (Files.text("\(root)/limits") ?? "").split(separator: "\n").dropFirst() {
      facts["\(at) limit \(line.prefix(26).trimmingSpaces())"] = line.dropFirst(26).split(separator: " ").joined(separator: " ")
    }
    observeStat(pid)
    let zombie = Processes.state(pid) == "Z" && Processes.threads(pid).count == 1
    if !zombie {
      observeMappings(pid)
      observeDescriptors(pid)
    }
    for thread in Processes.threads(pid) {
      let fields = Processes.status("\(root)/task/\(thread)/status")
      for name in ["Name", "Umask", "Uid", "Gid", "Groups", "SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt", "CapInh", "CapPrm", "CapEff",
        "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp"] {
        facts["\(at) thread \(thread) \(name)"] = fields[name]
      }
      let stat = Processes.stat("\(root)/task/\(thread)/stat")
      if stat.count > 38 { facts["\(at) thread \(thread) nice, policy"] = "\(stat[16]) \(stat[37]) \(stat[38])" }
    }
  }

  private mutating func observeStat(_ pid: pid_t) {
    let stat = Processes.stat("/proc/\(pid)/stat")
    guard stat.count > 49 else { return }
    for (name, index) in [("parent", 1), ("process group", 2), ("session", 3)] {
      // Outside of the job these may be others.
      facts["pid \(pid) \(name)"] = pid_t(stat[index]).map { pids.contains($0) ? "\($0)" : "outside" }
    }
    let places = [
      ("exit signal", 35), ("start of code", 23), ("end of code", 24), ("start of stack", 25), ("start of data", 42), ("end of data", 43),
      ("start of heap", 44), ("start of arguments", 45), ("end of arguments", 46), ("start of environment", 47), ("end of environment", 48),
    ]
    for (name, index) in places { facts["pid \(pid) \(name)"] = stat[index] }
  }

  /// Mappings with their flags; neighbours that differ in nothing count as one, as the kernel joins them when it likes.
  private mutating func observeMappings(_ pid: pid_t) {
    struct Mapping {
      var start, end, offset: UInt64
      var permissions, file: String
      var flags: Set<String> = []
    }
    var mappings: [Mapping] = []
    for line in (Files.text("/proc/\(pid)/smaps") ?? "").split(separator: "\n") {
      let words = line.split(separator: " ", maxSplits: 5, omittingEmptySubsequences: true)
      guard let first = words.first else { continue }
      if first == "VmFlags:" {
        let flags = line.dropFirst(8).split(separator: " ").map(String.init)
        mappings[mappings.count - 1].flags = Set(flags).subtracting(["sd", "ac"]) // bookkeeping, not behaviour
      } else if !first.hasSuffix(":"), words.count >= 5, let dash = first.firstIndex(of: "-"),
        let start = UInt64(first[..<dash], radix: 16), let end = UInt64(first[first.index(after: dash)...], radix: 16) {
        let file = words.count > 5 ? "\(words[5].trimmingSpaces()) \(words[3]) \(words[4])" : ""
        mappings.append(
          Mapping(start: start, end: end, offset: UInt64(words[2], radix: 16) ?? 0, permissions: String(words[1]), file: file))
      }
    }
    var joined: [Mapping] = []
    for mapping in mappings {
      if var last = joined.last, last.end == mapping.start, last.permissions == mapping.permissions, last.file == mapping.file,
        last.flags == mapping.flags, mapping.file.isEmpty || last.offset + (last.end - last.start) == mapping.offset
          || mapping.file.hasPrefix("[") {
        last.end = mapping.end
        joined[joined.count - 1] = last
      } else {
        joined.append(mapping)
      }
    }
    for mapping in joined {
      let range = String(mapping.start, radix: 16) + "-" + String(mapping.end, radix: 16)
      let offset = mapping.file.isEmpty || mapping.file.hasPrefix("[") ? "" : " at \(mapping.offset)"
      facts["pid \(pid) mapping \(range)"] =
        "\(mapping.permissions) \(mapping.file)\(offset) \(mapping.flags.sorted().joined(separator: ","))"
    }
  }

  private mutating func observeDescriptors(_ pid: pid_t) {
    for number in Files.names(in: "/proc/\(pid)/fd").compactMap({ Int($0) }).sorted() {
      let at = "pid \(pid) fd \(number)"
      guard let target = Files.link("/proc/\(pid)/fd/\(number)") else { continue }
      var name = target
      if let bracket = target.firstIndex(of: "["), target.hasSuffix("]"), target[..<bracket].hasSuffix(":"), !target.hasPrefix("/"),
        target[target.index(after: bracket)...].dropLast().allSatisfy(\.isNumber) {
        if objects[target] == nil { objects[target] = "\(target[..<bracket])first seen as \(at)" }
        name = objects[target] ?? target
      }
      facts[at] = name
      for line in (Files.text("/proc/\(pid)/fdinfo/\(number)") ?? "").split(separator: "\n") {
        let words = line.split(whereSeparator: \.isWhitespace).map(String.init)
        guard let label = words.first else { continue }
        switch label {
        case "flags:": facts["\(at) flags"] = words.dropFirst().joined(separator: " ")
        // A report is written to all the time; where it is appended to, its offset says nothing.
        case "pos:" where !name.hasSuffix("/report"): facts["\(at) offset"] = words.dropFirst().joined(separator: " ")
        case "tfd:" where words.count > 5: facts["\(at) watches \(words[1])"] = "\(words[3]) \(words[5])"
        case "eventfd-count:": facts["\(at) count"] = words.dropFirst().joined(separator: " ")
        default: break
        }
      }
    }
  }

  private static func readable(_ bytes: [UInt8]) -> String {
    let text = bytes.map { (32..<127).contains($0) ? String(UnicodeScalar($0)) : "\\" + String($0, radix: 16) }.joined()
    return text
  }
}

extension StringProtocol {
  func trimmingSpaces() -> String {
    var text = Substring(self)
    while text.first?.isWhitespace == true { text.removeFirst() }
    while text.last?.isWhitespace == true { text.removeLast() }
    return String(text)
  }
}

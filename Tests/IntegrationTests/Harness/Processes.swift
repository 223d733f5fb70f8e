import Glibc

/// Looking at processes from outside, through /proc.
enum Processes {
  static func exists(_ pid: pid_t) -> Bool { Files.exists("/proc/\(pid)") }

  /// The fields of /proc/PID/stat after the name: [0] is the state.
  static func stat(_ path: String) -> [String] {
    guard let text = Files.text(path), let end = text.lastIndex(of: ")") else { return [] }
    return text[text.index(after: end)...].split(whereSeparator: \.isWhitespace).map(String.init)
  }

  static func state(_ pid: pid_t) -> String { stat("/proc/\(pid)/stat").first ?? "" }
  static func parent(_ pid: pid_t) -> pid_t { stat("/proc/\(pid)/stat").dropFirst().first.flatMap { pid_t($0) } ?? 0 }

  static func threads(_ pid: pid_t) -> [pid_t] { Files.names(in: "/proc/\(pid)/task").compactMap { pid_t($0) }.sorted() }

  static func children(_ pid: pid_t) -> [pid_t] {
    threads(pid).flatMap { thread in
      (Files.text("/proc/\(pid)/task/\(thread)/children") ?? "").split(separator: " ").compactMap { pid_t($0) }
    }
  }

  /// A process and everything below it, parents first.
  static func tree(_ root: pid_t) -> [pid_t] {
    guard exists(root) else { return [] }
    var found = [root]
    var next = 0
    while next < found.count {
      for child in children(found[next]) where !found.contains(child) { found.append(child) }
      next += 1
    }
    return found
  }

  static func status(_ path: String) -> [String: String] {
    var fields: [String: String] = [:]
    for line in (Files.text(path) ?? "").split(separator: "\n") {
      guard let colon = line.firstIndex(of: ":") else { continue }
      fields[String(line[..<colon])] = line[line.index(after: colon)...].split(whereSeparator: \.isWhitespace).joined(separator: " ")
    }
    return fields
  }

  /// The number of the system call in which a thread waits; nil while it runs.
  static func systemCall(_ pid: pid_t, _ thread: pid_t) -> Int? {
    Files.text("/proc/\(pid)/task/\(thread)/syscall")?.split(separator: " ").first.flatMap { Int($0) }
  }

  /// Processes that carry this text in their environment.
  static func carrying(_ entry: String) -> [pid_t] {
    let wanted = Array(entry.utf8)
    return Files.names(in: "/proc").compactMap { pid_t($0) }.filter { pid in
      guard let environment = Files.bytes("/proc/\(pid)/environ") else { return false }
      return environment.split(separator: 0).contains { Array($0) == wanted }
    }
  }

  /// What is wrong with these processes for someone who was not to be disturbed: stopped, traced, gone.
  static func disturbances(_ pids: [pid_t], stopped: Set<pid_t> = [], zombies: Set<pid_t> = []) -> [String] {
    var found: [String] = []
    for pid in pids {
      guard exists(pid) else {
        found.append("process \(pid) is gone")
        continue
      }
      for thread in threads(pid) {
        let fields = status("/proc/\(pid)/task/\(thread)/status")
        guard let state = fields["State"]?.first else { continue } // this thread has just ended
        if let tracer = fields["TracerPid"], tracer != "0" { found.append("thread \(thread) of \(pid) is traced by \(tracer)") }
        switch state {
        case "t": found.append("thread \(thread) of \(pid) is in a tracing stop")
        case "T" where !stopped.contains(pid): found.append("thread \(thread) of \(pid) is stopped")
        case "Z" where thread == pid && threads(pid).count > 1: break // a leader that has ended before its threads
        case "Z" where !zombies.contains(pid), "X": found.append("thread \(thread) of \(pid) is dead (\(state))")
        case _ where state != "T" && stopped.contains(pid): found.append("thread \(thread) of \(pid) is no longer stopped (\(state))")
        default: break
        }
      }
    }
    return found
  }
}

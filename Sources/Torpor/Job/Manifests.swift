import CLinux
import Images
import Linux

/// What goes into `torpor.json`, and what of it must hold on the machine that restores.
enum Manifests {
  static func make(_ job: Job, memoryBytes: UInt64) -> Manifest {
    .with {
      $0.version = ImageReader.version
      $0.torpor = torporVersion
      $0.created = now()
      $0.host = line("/proc/sys/kernel/hostname")
      $0.kernel = line("/proc/sys/kernel/osrelease")
      $0.architecture = architecture
      $0.cpuFeatures = cpuFeatures()
      $0.rootPid = UInt32(job.processes[0].pid)
      $0.program = job.processes[0].name
      $0.processes = UInt32(job.processes.count)
      $0.threads = UInt32(job.threadCount)
      $0.memoryBytes = memoryBytes
      $0.monotonicNs = Clock.nanoseconds(CLOCK_MONOTONIC)
      $0.boottimeNs = Clock.nanoseconds(CLOCK_BOOTTIME)
    }
  }

  /// - Throws: where this machine lacks something that the job may have seen on its own.
  static func check(_ manifest: Manifest, path: String) throws(Failure) {
    guard manifest.architecture == architecture else {
      throw Failure(
        .badImage, "Cannot restore \(path)", why: "it was made on \(manifest.architecture), and this machine is \(architecture)",
        advice: "restore it on a machine of that kind")
    }
    let missing = Set(manifest.cpuFeatures).subtracting(cpuFeatures()).sorted()
    guard missing.isEmpty else {
      throw Failure(
        .badImage, "Cannot restore \(path)",
        why: "it was made on a CPU with \(missing.joined(separator: ", ")), which this one has not",
        advice: "restore it on a machine with these features")
    }
  }

  /// The `flags` line of /proc/cpuinfo that programs can see and use.
  private static func cpuFeatures() -> [String] {
    guard let text = try? readWholeFile("/proc/cpuinfo") else { return [] }
    return text.withUnsafeBytes { bytes in
      var scanner = TextScanner(bytes)
      while !scanner.isAtEnd {
        if scanner.accept("flags\t\t:") {
          return String(decoding: scanner.restOfLine(), as: UTF8.self).split(separator: " ").map(String.init)
        }
        scanner.skipLine()
      }
      return []
    }
  }

  private static func now() -> String {
    var seconds = time(nil)
    var parts = tm()
    gmtime_r(&seconds, &parts)
    return stamp(parts, date: "-", between: "T", time: ":") + "Z"
  }

  /// A point in time in digits, with the given separators.
  static func stamp(_ parts: tm, date: String, between: String, time: String) -> String {
    func two(_ value: Int32) -> String { value < 10 ? "0\(value)" : "\(value)" }
    return "\(parts.tm_year + 1900)\(date)\(two(parts.tm_mon + 1))\(date)\(two(parts.tm_mday))\(between)"
      + "\(two(parts.tm_hour))\(time)\(two(parts.tm_min))\(time)\(two(parts.tm_sec))"
  }

  private static func line(_ path: String) -> String {
    guard let text = try? readWholeFile(path) else { return "" }
    return String(decoding: text.prefix { $0 != 0x0a }, as: UTF8.self)
  }

  #if arch(x86_64)
  private static let architecture = "x86_64"
  #endif
}

/// The version of this program.
public let torporVersion = "0.1.0"

/// Where an image goes that was not given a place.
enum OutputPath {
  /// Also where the working directory is another.
  static func absolute(_ path: String) -> String {
    path.hasPrefix("/") ? path : ((try? readLink("/proc/self/cwd")) ?? "") + "/" + path
  }

  static func choose(_ given: String?, for pid: ProcessID) throws(Failure) -> String {
    if let given, !given.isEmpty { return given }
    var name = "job"
    if let proc = try? ProcDirectory(pid), let statistics = try? TaskStatistics(of: proc) {
      name = String(statistics.command.map { $0.isLetter || $0.isNumber || "-_.".contains($0) ? $0 : "_" })
    }
    var seconds = time(nil)
    var parts = tm()
    localtime_r(&seconds, &parts)
    return "\(name)-\(pid)-" + Manifests.stamp(parts, date: "", between: "-", time: "")
  }
}

import CLinux
import Linux
import SystemPackage

/// Who holds a file that is none of the file system's: found by the links of its descriptors, such as `socket:[1234]`.
enum FileHolders {
  /// A holder of each file, `4242 (firefox)`; none where it cannot be found.
  static func find(_ links: Set<String>, except excluded: Set<ProcessID>) -> [String: String] {
    guard !links.isEmpty, let directory = try? Descriptor.open("/proc", O_RDONLY | O_DIRECTORY),
      let pids = try? numericEntries(of: directory)
    else { return [:] }
    var result: [String: String] = [:]
    for pid in pids where !excluded.contains(pid) && pid != getpid() {
      guard let proc = try? ProcDirectory(pid), let numbers = try? proc.numbers(in: "fd") else { continue }
      for number in numbers {
        guard let link = try? proc.link("fd/\(number)"), links.contains(link), result[link] == nil else { continue }
        result[link] = "\(pid) (\((try? TaskStatistics(of: proc))?.command ?? "?"))"
      }
    }
    return result
  }
}

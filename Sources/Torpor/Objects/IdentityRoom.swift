import CLinux
import Images
import Linux
import SystemPackage

/// Which kernel objects a process has to itself and which it shares: memory, descriptors, handlers, namespaces.
enum IdentityRoom {
  private static let namespaces = ["pid", "net", "ipc", "uts", "mnt", "user", "cgroup", "time"]

  /// The numbers of Torpor itself. A process in an image that repeats a namespace's number lives in the namespace of
  /// whoever restores it.
  static var own: TaskKobjIdsEntry { entry(own: 1) }

  private static func entry(own number: UInt32) -> TaskKobjIdsEntry {
    .with {
      ($0.vmID, $0.filesID, $0.fsID, $0.sighandID) = (number, number, number, number)
      ($0.pidNsID, $0.netNsID, $0.ipcNsID, $0.utsNsID) = (1, 2, 3, 4)
      ($0.mntNsID, $0.userNsID, $0.cgroupNsID, $0.timeNsID) = (5, 6, 7, 8)
    }
  }

  /// - Parameter index: the place of the process among the job's, from 0.
  static func save(_ process: JobProcess, index: Int, _ saving: Saving) -> TaskKobjIdsEntry {
    refuseForeignNamespaces(process, saving)
    refuseSharing(process, saving)
    return entry(own: UInt32(index + 2))
  }

  private static func refuseForeignNamespaces(_ process: JobProcess, _ saving: Saving) {
    var foreign: [String] = []
    for (name, ours) in zip(namespaces, saving.identities.namespaces) {
      guard let ours, let theirs = try? process.proc.link("ns/\(name)") else { continue }
      if theirs != ours { foreign.append(name) }
    }
    guard !foreign.isEmpty else { return }
    saving.refuse(
      process, "it is in another \(foreign.joined(separator: ", ")) namespace than torpor",
      advice: "run torpor inside of the container, or wait for a version that saves namespaces")
  }

  private static func refuseSharing(_ process: JobProcess, _ saving: Saving) {
    for (name, other) in saving.identities.note(process) {
      saving.refuse(
        process, "it shares its \(name) with \(other.label)",
        advice: "try again after it has called exec, or wait for a version that saves this")
    }
  }

  /// The namespaces of this process, in the order of `namespaces`; nil for those that the kernel does not have.
  fileprivate static func ownNamespaces() -> [String?] { namespaces.map { try? readLink("/proc/self/ns/\($0)") } }
}

/// What processes of a job can share with each other beyond files, found by kcmp(2), whose order of kernel objects keeps
/// each search short.
struct SavedIdentities {
  private static let kinds: [(kind: kcmp_type, name: String)] = [
    (KCMP_VM, "memory (CLONE_VM)"), (KCMP_FILES, "descriptor table (CLONE_FILES)"),
    (KCMP_FS, "working directory (CLONE_FS)"),
  ]

  let namespaces = IdentityRoom.ownNamespaces()
  /// For each kind the processes met so far, in the kernel's order of their objects.
  private var known: [[JobProcess]] = Array(repeating: [], count: kinds.count)

  /// - Returns: what `process` shares, and with which of those noted before.
  mutating func note(_ process: JobProcess) -> [(name: String, other: JobProcess)] {
    var shared: [(name: String, other: JobProcess)] = []
    for (index, (kind, name)) in Self.kinds.enumerated() {
      var range = 0..<known[index].count
      while !range.isEmpty {
        let middle = range.lowerBound + range.count / 2
        let other = known[index][middle]
        switch try? compareTasks(kind, process.witness, other.witness) {
        case .same:
          shared.append((name, other))
          range = middle..<middle
        case .before: range = range.lowerBound..<middle
        default: range = (middle + 1)..<range.upperBound
        }
      }
      known[index].insert(process, at: range.lowerBound)
    }
    return shared
  }
}

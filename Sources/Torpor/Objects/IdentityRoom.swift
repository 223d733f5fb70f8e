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
    for name in namespaces {
      guard let theirs = try? process.proc.link("ns/\(name)"), let ours = try? readLink("/proc/self/ns/\(name)") else {
        continue
      }
      if theirs != ours { foreign.append(name) }
    }
    guard !foreign.isEmpty else { return }
    saving.refuse(
      process, "it is in another \(foreign.joined(separator: ", ")) namespace than torpor",
      advice: "run torpor inside of the container, or wait for a version that saves namespaces")
  }

  /// kcmp(2) with the parent: what clone(2) can share, it shares between those two first.
  private static func refuseSharing(_ process: JobProcess, _ saving: Saving) {
    guard let parent = process.parent, !parent.isZombie else { return }
    let kinds: [(kcmp_type, String)] = [
      (KCMP_VM, "memory (CLONE_VM)"), (KCMP_FILES, "descriptor table (CLONE_FILES)"),
      (KCMP_FS, "working directory (CLONE_FS)"), (KCMP_SIGHAND, "signal handlers (CLONE_SIGHAND)"),
    ]
    for (kind, name) in kinds where (try? share(kind, process.witness, parent.witness)) == true {
      saving.refuse(
        process, "it shares its \(name) with its parent \(parent.label)",
        advice: "try again after it has called exec, or wait for a version that saves this")
    }
  }
}

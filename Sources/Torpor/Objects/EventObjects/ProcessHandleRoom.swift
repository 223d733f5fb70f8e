import CLinux
import Images
import Linux
import SystemPackage

/// pidfd_open(2): a descriptor that stands for a process, living or ended.
enum ProcessHandleRoom: FileRoom {
  static let type = FdTypes.pidfd

  /// PIDFD_THREAD of linux/pidfd.h: it stands for one thread.
  private static let isThread = O_EXCL

  static func recognises(_ facts: DescriptorFacts) -> Bool {
    facts.link == "anon_inode:[pidfd]" || facts.link.hasPrefix("pidfd:[")
  }

  static func save(_ facts: DescriptorFacts, id: UInt32, _ saving: Saving) throws(Failure) -> FileEntry? {
    guard let text = facts.info.detail("Pid"), let pid = ProcessID(text) else {
      throw Failure(
        "Cannot look at \(facts.label) of \(facts.process.label)", why: "the kernel does not tell which process it is")
    }
    guard pid <= 0 || saving.job.process(pid) != nil else {
      refuse(facts, pid, saving)
      return nil
    }
    let owner = try facts.owner()
    return .with {
      ($0.type, $0.id) = (type, id)
      $0.pidfd = .with {
        ($0.id, $0.ino, $0.nspid, $0.fown) = (id, facts.inode, pid > 0 ? pid : -1, owner)
        $0.flags = UInt32(bitPattern: facts.flags & ~O_ACCMODE)
      }
    }
  }

  private static func refuse(_ facts: DescriptorFacts, _ pid: ProcessID, _ saving: Saving) {
    if let process = saving.job.living.first(where: { $0.threads.contains { $0.tid == pid } }) {
      return saving.refuse(
        facts.process, "\(facts.label) is a pidfd of thread \(pid) of \(process.label)",
        advice: "close it before the checkpoint, or wait for a version of torpor that saves it")
    }
    let name = (try? TaskStatistics(of: ProcDirectory(pid)))?.command ?? "?"
    saving.refuse(
      facts.process, "\(facts.label) is a pidfd of \(pid) (\(name)), which is not part of the job",
      advice: "close it before the checkpoint, or checkpoint the parent of both")
  }

  static func settings(_ entry: FileEntry) -> (flags: Int32, owner: FownEntry) {
    (Int32(bitPattern: entry.pidfd.flags), entry.pidfd.fown)
  }

  static func open(_ entry: FileEntry, _ files: RestoredFiles) throws(Failure) -> Descriptor {
    let isThread = Int32(bitPattern: entry.pidfd.flags) & isThread != 0
    let pid = entry.pidfd.nspid > 0 ? entry.pidfd.nspid : try files.ended.standIn(for: entry.pidfd.ino)
    return try attempt("\(files.what): a pidfd of process \(pid)") { () throws(Errno) in
      try openProcess(pid, isThread: isThread)
    }
  }
}

/// Children of ours that have ended, in the place of the ended processes that pidfds of the job stand for.
final class EndedProcesses {
  private var children: [UInt32: ProcessID] = [:]

  deinit { reap() }

  /// - Parameter number: by which pidfds of one process know each other.
  func standIn(for number: UInt32) throws(Failure) -> ProcessID {
    if let child = children[number] { return child }
    var arguments = clinux_clone_args()
    arguments.exit_signal = UInt64(SIGCHLD)
    let child = withUnsafeMutablePointer(to: &arguments) { arguments in
      let result = clinux_syscall(
        Int(SYS_clone3), Int(bitPattern: arguments), MemoryLayout<clinux_clone_args>.size, 0, 0, 0, 0)
      if result == 0 { _ = clinux_syscall(Int(SYS_exit_group), 0, 0, 0, 0, 0, 0) }
      return result
    }
    guard child > 0 else { throw Failure("Cannot start a process", Errno(rawValue: CInt(-child))) }
    children[number] = ProcessID(child)
    return ProcessID(child)
  }

  /// From here on they have ended for everybody.
  func reap() {
    for child in children.values { waitpid(child, nil, 0) }
    children = [:]
  }
}

import CLinux
import FoundationEssentials
import Images
import Linux
import SystemPackage

/// Everything about a frozen job but the content of its memory, ready to be written.
struct CollectedJob {
  private struct Process {
    let process: JobProcess
    let kin: Kin
    var ids = TaskKobjIdsEntry()
    var cores: [(tid: ProcessID, entry: CoreEntry)] = []
    var memory = MmEntry()
    var fileSystem = FsEntry()
    var extras = TaskExtras()
  }

  private var processes: [Process] = []

  /// Goes through all processes once. What cannot be saved is noted in `saving.refusals`.
  init(_ saving: Saving, _ interview: Interview) throws(Failure) {
    for (index, process) in saving.job.processes.enumerated() {
      processes.append(try Self.collect(process, index: index, saving, interview))
    }
    try saving.files.finishCollecting(saving)
    do throws(BirthPlan.Obstacle) { _ = try BirthPlan(processes.map(\.kin)) } catch {
      if let process = saving.job.process(error.pid) {
        saving.refuse(process, error.why, advice: "a later version of torpor will be able to")
      }
    }
  }

  private static func collect(
    _ process: JobProcess, index: Int, _ saving: Saving, _ interview: Interview
  ) throws(Failure) -> Process {
    let statistics = process.statistics
    var result = Process(
      process: process,
      kin: Kin(
        pid: process.pid, parent: process.parent?.pid ?? 0, group: statistics.processGroup,
        session: statistics.session))
    guard !process.isZombie else {
      result.cores = [(process.pid, TaskRoom.saveZombie(process))]
      return result
    }
    guard let answers = interview.processes[process.pid] else {
      throw Failure("Cannot checkpoint \(process.label)", why: "it did not answer")
    }
    refuseUnsupported(process, saving)
    result.ids = IdentityRoom.save(process, index: index, saving)
    let inside = InsideFacts(brk: answers.brk, dumpable: answers.dumpable, thpDisabled: answers.thpDisabled)
    result.memory = try MemoryRoom.collect(process, inside: inside, saving)
    result.ids.filesID = try saving.files.collectDescriptors(process, saving)
    result.fileSystem = try FileSystemRoom.collect(process, saving)
    for thread in process.threads where thread.isDead {
      // No registers: a reader that does not know of this refuses it, rather than give it some.
      let task = try TaskRoom.save(process, answers)
      result.cores.append((thread.tid, .with { ($0.mtype, $0.tc) = (.x8664, task) }))
    }
    for thread in process.threads where !thread.isDead {
      let threadAnswers = interview.threads[thread.tid] ?? ThreadAnswers()
      var core = try ThreadRoom.save(thread, of: process, threadAnswers)
      if thread.tid == process.pid { core.tc = try TaskRoom.save(process, answers) }
      result.cores.append((thread.tid, core))
    }
    result.extras = try ExtrasRoom.save(process, result.memory, answers, interview)
    return result
  }

  private static func refuseUnsupported(_ process: JobProcess, _ saving: Saving) {
    let later = "a later version of torpor will save this; for now run the job without it"
    if process.status.seccompMode != 0 {
      saving.refuse(process, "it runs under a seccomp filter", advice: later)
    }
    for thread in process.threads where !thread.isDead && !thread.control.registers.is64Bit {
      saving.refuse(
        process, "thread \(thread.tid) runs 32-bit code", advice: "use a 64-bit build of the program")
    }
  }

  // MARK: Write

  /// Writes all files of the image but the manifest.
  ///
  /// - Returns: how many bytes of memory it holds.
  func write(_ saving: Saving, _ image: ImageWriter, _ progress: Progress) throws(Failure) -> UInt64 {
    let spaces = processes.filter { !$0.process.isZombie }.map { ($0.process, $0.memory) }
    let memoryBytes = try MemoryRoom.save(spaces, saving, image, progress)
    FaultPoint.reach(.checkpointMemoryWritten)
    for entry in processes { try write(entry, saving, image) }
    try image.write(.processTree, all: processes.map(treeEntry))
    try saving.files.write(to: image)
    try image.write(.inventory, 0, inventory())
    return memoryBytes
  }

  private func write(_ entry: Process, _ saving: Saving, _ image: ImageWriter) throws(Failure) {
    for core in entry.cores { try image.write(.core, UInt64(core.tid), core.entry) }
    guard !entry.process.isZombie else { return }
    try image.write(.ids, UInt64(entry.kin.pid), entry.ids)
    if entry.extras != TaskExtras() { try image.write(.taskExtras, UInt64(entry.kin.pid), entry.extras) }
    try image.write(.fileSystem, UInt64(entry.kin.pid), entry.fileSystem)
  }

  private func treeEntry(_ entry: Process) -> PstreeEntry {
    .with {
      $0.pid = UInt32(entry.kin.pid)
      $0.ppid = UInt32(entry.kin.parent)
      $0.pgid = UInt32(entry.kin.group)
      $0.sid = UInt32(entry.kin.session)
      $0.threads = entry.cores.map { UInt32($0.tid) }
    }
  }

  private func inventory() -> InventoryEntry {
    .with {
      $0.imgVersion = 2
      $0.fdinfoPerID = true
      $0.nsPerID = true
      $0.rootIds = IdentityRoom.own
      $0.rootCgSet = 1
      $0.lsmtype = .noLsm
      $0.networkLockMethod = 2
      $0.pluginsEntry = PluginsEntry()
    }
  }
}

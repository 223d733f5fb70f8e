import Images
import Linux

/// Reads the process tree of an image, and checks that it is one.
enum ProcessReader {
  /// More than any machine allows. (PID_MAX_LIMIT, linux/threads.h)
  private static let highestPID: UInt32 = 4 << 20

  static func read(_ image: ImageReader) throws(Failure) -> [RestoredProcess] {
    let inventory = try image.read(.inventory, as: InventoryEntry.self)
    guard inventory.imgVersion <= 2, inventory.fdinfoPerID else {
      throw damaged(image, "inventory.img is of a kind that only old versions of CRIU wrote")
    }
    let entries = try image.readAll(.processTree, as: PstreeEntry.self)
    var processes: [RestoredProcess] = []
    var byPID: [UInt32: RestoredProcess] = [:]
    for entry in entries {
      try check(entry, isRoot: processes.isEmpty, byPID, image)
      let process = try readProcess(entry, image)
      process.parent = byPID[entry.ppid]
      process.parent?.children.append(process)
      processes.append(process)
      byPID[entry.pid] = process
    }
    guard let root = processes.first, !root.isZombie else { throw damaged(image, "it holds no process that lives") }
    try checkNamespaces(processes, inventory, image)
    return processes
  }

  private static func check(
    _ entry: PstreeEntry, isRoot: Bool, _ known: [UInt32: RestoredProcess], _ image: ImageReader
  ) throws(Failure) {
    guard entry.pid > 0, entry.pid <= highestPID, entry.threads.allSatisfy({ $0 > 0 && $0 <= highestPID }) else {
      throw damaged(image, "pstree.img has a process ID out of range")
    }
    guard isRoot == (entry.ppid == 0), isRoot || known[entry.ppid] != nil, known[entry.pid] == nil else {
      throw damaged(image, "pstree.img has process \(entry.pid) in a place where it cannot be")
    }
    guard isRoot || known[entry.ppid]?.isZombie == false else {
      throw damaged(image, "pstree.img has a child of the ended process \(entry.ppid)")
    }
  }

  private static func readProcess(_ entry: PstreeEntry, _ image: ImageReader) throws(Failure) -> RestoredProcess {
    let leader = try image.read(.core, UInt64(entry.pid), as: CoreEntry.self)
    guard leader.mtype == .x8664 else {
      throw Failure(
        .badImage, "Cannot restore \(image.path)", why: "process \(entry.pid) is not of the x86_64 architecture",
        advice: "restore it on a machine of its own kind")
    }
    guard leader.hasTc else { throw damaged(image, "core-\(entry.pid).img has no process in it") }
    if leader.tc.taskState == TaskRoom.State.dead || leader.tc.taskState == 6 {
      return RestoredProcess(entry: entry, cores: [leader], ids: TaskKobjIdsEntry(), memory: nil)
    }
    guard entry.threads.first == entry.pid else {
      throw damaged(image, "pstree.img does not name the first thread of process \(entry.pid) first")
    }
    var cores = [leader]
    for tid in entry.threads.dropFirst() { cores.append(try image.read(.core, UInt64(tid), as: CoreEntry.self)) }
    let leaderHasEnded = !leader.hasThreadInfo && cores.count > 1
    for core in cores.dropFirst(leaderHasEnded ? 1 : 0) { try checkSupported(core, entry.pid, image) }
    var memory = try image.read(.memoryMap, UInt64(entry.pid), as: MmEntry.self)
    var extras = TaskExtras()
    if image.has(.taskExtras, UInt64(entry.pid)) { extras = try image.read(.taskExtras, UInt64(entry.pid)) }
    if extras.auxv.count > memory.mmSavedAuxv.count { memory.mmSavedAuxv = extras.auxv }
    let process = RestoredProcess(
      entry: entry, cores: cores, ids: try image.read(.ids, UInt64(entry.pid), as: TaskKobjIdsEntry.self), memory: memory)
    try PosixTimerRoom.check(leader.tc, process, image.path)
    process.extras = extras
    for thread in extras.threads { process.threadExtras[ProcessID(bitPattern: thread.tid)] = thread }
    return process
  }

  private static func checkSupported(_ core: CoreEntry, _ pid: UInt32, _ image: ImageReader) throws(Failure) {
    guard core.hasThreadInfo, core.hasThreadCore, core.threadInfo.gpregs.mode == .native else {
      throw damaged(image, "a thread of process \(pid) has no registers of a 64-bit program")
    }
    var missing: String?
    if core.threadCore.hasSeccompMode, core.threadCore.seccompMode != .disabled { missing = "a seccomp filter" }
    guard let missing else { return }
    throw Failure(
      .cannotRestore, "Cannot restore \(image.path)", why: "process \(pid) has \(missing), which is not supported yet",
      advice: "use criu restore for this image")
  }

  /// Processes must live in the namespaces of whoever saved them.
  private static func checkNamespaces(
    _ processes: [RestoredProcess], _ inventory: InventoryEntry, _ image: ImageReader
  ) throws(Failure) {
    func namespaces(_ ids: TaskKobjIdsEntry) -> [UInt32] {
      [
        ids.pidNsID, ids.netNsID, ids.ipcNsID, ids.utsNsID, ids.mntNsID, ids.userNsID, ids.cgroupNsID, ids.timeNsID,
      ]
    }
    let outside = namespaces(inventory.rootIds)
    for process in processes where !process.isZombie && namespaces(process.ids) != outside {
      throw Failure(
        .cannotRestore, "Cannot restore \(image.path)",
        why: "process \(process.label) lived in namespaces of its own, which is not supported yet",
        advice: "use criu restore for this image")
    }
  }

  private static func damaged(_ image: ImageReader, _ why: String) -> Failure {
    Failure(
      .badImage, "Cannot restore \(image.path)", why: why, advice: "use another image, or a good copy of this one")
  }
}

import CLinux
import Images
import Linux
import Logging
import SystemPackage
import Tracing

/// What a caller may choose of a restore.
public struct RestoreOptions: Sendable {
  /// Return once the job runs, and leave it to whoever reaps orphans.
  public var detach = false
  public init() {}
}

/// From an image to a running job: read, plan, spawn, build, let go.
public enum Restore {
  /// Makes the job in the image directory `path` run again. It runs when this returns.
  ///
  /// Until then nothing of it has run, and nothing of it stays behind if this fails or dies.
  public static func run(
    _ path: String, _ options: RestoreOptions, log: Logger, progress: Progress
  ) throws(Failure) -> RestoredJob {
    let start = Clock.monotonic()
    let restoring = try prepare(path, log: log, progress: progress)
    FaultPoint.reach(.restoreChecked)
    let builder = JobBuilder(restoring, options)
    do throws(Failure) {
      try builder.bearProcesses()
      FaultPoint.reach(.restoreTreeBorn)
      try MemoryRoom.build(restoring)
      FaultPoint.reach(.restoreMemoryBuilt)
      try builder.giveFiles()
      FaultPoint.reach(.restoreFilesBuilt)
      try builder.bearThreads()
      FaultPoint.reach(.restoreThreadsBorn)
      try builder.giveTaskState()
      FaultPoint.reach(.restoreTasksBuilt)
      try builder.takeInterpreterAway()
      FaultPoint.reach(.restoreReady)
      try builder.letGo()
    } catch {
      builder.killAll()
      throw error
    }
    return RestoredJob(
      rootPID: restoring.processes[0].pid, processes: restoring.processes.count,
      seconds: Clock.monotonic() - start)
  }

  /// Reads and checks the whole image but the content of memory, and whether this machine can take the job.
  private static func prepare(_ path: String, log: Logger, progress: Progress) throws(Failure) -> Restoring {
    let image = try ImageReader(at: path)
    if let manifest = image.manifest { try Manifests.check(manifest, path: path) }
    try image.verify(where: { !$0.hasPrefix("pages-") })
    let processes = try ProcessReader.read(image)
    RestoredFiles.raiseLimit()
    let files = try RestoredFiles(image: image, processes: processes)
    try MemoryRoom.check(processes, image, files)
    try files.check()
    let plan = try makePlan(processes)
    try checkIDsAreFree(processes, plan, path)
    let base = try MemoryRoom.freeBase(for: processes.compactMap(\.memory))
    return Restoring(
      image: image, log: log, layout: BlankProcess.Layout(base: base), processes: processes, plan: plan, files: files,
      dealer: try DescriptorDealer(above: files.highestDescriptor() + 1), progress: progress)
  }

  private static func makePlan(_ processes: [RestoredProcess]) throws(Failure) -> BirthPlan {
    let family = processes.map { process in
      Kin(
        pid: process.pid, parent: ProcessID(bitPattern: process.entry.ppid),
        group: ProcessID(bitPattern: process.entry.pgid), session: ProcessID(bitPattern: process.entry.sid))
    }
    do throws(BirthPlan.Obstacle) { return try BirthPlan(family) } catch {
      throw Failure(
        .cannotRestore, "Cannot restore process \(error.pid)", why: error.why,
        advice: "a later version of torpor will be able to")
    }
  }

  private static func checkIDsAreFree(
    _ processes: [RestoredProcess], _ plan: BirthPlan, _ path: String
  ) throws(Failure) {
    let own = processes.flatMap { process in
      process.entry.threads.isEmpty || process.isZombie ? [process.entry.pid] : process.entry.threads
    }
    for id in own.map({ ProcessID(bitPattern: $0) }) + plan.borrowedIDs {
      guard kill(id, 0) == 0 || clinux_errno() != ESRCH else { continue }
      throw taken(id, path)
    }
  }

  static func taken(_ pid: ProcessID, _ path: String) -> Failure {
    var holder = "by another process"
    if let proc = try? ProcDirectory(pid), let statistics = try? TaskStatistics(of: proc) {
      let zombie = statistics.state == "Z" ? ", which has ended but not been waited for by \(statistics.parent)" : ""
      holder = "by \(pid) (\(statistics.command))\(zombie)"
    }
    return Failure(
      .cannotRestore, "Cannot restore \(path)", why: "the process ID \(pid) is taken \(holder)",
      advice: "end that process, or restore inside a new PID namespace: unshare --pid --fork --mount-proc torpor restore")
  }
}

/// A job that runs again.
public struct RestoredJob: Sendable {
  public var rootPID: ProcessID
  public var processes: Int
  public var seconds: Double

  /// Waits until the root of the job ends.
  ///
  /// - Returns: its wait status, see wait(2).
  public func wait() throws(Failure) -> Int32 {
    let root = rootPID
    return try attempt("Cannot wait for \(root)") { () throws(Errno) in
      var status: Int32 = 0
      while true {
        if waitpid(root, &status, 0) == root { return status }
        let error = Errno(rawValue: clinux_errno())
        guard error == .interrupted else { throw error }
      }
    }
  }
}

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
  /// Whether the job shall live in a PID namespace of its own.
  public var pidNamespace = PIDNamespaceChoice.auto
  public init() {}
}

/// When a restored job gets a PID namespace of its own.
public enum PIDNamespaceChoice: String, CaseIterable, Sendable {
  case never
  /// When somebody else has one of its process IDs.
  case auto
  case always
}

/// From an image to a running job: read, plan, spawn, build, let go.
public enum Restore {
  /// Makes the job in the image directory `path` run again. It runs when this returns.
  ///
  /// Until then nothing of it has run, and nothing of it stays behind if this fails or dies.
  public static func run(
    _ path: String, _ options: RestoreOptions, log: Logger, progress: Progress
  ) throws(Failure) -> RestoredJob {
    guard options.pidNamespace != .always else { return try runInNamespace(path, options, log: log, progress: progress) }
    do throws(Failure) { return try runHere(path, options, log: log, progress: progress) } catch {
      guard error.kind == .idTaken, options.pidNamespace == .auto else { throw error }
      log.debug("\(error.why)")
      return try runInNamespace(path, options, log: log, progress: progress)
    }
  }

  private static func runInNamespace(
    _ path: String, _ options: RestoreOptions, log: Logger, progress: Progress
  ) throws(Failure) -> RestoredJob {
    let processes = try ProcessReader.read(ImageReader(at: path))
    let ids = ids(processes, try makePlan(processes))
    var inside = options
    inside.detach = true
    return try PIDNamespace.restore(ids, root: processes[0].pid, path) { () throws(Failure) in
      try runHere(path, inside, log: log, progress: progress)
    }
  }

  private static func runHere(
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

  /// All process and thread IDs that must be free.
  private static func ids(_ processes: [RestoredProcess], _ plan: BirthPlan) -> [ProcessID] {
    let own = processes.flatMap { process in
      process.entry.threads.isEmpty || process.isZombie ? [process.entry.pid] : process.entry.threads
    }
    return own.map { ProcessID(bitPattern: $0) } + plan.borrowedIDs
  }

  private static func checkIDsAreFree(
    _ processes: [RestoredProcess], _ plan: BirthPlan, _ path: String
  ) throws(Failure) {
    for id in ids(processes, plan) {
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
      .idTaken, "Cannot restore \(path)", why: "the process ID \(pid) is taken \(holder)",
      advice: "end that process, or let the job have a PID namespace of its own (--pid-namespace auto)")
  }
}

/// A job that runs again.
public struct RestoredJob: Sendable {
  /// As it is seen from here.
  public var rootPID: ProcessID
  public var processes: Int
  public var seconds: Double
  /// Where it lives in a PID namespace of its own.
  public internal(set) var namespace: NamespacedJob?

  init(rootPID: ProcessID, processes: Int, seconds: Double) {
    self.rootPID = rootPID
    self.processes = processes
    self.seconds = seconds
  }
}

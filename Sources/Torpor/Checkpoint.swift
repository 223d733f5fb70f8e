import CLinux
import Images
import Linux
import Logging
import SystemPackage
import Tracing

/// What a caller may choose of a checkpoint.
public struct CheckpointOptions: Sendable {
  /// Where the image directory goes; nil for PROGRAM-PID-TIME in the current directory.
  public var output: String?
  /// End the job once its image is safe on disk, instead of letting it go on.
  public var stop = false
  public init() {}
}

/// What a checkpoint has done.
public struct CheckpointReport: Sendable {
  public var path: String
  public var rootPID: ProcessID
  public var program: String
  public var processes: Int
  public var threads: Int
  /// Size of the image's files in bytes.
  public var bytes: UInt64
  /// How much of that is memory.
  public var memoryBytes: UInt64
  public var seconds: Double
  /// How long the job stood still.
  public var frozenSeconds: Double
}

/// From a running job to an image: freeze, collect, say no if need be, write, commit, let go.
public enum Checkpoint {
  /// Saves the process `pid`, its threads and its descendants.
  ///
  /// The job goes on unharmed whatever happens, unless `options.stop` asks to end it, which is done last.
  public static func run(
    _ pid: ProcessID, _ options: CheckpointOptions, log: Logger, progress: Progress
  ) throws(Failure) -> CheckpointReport {
    let start = Clock.monotonic()
    let output = try OutputPath.choose(options.output, for: pid)
    if let inside = PIDNamespace.insidePID(of: pid) {
      var options = options
      options.output = OutputPath.absolute(output)
      return try runInNamespace(pid, inside, options, log: log, progress: progress)
    }
    let job = try Freezer.freeze(pid, log: log)
    FaultPoint.reach(.checkpointFrozen)
    let frozen = Clock.monotonic()
    do throws(Failure) {
      let saving = Saving(job: job, log: log)
      let collected = try collect(saving)
      try saving.throwRefusals()
      FaultPoint.reach(.checkpointCollected)
      let image = try ImageWriter(at: output)
      saving.image = image
      let memoryBytes = try collected.write(saving, image, progress)
      FaultPoint.reach(.checkpointImageWritten)
      let bytes = try image.commit(Manifests.make(job, memoryBytes: memoryBytes))
      FaultPoint.reach(.checkpointCommitted)
      let report = CheckpointReport(
        path: image.path, rootPID: pid, program: job.processes[0].name, processes: job.processes.count,
        threads: job.threadCount, bytes: bytes, memoryBytes: memoryBytes, seconds: Clock.monotonic() - start,
        frozenSeconds: Clock.monotonic() - frozen)
      if options.stop { try end(job) } else { letGo(job) }
      return report
    } catch {
      letGo(job)
      throw error
    }
  }

  /// Every reason why a checkpoint would be refused; none if it would succeed. The job goes on.
  public static func obstacles(_ pid: ProcessID, log: Logger) throws(Failure) -> [Failure] {
    if let inside = PIDNamespace.insidePID(of: pid) { return try obstaclesInNamespace(pid, inside, log: log) }
    let job = try Freezer.freeze(pid, log: log)
    defer { letGo(job) }
    let saving = Saving(job: job, log: log)
    _ = try collect(saving)
    return saving.refusals
  }

  /// From inside of the job's own PID namespace, where it has the IDs that belong into the image.
  private static func runInNamespace(
    _ pid: ProcessID, _ inside: ProcessID, _ options: CheckpointOptions, log: Logger, progress: Progress
  ) throws(Failure) -> CheckpointReport {
    let fields = try PIDNamespace.enter(pid, "Cannot checkpoint \(pid)") { () throws(Failure) in
      let report = try run(inside, options, log: log, progress: progress)
      return [report.path, report.program] + [report.processes, report.threads].map(String.init)
        + [report.bytes, report.memoryBytes].map(String.init) + [report.seconds, report.frozenSeconds].map(\.description)
    }
    guard fields.count == 8 else { throw Failure("Cannot checkpoint \(pid)", why: "its report is lost") }
    return CheckpointReport(
      path: fields[0], rootPID: pid, program: fields[1], processes: Int(fields[2]) ?? 0, threads: Int(fields[3]) ?? 0,
      bytes: UInt64(fields[4]) ?? 0, memoryBytes: UInt64(fields[5]) ?? 0, seconds: Double(fields[6]) ?? 0,
      frozenSeconds: Double(fields[7]) ?? 0)
  }

  private static func obstaclesInNamespace(
    _ pid: ProcessID, _ inside: ProcessID, log: Logger
  ) throws(Failure) -> [Failure] {
    let fields = try PIDNamespace.enter(pid, "Cannot check \(pid)") { () throws(Failure) in
      try obstacles(inside, log: log).flatMap { [String($0.kind.rawValue), $0.what, $0.why, $0.advice] }
    }
    return stride(from: 0, to: fields.count - 3, by: 4).map { index in
      Failure(
        Int32(fields[index]).flatMap(Failure.Kind.init(rawValue:)) ?? .other, fields[index + 1], why: fields[index + 2],
        advice: fields[index + 3])
    }
  }

  /// Looks at everything once, while the job stands still.
  private static func collect(_ saving: Saving) throws(Failure) -> CollectedJob {
    let job = saving.job
    let reading = SecondReading(of: job.living)
    let interview = try Interview.hold(after: reading)
    saving.log.debug("asked \(job.threadCount) threads about themselves")
    try reading.waitForAll()
    return try CollectedJob(saving, interview)
  }

  /// Children first, and those that job control has stopped before all others: no parent finds a child that is held.
  private static func letGo(_ job: Job) {
    try? job.cage?.putBack()
    let order = Array(job.processes.reversed())
    for process in order.filter(\.isStopped) + order.filter({ !$0.isStopped }) {
      for thread in process.threads { try? thread.control.detach() }
      if process.isStopped { JobControl.awaitStop(of: process.pid) }
    }
  }

  /// Ends all processes together: the guardian does it, so that Torpor's own death cannot leave half of them.
  private static func end(_ job: Job) throws(Failure) {
    let living = job.living
    let guardian = try Guardian(watching: living.map(\.pid), onDeath: .nothing)
    try guardian.killAll()
    for process in living {
      for thread in process.threads { thread.control.forget() }
      // Its own threads report their end to us, their tracer, before the parent of the process can see it.
      for thread in process.threads where thread.tid != process.pid { waitpid(thread.tid, nil, __WALL) }
      waitpid(process.pid, nil, __WALL)
    }
  }
}

extension Saving {
  /// One error for everything that stands in the way.
  func throwRefusals() throws(Failure) {
    guard let first = refusals.first else { return }
    guard refusals.count > 1 else { throw first }
    var all = first
    all.why += " (and \(refusals.count - 1) more: `torpor check \(job.processes[0].pid)` lists them all)"
    throw all
  }
}

import ArgumentParser
import Linux
import Torpor

struct CheckpointCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "checkpoint",
    abstract: "Save a running job to an image.",
    discussion: """
      Saves the process PID, its threads and all its descendants. The job goes on running, unless --stop is given. The
      image directory appears under its name only when it is complete and on disk; its path is printed.
      """)

  @Argument(help: "The process ID of the job's root.")
  var pid: Int32

  @Option(name: .shortAndLong, help: "The image directory to make. (default: PROGRAM-PID-TIME here)")
  var output: String?

  @Flag(name: .long, help: "End the job once its image is safe on disk.")
  var stop = false

  @OptionGroup var common: CommonOptions

  func run() throws {
    let bar = ProgressBar(enabled: !common.json)
    let report = try Console.reporting { () throws(Failure) in
      defer { bar.finish() }
      var options = CheckpointOptions()
      options.output = output
      options.stop = stop
      return try Checkpoint.run(pid, options, log: common.makeLog(), progress: bar.progress)
    }
    if common.json {
      try Console.print(json: Printed(report, stopped: stop))
    } else {
      let stoodStill = stop ? "" : ", of which it stood still for \(Console.duration(report.frozenSeconds))"
      Console.error(
        "\(stop ? "Saved and ended" : "Saved") \(report.program.printable) (\(pid)): "
          + "\(Console.count(report.processes, "process", "processes")), "
          + "\(Console.count(report.threads, "thread", "threads")), "
          + "\(Console.size(report.bytes)) in \(Console.duration(report.seconds))\(stoodStill)")
      Console.print(report.path)
    }
  }

  private struct Printed: Encodable {
    var image: String
    var pid: Int32
    var program: String
    var processes: Int
    var threads: Int
    var bytes: UInt64
    var memoryBytes: UInt64
    var seconds: Double
    var frozenSeconds: Double
    var stopped: Bool

    init(_ report: CheckpointReport, stopped: Bool) {
      (image, pid, program) = (report.path, report.rootPID, report.program)
      (processes, threads) = (report.processes, report.threads)
      (bytes, memoryBytes) = (report.bytes, report.memoryBytes)
      (seconds, frozenSeconds) = (report.seconds, report.frozenSeconds)
      self.stopped = stopped
    }
  }
}

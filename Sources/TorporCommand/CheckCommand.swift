import ArgumentParser
import Linux
import Torpor

struct CheckCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "check",
    abstract: "Tell what this kernel and user can do, or whether a job can be saved.",
    discussion: """
      With a PID: would a checkpoint succeed, and if not, every reason at once (exit code 3). The job goes on.
      """)

  @Argument(help: "The process ID of a job's root.")
  var pid: Int32?

  @Flag(name: .long, help: .hidden)
  var listFaultPoints = false

  @OptionGroup var common: CommonOptions

  func run() throws {
    if listFaultPoints {
      for name in FaultPoint.allNames { Console.print(name) }
    } else if let pid {
      try check(pid)
    } else {
      try checkSystem()
    }
  }

  private func check(_ pid: Int32) throws {
    let obstacles = try Console.reporting { () throws(Failure) in
      try Checkpoint.obstacles(pid, log: common.makeLog())
    }
    if common.json {
      try Console.print(json: PrintedJob(pid: pid, ok: obstacles.isEmpty, obstacles: obstacles.map(Obstacle.init)))
    } else if obstacles.isEmpty {
      Console.print("\(pid) can be checkpointed")
    } else {
      for obstacle in obstacles { Console.print("\(obstacle)".printable) }
    }
    if !obstacles.isEmpty { throw ExitCode(Failure.Kind.refused.rawValue) }
  }

  private func checkSystem() throws {
    let features = Probes.all()
    let missing = features.contains { $0.isNeeded && !$0.works }
    if common.json {
      try Console.print(json: PrintedSystem(ok: !missing, features: features))
    } else {
      var table = Table(("", .left), ("FEATURE", .left), ("WHAT FOR, OR WHAT TO DO", .left))
      for feature in features {
        table.add(
          feature.works ? "ok" : feature.isNeeded ? "MISSING" : "absent", feature.name,
          feature.works ? feature.purpose : "\(feature.purpose): \(feature.remedy)")
      }
      for line in table.lines.dropFirst() { Console.print(line) }
    }
    if missing { throw ExitCode(Failure.Kind.noPermission.rawValue) }
  }

  private struct Obstacle: Encodable {
    var what: String
    var why: String
    var advice: String
    init(_ failure: Failure) { (what, why, advice) = (failure.what, failure.why, failure.advice) }
  }
  private struct PrintedJob: Encodable {
    var pid: Int32
    var ok: Bool
    var obstacles: [Obstacle]
  }
  private struct PrintedSystem: Encodable {
    var ok: Bool
    var features: [Probes.Feature]
  }
}

import ArgumentParser
import CLinux
import Linux
import Torpor

struct RestoreCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "restore",
    abstract: "Make a saved job run again.",
    discussion: """
      In the foreground it waits for the job, passes signals such as that of Ctrl-C on to it, and exits with the job's \
      exit status (128 + N for a job that signal N has ended). Ctrl-Z stops both, and fg continues both. With --detach it prints the process ID of the job's \
      root and exits.
      """)

  @Argument(help: "The image directory.", completion: .directory)
  var image: String

  @Flag(name: .shortAndLong, help: "Do not wait for the job.")
  var detach = false

  @Option(
    name: .long,
    help: "Give the job a PID namespace of its own: never, always, or auto, when somebody else has one of its process IDs.")
  var pidNamespace = PIDNamespaceChoice.auto

  @OptionGroup var common: CommonOptions

  func run() throws {
    let bar = ProgressBar(enabled: !common.json)
    let job = try Console.reporting { () throws(Failure) in
      defer { bar.finish() }
      var options = RestoreOptions()
      options.detach = detach
      options.pidNamespace = pidNamespace
      return try Restore.run(image, options, log: common.makeLog(), progress: bar.progress)
    }
    if common.json {
      try Console.print(
        json: Printed(
          pid: job.rootPID, insidePid: job.namespace?.rootPID ?? job.rootPID, processes: job.processes,
          seconds: Console.rounded(job.seconds)))
    } else if detach {
      Console.print("\(job.rootPID)")
    }
    if let namespace = job.namespace, !common.json {
      Console.error("torpor: the job runs in a PID namespace of its own: its process \(namespace.rootPID) is \(job.rootPID) here")
    }
    guard !detach else { return }
    let status = try Console.reporting { () throws(Failure) in try Foreground.wait(for: job) }
    let code =
      clinux_wifexited(status) != 0 ? clinux_wexitstatus(status) : 128 + clinux_wtermsig(status)
    throw ExitCode(code)
  }

  private struct Printed: Encodable {
    var pid: Int32
    var insidePid: Int32
    var processes: Int
    var seconds: Double
  }
}

extension PIDNamespaceChoice: ExpressibleByArgument {}

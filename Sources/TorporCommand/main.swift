import CLinux
import Linux
import Logging
import Torpor

LoggingSystem.bootstrap { StreamLogHandler.standardError(label: $0) }
var log = Logger(label: "torpor")
if getenv("V") != nil { log.logLevel = .debug }
let arguments = CommandLine.arguments
do throws(Failure) {
  if arguments[1] == "checkpoint" {
    var options = CheckpointOptions()
    options.stop = arguments.contains("--stop")
    if let index = arguments.firstIndex(of: "--output") { options.output = arguments[index + 1] }
    let report = try Checkpoint.run(ProcessID(arguments[2])!, options, log: log, progress: Progress())
    print(report)
  } else if arguments[1] == "check" {
    for one in try Checkpoint.obstacles(ProcessID(arguments[2])!, log: log) { print(one) }
  } else {
    var options = RestoreOptions()
    options.detach = arguments.contains("--detach")
    let job = try Restore.run(arguments[2], options, log: log, progress: Progress())
    print(job)
    if !options.detach { print(try job.wait()) }
  }
} catch {
  print("torpor: \(error)")
  exit(error.kind.rawValue)
}

import ArgumentParser
import CLinux
import Torpor

@main
struct TorporCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "torpor",
    abstract: "Saves a running job to an image, and makes it run again from the image.",
    discussion: """
      A job is a process with its threads and all its descendants. It needs no preparation and cannot tell that it was \
      saved: same process IDs, same memory, same open files.
      """,
    version: "torpor \(torporVersion)",
    subcommands: [CheckpointCommand.self, RestoreCommand.self, ShowCommand.self, CheckCommand.self])

  /// Goes straight to the subcommand where that can be: to look at all of them first takes longer than to save a small
  /// job's memory. Help and errors are left to the whole parser.
  static func main() {
    let arguments = Array(CommandLine.arguments.dropFirst())
    guard let type = configuration.subcommands.first(where: { $0.configuration.commandName == arguments.first }),
      var command = try? type.parse(Array(arguments.dropFirst()))
    else { return main(arguments) }
    do { try command.run() } catch { exit(withError: error) }
  }
}

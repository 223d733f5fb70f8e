import ArgumentParser
import CLinux
import Torpor

@main
struct TorporCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "torpor",
    abstract: "Saves a running job to an image, and makes it run again from the image.",
    discussion: """
      A job is a process with its threads and all its descendants. It needs no preparation and cannot tell that it was
      saved: same process IDs, same memory, same open files.
      """,
    version: "torpor \(torporVersion)",
    subcommands: [CheckpointCommand.self, RestoreCommand.self, ShowCommand.self, CheckCommand.self])
}

import ArgumentParser
import Linux
import Torpor

struct ShowCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "show",
    abstract: "Tell what is in an image.",
    discussion: "Prints the process tree with threads, memory and descriptors. Images that CRIU made are read as well.")

  @Argument(help: "The image directory.", completion: .directory)
  var image: String

  @Flag(name: .long, help: "Check every file of the image against its checksum.")
  var verify = false

  @OptionGroup var common: CommonOptions

  func run() throws {
    let summary = try Console.reporting { () throws(Failure) in try ImageSummary(of: image, verify: verify) }
    if common.json {
      try Console.print(json: summary)
      return
    }
    Console.print("Image       \(summary.path)  (\(Console.size(summary.bytes)))")
    if let made = summary.created { Console.print("Made        \(made) on \(summary.host ?? "?") by torpor \(summary.torpor ?? "?")") }
    if let kernel = summary.kernel { Console.print("Kernel      \(kernel), \(summary.architecture ?? "?")") }
    if summary.created == nil { Console.print("Made        by CRIU or another program (no checksums)") }
    if verify, summary.created != nil { Console.print("Checksums   all files are as they were written") }
    Console.print("")
    Console.print(row("PID", "PPID", "SESSION", "THREADS", "MEMORY", "FDS", "STATE", "PROGRAM"))
    for process in summary.processes {
      Console.print(
        row(
          "\(process.pid)", "\(process.parent)", "\(process.session)", "\(process.threads)",
          Console.size(process.memoryBytes), "\(process.descriptors)", process.state,
          String(repeating: "  ", count: process.depth) + process.program))
    }
  }

  private func row(_ columns: String...) -> String {
    let widths = [8, 8, 8, 8, 10, 5, 8]
    var line = ""
    for (index, column) in columns.enumerated() {
      guard index < widths.count else { return line + column }
      line += column + String(repeating: " ", count: max(1, widths[index] - column.count))
    }
    return line
  }
}

import ArgumentParser
import Linux
import Torpor

struct ShowCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "show",
    abstract: "Tell what is in an image.",
    discussion: """
      Prints when and where the image was made, and its tree of processes with threads, memory and descriptors. Images
      that CRIU made are read as well.
      """)

  @Argument(help: "The image directory.", completion: .directory)
  var image: String

  @Flag(name: .long, help: "Compare every file of the image with its checksum.")
  var verify = false

  @OptionGroup var common: CommonOptions

  func run() throws {
    let bar = ProgressBar(enabled: !common.json)
    let summary = try Console.reporting { () throws(Failure) in
      defer { bar.finish() }
      return try ImageSummary(of: image, verify: verify, progress: bar.progress)
    }
    if common.json { return try Console.print(json: summary) }
    printFacts(summary)
    Console.print("")
    printProcesses(summary.processes)
  }

  private func printFacts(_ summary: ImageSummary) {
    fact("Image", "\(summary.path), \(Console.size(summary.bytes)) in \(summary.files) files")
    if let created = summary.created {
      fact("Made", "\(created) on \(summary.host ?? "?") by torpor \(summary.torpor ?? "?")")
      fact("Machine", "Linux \(summary.kernel ?? "?"), \(summary.architecture ?? "?")")
    } else {
      fact("Made", "by CRIU or another program: it has no date and no checksums")
    }
    let processes = summary.processes
    let threads = processes.reduce(0) { $0 + $1.threads }
    let memory = processes.reduce(0) { $0 &+ $1.memoryBytes }
    fact(
      "Job",
      "\(processes.first?.program ?? "?"): \(Console.count(processes.count, "process", "processes")), "
        + "\(Console.count(threads, "thread", "threads")), \(Console.size(memory)) of private memory")
    if verify, summary.created != nil { fact("Checksums", "every file is as it was written") }
  }

  private func fact(_ name: String, _ text: String) {
    Console.print(name + String(repeating: " ", count: 11 - name.count) + text.printable)
  }

  private func printProcesses(_ processes: [ImageSummary.Process]) {
    var table = Table(
      ("PID", .right), ("PARENT", .right), ("GROUP", .right), ("SESSION", .right), ("STATE", .left),
      ("THREADS", .right), ("MAPPINGS", .right), ("MEMORY", .right), ("FILES", .right), ("PROGRAM", .left))
    for process in processes {
      // Deep trees are not drawn to the end of the line.
      let indentation = String(repeating: "  ", count: min(process.depth, 20))
      table.add(
        "\(process.pid)", "\(process.parent)", "\(process.processGroup)", "\(process.session)", process.state,
        "\(process.threads)", "\(process.mappings)", Console.size(process.memoryBytes), "\(process.descriptors)",
        indentation + process.program.printable)
    }
    for line in table.lines { Console.print(line) }
  }
}

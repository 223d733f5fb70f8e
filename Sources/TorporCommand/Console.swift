import ArgumentParser
import CLinux
import FoundationEssentials
import Linux
import Logging
import Torpor

/// Options that every command has.
struct CommonOptions: ParsableArguments {
  @Flag(name: .long, help: "Print one JSON object instead of text.")
  var json = false

  @Flag(name: .shortAndLong, help: "Log what is being done, on standard error.")
  var verbose = false

  func makeLog() -> Logger {
    let start = Clock.monotonic()
    var log = Logger(label: "torpor") { _ in ConsoleLog(start: start) }
    log.logLevel = verbose ? .debug : .warning
    return log
  }
}

/// Log lines on standard error, with the time since the start.
struct ConsoleLog: LogHandler {
  let start: Double
  var logLevel = Logger.Level.warning
  var metadata = Logger.Metadata()

  init(start: Double) { self.start = start }

  subscript(metadataKey key: String) -> Logger.Metadata.Value? {
    get { metadata[key] }
    set { metadata[key] = newValue }
  }

  func log(event: LogEvent) {
    let elapsed = Int((Clock.monotonic() - start) * 1e6)
    let milliseconds = "\(elapsed / 1000).\(elapsed % 1000 / 100)"
    let level = event.level >= .warning ? "\(event.level): " : ""
    Console.error("torpor: \(milliseconds) ms: \(level)\(event.message)")
  }
}

enum Console {
  /// Writes a line to standard output.
  static func print(_ text: String) { write(text + "\n", to: 1) }

  /// Writes a line to standard error.
  static func error(_ text: String) { write(text + "\n", to: 2) }

  static func write(_ text: String, to descriptor: Int32) {
    var text = text
    text.withUTF8 { bytes in
      var done = 0
      while done < bytes.count {
        let count = CLinux.write(descriptor, bytes.baseAddress.map { $0 + done }, bytes.count - done)
        if count <= 0 { return }
        done += count
      }
    }
  }

  static func print(json value: some Encodable) throws {
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
    print(String(decoding: try encoder.encode(value), as: UTF8.self))
  }

  /// Runs a command's work; a failure becomes a line on standard error and the command's exit code.
  static func reporting<Value>(_ work: () throws(Failure) -> Value) throws -> Value {
    do { return try work() } catch {
      Console.error("torpor: \(error)".printable)
      throw ExitCode(error.kind.rawValue)
    }
  }

  /// A number of things for people: `1 thread`, `3 threads`.
  static func count(_ number: Int, _ one: String, _ many: String) -> String { "\(number) \(number == 1 ? one : many)" }

  /// A number of bytes for people: `1.4 GiB`.
  static func size(_ bytes: UInt64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"]
    var value = Double(bytes)
    var unit = 0
    while value >= 1024, unit < units.count - 1 {
      value /= 1024
      unit += 1
    }
    if unit == 0 { return "\(bytes) B" }
    let tenths = Int((value * 10).rounded())
    return tenths >= 1000 ? "\(tenths / 10) \(units[unit])" : "\(tenths / 10).\(tenths % 10) \(units[unit])"
  }

  /// A duration for people: `42 ms`, `3.1 s`.
  static func duration(_ seconds: Double) -> String {
    if seconds < 1 { return "\(Int((seconds * 1000).rounded())) ms" }
    let tenths = Int((seconds * 10).rounded())
    return "\(tenths / 10).\(tenths % 10) s"
  }
}

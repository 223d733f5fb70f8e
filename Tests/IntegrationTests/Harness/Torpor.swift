import Foundation
import Glibc
import Testing

/// One run of the command under test.
struct TorporRun: CustomStringConvertible {
  let arguments: [String]
  let status: ExitStatus
  let output: String
  let errors: String
  let duration: Duration

  var succeeded: Bool { status == .code(0) }
  var lastLine: String { output.split(separator: "\n").last.map(String.init) ?? "" }
  /// What it said, wherever it said it.
  var message: String { errors.isEmpty ? output : errors }
  var description: String {
    "torpor \(arguments.joined(separator: " ")): \(status) after \(duration)\n\(output.suffix(1500))\(errors.suffix(3000))"
  }

  /// The JSON object it printed.
  func json() throws -> [String: Any] {
    guard let object = try? JSONSerialization.jsonObject(with: Data(output.utf8)) as? [String: Any] else {
      throw TestFailure("no JSON object came out of \(self)")
    }
    return object
  }
}

extension Workspace {
  @discardableResult
  func torpor(
    _ arguments: [String], environment: [String: String] = [:], limit: Duration = .seconds(60)
  ) async throws -> TorporRun {
    guard access(Host.torpor, X_OK) == 0 else {
      throw TestFailure("there is no \(Host.torpor): build it first (swift build), or say where it is in TORPOR_BINARY")
    }
    let start = ContinuousClock.now
    let (status, output, errors) = try await run(Host.torpor, arguments, environment: environment, limit: limit)
    return TorporRun(
      arguments: arguments, status: status, output: output, errors: errors, duration: ContinuousClock.now - start)
  }

  /// Starts torpor and kills it after a while (unless it was quicker); returns whether it was killed.
  func torpor(_ arguments: [String], killedAfter delay: Duration) async throws -> ExitStatus {
    let log = fresh("killed")
    let pid = try start(Launch(Host.torpor, arguments, folder: path, output: log, errors: log))
    let end = ContinuousClock.now + delay
    while ContinuousClock.now < end { try await Task.sleep(for: .microseconds(200)) }
    kill(pid, SIGKILL)
    return await Reaper.wait(for: pid, within: .seconds(10))
  }
}

/// The names of the fault points, asked once.
enum FaultPoints {
  static let all: [String] = {
    let log = "/tmp/torpor-fault-points-\(getpid()).log"
    defer { unlink(log) }
    guard let pid = try? Launch(Host.torpor, ["check", "--list-fault-points"], output: log).start(), waitBlocking(pid) == .code(0) else {
      return []
    }
    return (Files.text(log) ?? "").split(separator: "\n").map(String.init)
  }()

  static var checkpoint: [String] { all.filter { $0.hasPrefix("checkpoint.") } }
  static var restore: [String] { all.filter { $0.hasPrefix("restore.") } }
}

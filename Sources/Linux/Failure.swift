import SystemPackage

/// Why something could not be done, in words for the person at the terminal.
///
/// Every layer throws this one type. It says what was attempted on which object, what is wrong with it, and what
/// the reader can do about it.
public struct Failure: Error, Sendable, CustomStringConvertible {
  /// The class of a failure. The command turns it into its exit code.
  public enum Kind: Int32, Sendable {
    /// Anything without a class of its own: a system call that failed, a full disk.
    case other = 1
    /// What the caller asked for makes no sense: no such process, a path that exists already.
    case badRequest = 2
    /// The job holds something that cannot be checkpointed; the job goes on.
    case refused = 3
    /// The image is missing, damaged, or not for this machine.
    case badImage = 4
    /// Something that the image needs is missing or taken on this machine: a PID, a file, a terminal.
    case cannotRestore = 5
    /// The caller has no right to do this.
    case noPermission = 6
    /// Somebody else has a process ID of the job.
    case idTaken = 7
  }

  public var kind: Kind
  /// What cannot be done to whom: `Cannot checkpoint 4242 (firefox)`.
  public var what: String
  /// What is in the way: `descriptor 17 is a userfaultfd`.
  public var why: String
  /// What the reader can do about it; empty where there is nothing to say.
  public var advice: String

  public init(_ kind: Kind, _ what: String, why: String, advice: String = "") {
    self.kind = kind
    self.what = what
    self.why = why
    self.advice = advice
  }

  public init(_ what: String, why: String, advice: String = "") {
    self.init(.other, what, why: why, advice: advice)
  }

  public init(_ what: String, _ error: Errno, advice: String = "") {
    let noRight = error == .notPermitted || error == .permissionDenied
    self.init(noRight ? .noPermission : .other, what, why: error.words, advice: advice)
  }

  /// One line: `what: why; advice`.
  public var description: String {
    advice.isEmpty ? "\(what): \(why)" : "\(what): \(why); \(advice)"
  }
}

extension Errno {
  /// The system's own words for this error, with its first letter in lower case so that it fits after a colon.
  public var words: String {
    let text = description
    guard let first = text.first else { return "error \(rawValue)" }
    return first.lowercased() + text.dropFirst()
  }
}

/// Runs `body`, and turns a bare `Errno` into a `Failure` that says what was being done.
@inline(__always)
public func attempt<Value: ~Copyable>(
  _ what: @autoclosure () -> String, advice: @autoclosure () -> String = "",
  _ body: () throws(Errno) -> Value
) throws(Failure) -> Value {
  do { return try body() } catch { throw Failure(what(), error, advice: advice()) }
}

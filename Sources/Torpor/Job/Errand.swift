import CLinux
import Linux
import SystemPackage

/// A piece of Torpor's work that a child process does, in namespaces that this one cannot be in, and what comes back of it.
///
/// The children are made while Torpor has a single thread, so they may do what it may.
final class Errand {
  private let reading: Descriptor
  private let writing: Descriptor

  init() throws(Failure) {
    var ends: [Int32] = [-1, -1]
    guard pipe2(&ends, O_CLOEXEC) == 0 else { throw Failure("Cannot make a pipe", Errno(rawValue: clinux_errno())) }
    reading = Descriptor(owning: ends[0])
    writing = Descriptor(owning: ends[1])
  }

  /// In the child: the end to answer through.
  var answering: Int32 { writing.number }

  /// In the child: does the work, and sends home what it gives, or why it could not be done.
  ///
  /// - Returns: whether it was done.
  func perform(_ work: () throws(Failure) -> [String]) -> Bool {
    do throws(Failure) {
      send(["done"] + (try work()))
      return true
    } catch {
      send(["failed", String(error.kind.rawValue), error.what, error.why, error.advice])
      return false
    }
  }

  private func send(_ fields: [String]) {
    // A NUL cannot be in a path or a message.
    let text = fields.map { Array($0.utf8) + [0] }.joined()
    let bytes = withUnsafeBytes(of: UInt32(text.count)) { [UInt8]($0) } + text
    _ = try? bytes.withBytes { bytes throws(Errno) in try writing.write(bytes) }
  }

  /// At home: what the child has given.
  ///
  /// - Parameter child: the child, which has this end only as long as nobody else keeps `answering` open.
  func result(of what: String) throws(Failure) -> [String] {
    let fields = try? receive()
    guard let fields, let verdict = fields.first else {
      throw Failure(what, why: "the part of torpor that works inside of its namespaces was ended", advice: "try again")
    }
    guard verdict == "failed", fields.count == 5 else { return Array(fields.dropFirst()) }
    let kind = Int32(fields[1]).flatMap(Failure.Kind.init(rawValue:)) ?? .other
    throw Failure(kind, fields[2], why: fields[3], advice: fields[4])
  }

  private func receive() throws(Errno) -> [String] {
    var length: UInt32 = 0
    try withUnsafeMutableBytes(of: &length) { bytes throws(Errno) in try fill(bytes) }
    var text = [UInt8](repeating: 0, count: Int(min(length, 1 << 20)))
    try text.withMutableBytes { bytes throws(Errno) in try fill(bytes) }
    return text.split(separator: 0, omittingEmptySubsequences: false).dropLast().map { String(decoding: $0, as: UTF8.self) }
  }

  private func fill(_ bytes: UnsafeMutableRawBufferPointer) throws(Errno) {
    var done = 0
    while done < bytes.count {
      let count = try reading.read(into: UnsafeMutableRawBufferPointer(rebasing: bytes[done...]))
      guard count > 0 else { throw .brokenPipe }
      done += count
    }
  }

  /// At home: gives up the end that children answer through, so that their deaths are seen.
  func closeAnswering() { _ = clinux_syscall(Int(SYS_dup3), Int(reading.number), Int(writing.number), Int(O_CLOEXEC), 0, 0, 0) }

  /// At home: a number that the child sends later; nil if it ends without.
  func laterNumber() -> Int32? {
    var number: Int32 = 0
    do throws(Errno) {
      try withUnsafeMutableBytes(of: &number) { bytes throws(Errno) in try fill(bytes) }
      return number
    } catch { return nil }
  }
}

extension Errand {
  /// Ends this process, a child, without what a whole program does at its end.
  static func exit(_ code: Int32) -> Never {
    while true { _ = clinux_syscall(Int(SYS_exit_group), Int(code), 0, 0, 0, 0, 0) }
  }

  /// Dies with its parent.
  static func dieWithParent(_ yes: Bool = true) {
    _ = clinux_syscall(Int(SYS_prctl), 1 /* PR_SET_PDEATHSIG */, yes ? Int(SIGKILL) : 0, 0, 0, 0, 0)
  }
}

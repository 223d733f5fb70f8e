import CLinux
import SystemPackage

/// What /proc/PID/fdinfo/N tells of one descriptor. proc_pid_fdinfo(5)
public struct DescriptorInfo: Sendable {
  public var position: Int64 = 0
  /// The O_ bits of the open file description, without O_CLOEXEC.
  public var flags: Int32 = 0
  /// FD_CLOEXEC, the descriptor's own flag.
  public var closesOnExec = false
  public var mountID: Int32 = -1
  /// The lines of the file's kind, and `lock:` lines: what stands before the first colon, what follows.
  public var details: [(name: String, value: String)] = []

  public init(of process: borrowing ProcDirectory, _ number: Int32) throws(Errno) {
    let text = try process.read("fdinfo/\(number)")
    text.withUnsafeBytes { parse($0) }
  }

  public init(parsing text: UnsafeRawBufferPointer) { parse(text) }

  private mutating func parse(_ text: UnsafeRawBufferPointer) {
    var scanner = TextScanner(text)
    while !scanner.isAtEnd {
      if scanner.accept("pos:") {
        scanner.skipSpaces()
        position = scanner.decimal() ?? 0
      } else if scanner.accept("flags:") {
        scanner.skipSpaces()
        let value = Int32(truncatingIfNeeded: scanner.octal() ?? 0)
        flags = value & ~O_CLOEXEC
        closesOnExec = value & O_CLOEXEC != 0
      } else if scanner.accept("mnt_id:") {
        scanner.skipSpaces()
        mountID = Int32(truncatingIfNeeded: scanner.decimal() ?? -1)
      } else if !scanner.accept("ino:") {
        addDetail(scanner.restOfLine())
      }
      scanner.skipLine()
    }
  }

  private mutating func addDetail(_ line: UnsafeRawBufferPointer) {
    guard let colon = line.firstIndex(of: UInt8(ascii: ":")) else {
      if !line.isEmpty { details.append((String(decoding: line, as: UTF8.self), "")) }
      return
    }
    details.append(
      (String(decoding: line[..<colon], as: UTF8.self), trimmed(String(decoding: line[(colon + 1)...], as: UTF8.self))))
  }

  /// What follows `name:`; nil where there is no such line.
  public func detail(_ name: String) -> String? { details.first { $0.name == name }?.value }

  /// The number that follows `name:`.
  public func number(_ name: String, radix: Int = 10) -> UInt64? {
    detail(name).flatMap { UInt64($0, radix: radix) }
  }

  /// The two numbers of a line such as `it_value: (1, 500)`.
  public func pair(_ name: String) -> (UInt64, UInt64)? {
    guard let text = detail(name) else { return nil }
    let numbers = text.split { !$0.isNumber }.compactMap { UInt64($0) }
    return numbers.count == 2 ? (numbers[0], numbers[1]) : nil
  }
}

private func trimmed(_ text: String) -> String {
  var part = text[...]
  while let first = part.first, first == " " || first == "\t" { part.removeFirst() }
  while let last = part.last, last == " " || last == "\t" { part.removeLast() }
  return String(part)
}

import CLinux
import SystemPackage

/// What /proc/PID/status tells of one task. proc_pid_status(5)
public struct TaskStatus: Sendable {
  /// The task's name; the kernel writes a line feed in it as `\\n` and a backslash as `\\\\`.
  public var name = ""
  /// The letter of the state: R, S, D, T, t, Z, X, I.
  public var state: Character = "?"
  public var threadGroup: ProcessID = 0
  public var parent: ProcessID = 0
  public var tracer: ProcessID = 0
  /// Real, effective, saved, filesystem.
  public var uids: [UInt32] = []
  public var gids: [UInt32] = []
  public var groups: [UInt32] = []
  public var threads = 0
  public var umask: UInt32 = 0
  public var isKernelThread = false
  public var pendingOfThread: UInt64 = 0
  public var pendingOfProcess: UInt64 = 0
  public var blocked: UInt64 = 0
  public var ignored: UInt64 = 0
  public var caught: UInt64 = 0
  public var inheritableCapabilities: UInt64 = 0
  public var permittedCapabilities: UInt64 = 0
  public var effectiveCapabilities: UInt64 = 0
  public var boundingCapabilities: UInt64 = 0
  public var ambientCapabilities: UInt64 = 0
  public var noNewPrivileges = false
  /// 0 none, 1 strict, 2 filter.
  public var seccompMode: Int32 = 0
  /// The PIDs of this task in each PID namespace, from the reader's to its own.
  public var namespacePIDs: [ProcessID] = []

  /// - Parameter name: `status`, or `task/TID/status`.
  public init(of process: borrowing ProcDirectory, _ name: String = "status") throws(Errno) {
    let text = try process.read(name)
    text.withUnsafeBytes { parse($0) }
  }

  public init(parsing text: UnsafeRawBufferPointer) { parse(text) }

  /// Nothing known yet.
  public init() {}

  private mutating func parse(_ text: UnsafeRawBufferPointer) {
    var scanner = TextScanner(text)
    while !scanner.isAtEnd {
      parseLine(&scanner)
      scanner.skipLine()
    }
  }

  private static func unescaped(_ text: UnsafeRawBufferPointer) -> String {
    guard text.contains(UInt8(ascii: "\\")) else { return String(decoding: text, as: UTF8.self) }
    var bytes: [UInt8] = []
    var isEscape = false
    for byte in text {
      if isEscape {
        bytes.append(byte == UInt8(ascii: "n") ? 0x0a : byte)
        isEscape = false
      } else if byte == UInt8(ascii: "\\") {
        isEscape = true
      } else {
        bytes.append(byte)
      }
    }
    return String(decoding: bytes, as: UTF8.self)
  }

  private mutating func parseLine(_ scanner: inout TextScanner) {
    func list(_ scanner: inout TextScanner) -> [UInt32] {
      var values: [UInt32] = []
      scanner.skipSpaces()
      while let value = scanner.decimal() {
        values.append(UInt32(truncatingIfNeeded: value))
        scanner.skipSpaces()
      }
      return values
    }
    func number(_ scanner: inout TextScanner) -> Int64 {
      scanner.skipSpaces()
      return scanner.decimal() ?? 0
    }
    func mask(_ scanner: inout TextScanner) -> UInt64 {
      scanner.skipSpaces()
      return scanner.hexadecimal() ?? 0
    }
    if scanner.accept("Name:") {
      scanner.skipSpaces()
      name = Self.unescaped(scanner.restOfLine())
    } else if scanner.accept("State:") {
      scanner.skipSpaces()
      state = scanner.current.map { Character(UnicodeScalar($0)) } ?? "?"
    } else if scanner.accept("Tgid:") {
      threadGroup = ProcessID(truncatingIfNeeded: number(&scanner))
    } else if scanner.accept("PPid:") {
      parent = ProcessID(truncatingIfNeeded: number(&scanner))
    } else if scanner.accept("TracerPid:") {
      tracer = ProcessID(truncatingIfNeeded: number(&scanner))
    } else if scanner.accept("Uid:") {
      uids = list(&scanner)
    } else if scanner.accept("Gid:") {
      gids = list(&scanner)
    } else if scanner.accept("Groups:") {
      groups = list(&scanner)
    } else if scanner.accept("NSpid:") {
      namespacePIDs = list(&scanner).map { ProcessID(bitPattern: $0) }
    } else if scanner.accept("Threads:") {
      threads = Int(number(&scanner))
    } else if scanner.accept("Kthread:") {
      isKernelThread = number(&scanner) == 1
    } else if scanner.accept("Umask:") {
      scanner.skipSpaces()
      umask = UInt32(truncatingIfNeeded: scanner.octal() ?? 0)
    } else if scanner.accept("SigPnd:") {
      pendingOfThread = mask(&scanner)
    } else if scanner.accept("ShdPnd:") {
      pendingOfProcess = mask(&scanner)
    } else if scanner.accept("SigBlk:") {
      blocked = mask(&scanner)
    } else if scanner.accept("SigIgn:") {
      ignored = mask(&scanner)
    } else if scanner.accept("SigCgt:") {
      caught = mask(&scanner)
    } else if scanner.accept("CapInh:") {
      inheritableCapabilities = mask(&scanner)
    } else if scanner.accept("CapPrm:") {
      permittedCapabilities = mask(&scanner)
    } else if scanner.accept("CapEff:") {
      effectiveCapabilities = mask(&scanner)
    } else if scanner.accept("CapBnd:") {
      boundingCapabilities = mask(&scanner)
    } else if scanner.accept("CapAmb:") {
      ambientCapabilities = mask(&scanner)
    } else if scanner.accept("NoNewPrivs:") {
      noNewPrivileges = number(&scanner) == 1
    } else if scanner.accept("Seccomp:") {
      seccompMode = Int32(truncatingIfNeeded: number(&scanner))
    }
  }
}

/// What /proc/PID/stat tells of one task. proc_pid_stat(5)
public struct TaskStatistics: Sendable {
  public var command = ""
  public var state: Character = "?"
  public var parent: ProcessID = 0
  public var processGroup: ProcessID = 0
  public var session: ProcessID = 0
  /// Device number of the controlling terminal, 0 for none.
  public var terminal: Int32 = 0
  public var terminalGroup: ProcessID = 0
  public var flags: UInt32 = 0
  public var nice: Int32 = 0
  /// In clock ticks since boot.
  public var startTime: UInt64 = 0
  public var startCode: UInt64 = 0
  public var endCode: UInt64 = 0
  public var startStack: UInt64 = 0
  public var exitSignal: Int32 = 0
  public var startData: UInt64 = 0
  public var endData: UInt64 = 0
  public var startBreak: UInt64 = 0
  public var argumentsStart: UInt64 = 0
  public var argumentsEnd: UInt64 = 0
  public var environmentStart: UInt64 = 0
  public var environmentEnd: UInt64 = 0
  public var exitCode: Int32 = 0

  /// PF_FORKNOEXEC and its like are of linux/sched.h; this one marks kernel threads.
  public static let kernelThreadFlag: UInt32 = 0x0020_0000

  /// - Parameter name: `stat`, or `task/TID/stat`.
  public init(of process: borrowing ProcDirectory, _ name: String = "stat") throws(Errno) {
    let text = try process.read(name)
    text.withUnsafeBytes { parse($0) }
  }

  public init(parsing text: UnsafeRawBufferPointer) { parse(text) }

  private mutating func parse(_ text: UnsafeRawBufferPointer) {
    // The name is in brackets and may hold brackets and spaces itself: the last closing one ends it.
    guard let open = text.firstIndex(of: UInt8(ascii: "(")), let close = text.lastIndex(of: UInt8(ascii: ")")),
      open < close, close + 2 < text.count
    else { return }
    command = String(decoding: text[(open + 1)..<close], as: UTF8.self)
    state = Character(UnicodeScalar(text[close + 2]))
    var scanner = TextScanner(UnsafeRawBufferPointer(rebasing: text[(close + 3)...]))
    var fields: [Int64] = []
    fields.reserveCapacity(50)
    scanner.skipSpaces()
    while let value = scanner.decimal() {
      fields.append(value)
      scanner.skipSpaces()
    }
    // Field numbers as in proc_pid_stat(5); the first number here is field 4.
    func field(_ number: Int) -> Int64 { number - 4 < fields.count ? fields[number - 4] : 0 }
    func address(_ number: Int) -> UInt64 { UInt64(bitPattern: field(number)) }
    func int(_ number: Int) -> Int32 { Int32(truncatingIfNeeded: field(number)) }
    parent = int(4)
    processGroup = int(5)
    session = int(6)
    terminal = int(7)
    terminalGroup = int(8)
    flags = UInt32(truncatingIfNeeded: field(9))
    nice = int(19)
    startTime = address(22)
    startCode = address(26)
    endCode = address(27)
    startStack = address(28)
    exitSignal = int(38)
    startData = address(45)
    endData = address(46)
    startBreak = address(47)
    argumentsStart = address(48)
    argumentsEnd = address(49)
    environmentStart = address(50)
    environmentEnd = address(51)
    exitCode = int(52)
  }
}

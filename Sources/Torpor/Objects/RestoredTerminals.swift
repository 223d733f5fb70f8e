import CLinux
import Images
import Linux
import SystemPackage

/// The kernel's `struct termios`.
struct TerminalModes {
  static let get = UInt(TCGETS)
  static let getLocks: UInt = 0x5456  // TIOCGLCKTRMIOS

  private var words: (UInt32, UInt32, UInt32, UInt32) = (0, 0, 0, 0)
  private var line: UInt8 = 0
  /// The 19 control characters.
  private var characters: [UInt8] = []
  private static let characterCount = 19
  private static let size = 16 + 1 + characterCount

  init(of terminal: borrowing Descriptor, _ request: UInt) throws(Errno) {
    var bytes = [UInt8](repeating: 0, count: 64)
    try bytes.withMutableBytes { buffer throws(Errno) in
      _ = try systemCall(
        Int32(SYS_ioctl), Int(terminal.number), Int(bitPattern: request), Int(bitPattern: buffer.baseAddress))
    }
    words = bytes.withUnsafeBytes { $0.loadUnaligned(as: (UInt32, UInt32, UInt32, UInt32).self) }
    line = bytes[16]
    characters = Array(bytes[17..<Self.size])
  }

  init(_ entry: TermiosEntry) {
    words = (entry.cIflag, entry.cOflag, entry.cCflag, entry.cLflag)
    line = UInt8(truncatingIfNeeded: entry.cLine)
    characters = (0..<Self.characterCount).map { index in
      index / 4 < entry.cCc.count ? UInt8(truncatingIfNeeded: entry.cCc[index / 4] >> (8 * UInt32(index % 4))) : 0
    }
  }

  /// As CRIU has it: 19 words, the first of which hold the characters, four in each.
  var entry: TermiosEntry {
    .with {
      ($0.cIflag, $0.cOflag, $0.cCflag, $0.cLflag) = words
      $0.cLine = UInt32(line)
      ($0.cIspeed, $0.cOspeed) = (0, 0)
      $0.cCc = (0..<Self.characterCount).map { word in
        (0..<4).reduce(UInt32(0)) { value, byte in
          let index = word * 4 + byte
          return index < characters.count ? value | UInt32(characters[index]) << (8 * UInt32(byte)) : value
        }
      }
    }
  }

  func set(on terminal: Int32) throws(Errno) {
    var bytes = withUnsafeBytes(of: words) { [UInt8]($0) } + [line] + characters
    bytes += [UInt8](repeating: 0, count: 64 - bytes.count)
    try bytes.withBytes { buffer throws(Errno) in
      _ = try systemCall(Int32(SYS_ioctl), Int(terminal), Int(TCSETS), Int(bitPattern: buffer.baseAddress))
    }
  }
}

/// The terminal of a job that is being built: our own.
struct RestoredTerminals {
  private let infos: [UInt32: TtyInfoEntry]
  private var own: Int32 = -1

  init(_ image: ImageReader) throws(Failure) {
    let entries = try image.readAll(.ttyInfo, as: TtyInfoEntry.self)
    infos = Dictionary(entries.map { ($0.id, $0) }, uniquingKeysWith: { first, _ in first })
  }

  /// The path and a descriptor of our own terminal.
  private static func find() -> (path: String, number: Int32?)? {
    for number: Int32 in 0...2 where isatty(number) == 1 {
      if let path = try? readLink("/proc/self/fd/\(number)"), path.hasPrefix("/dev/") { return (path, number) }
      return ("/dev/tty", number)
    }
    guard (try? Descriptor.open("/dev/tty", O_RDWR | O_NOCTTY)) != nil else { return nil }
    return ("/dev/tty", nil)
  }

  func check(_ entry: TtyFileEntry, _ what: String) throws(Failure) {
    guard let info = infos[entry.ttyInfoID] else {
      throw Failure(.badImage, what, why: "tty-info.img does not describe terminal \(entry.ttyInfoID)")
    }
    guard info.type == .ctty || (info.type == .pty && info.id % 2 == 0) else {
      throw Failure(
        .cannotRestore, what, why: "the job has a terminal of the kind \(info.type) in itself",
        advice: "a later version of torpor will be able to restore it")
    }
    guard Self.find() != nil else { throw noTerminal(what) }
  }

  private func noTerminal(_ what: String) -> Failure {
    Failure(
      .cannotRestore, what, why: "the job is connected to a terminal, and torpor has none here",
      advice: "run torpor restore in a terminal (or with one made by `script -c`)")
  }

  mutating func open(_ entry: TtyFileEntry, _ what: String) throws(Failure) -> Descriptor {
    guard let (path, number) = Self.find() else { throw noTerminal(what) }
    let flags = Int32(bitPattern: entry.flags)
    let isControlling = infos[entry.ttyInfoID]?.type == .ctty
    do throws(Errno) {
      let descriptor = try Self.open(isControlling ? "/dev/tty" : path, number, flags)
      if own < 0 { own = try descriptor.duplicate().release() }
      return descriptor
    } catch { throw Failure("\(what): the terminal \(path)", error) }
  }

  /// A description of its own; where the device may not be opened (after su(1), for instance), the one we have.
  private static func open(_ path: String, _ number: Int32?, _ flags: Int32) throws(Errno) -> Descriptor {
    do { return try Descriptor.open(path, flags & (O_ACCMODE | O_NONBLOCK | O_APPEND) | O_NOCTTY) } catch {
      guard let number else { throw error }
      return Descriptor(owning: Int32(try systemCall(Int32(SYS_fcntl), Int(number), Int(F_DUPFD_CLOEXEC), 0)))
    }
  }

  /// Gives the terminal the modes that the job had set, and the job's foreground group.
  mutating func handOver() {
    guard own >= 0 else { return }
    defer {
      close(own)
      own = -1
    }
    // Out of the background these calls would stop us.
    var blocked = sigset_t()
    var before = sigset_t()
    sigemptyset(&blocked)
    sigaddset(&blocked, SIGTTOU)
    pthread_sigmask(SIG_BLOCK, &blocked, &before)
    defer { pthread_sigmask(SIG_SETMASK, &before, nil) }
    for info in infos.values.sorted(by: { $0.id < $1.id }) {
      if info.hasTermios, !info.termios.cCc.isEmpty { try? TerminalModes(info.termios).set(on: own) }
      // Only a group of the restored job, which is in our session, can be had.
      if info.pgrp != 0, tcgetpgrp(own) == getpgrp() { tcsetpgrp(own, pid_t(bitPattern: info.pgrp)) }
    }
  }
}

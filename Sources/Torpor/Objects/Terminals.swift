import CLinux
import Images
import Linux
import SystemPackage

/// The terminal that a job was started from. At restore it is the one that torpor itself is run in.
enum TerminalRoom: FileRoom {
  static let type = FdTypes.tty

  static func recognises(_ file: OpenFile) -> Bool { file.type == FileKind.characterDevice && isSlave(UInt64(file.status.st_rdev)) }

  /// Slaves of pseudo-terminals. (Documentation/admin-guide/devices.txt, major numbers 136 to 143)
  private static func isSlave(_ device: UInt64) -> Bool { (136...143).contains(clinux_major(device)) }

  static func save(_ file: OpenFile, id: UInt32, _ saving: Saving) throws(Failure) -> FileEntry? {
    let index = (clinux_major(UInt64(file.status.st_rdev)) - 136) << 8 | clinux_minor(UInt64(file.status.st_rdev))
    let what = "Cannot look at the terminal at descriptor \(file.number) of \(file.process.label)"
    let files = saving.files
    let regID = files.makeID()
    let owner = try attempt(what) { () throws(Errno) in try file.owner() }
    files.add(
      .with {
        ($0.type, $0.id) = (.reg, regID)
        $0.reg = .with {
          ($0.id, $0.flags, $0.pos) = (regID, UInt32(bitPattern: file.flags), 0)
          ($0.name, $0.fown, $0.mode) = (file.link, owner, file.status.st_mode)
        }
      })
    if files.terminals[index] == nil {
      files.terminals[index] = try attempt(what) { () throws(Errno) in try describe(file, index) }
    }
    let entry = TtyFileEntry.with {
      ($0.id, $0.ttyInfoID, $0.flags) = (id, index * 2, UInt32(bitPattern: file.flags))
      ($0.fown, $0.regfID) = (owner, regID)
    }
    return .with { ($0.type, $0.id, $0.tty) = (.tty, id, entry) }
  }

  private static func describe(_ file: OpenFile, _ index: UInt32) throws(Errno) -> TtyInfoEntry {
    try file.withDuplicate { terminal throws(Errno) in
      var settings = termios()
      guard tcgetattr(terminal.number, &settings) == 0 else { throw Errno(rawValue: clinux_errno()) }
      var size = winsize()
      try withUnsafeMutableBytes(of: &size) { bytes throws(Errno) in
        _ = try systemCall(
          Int32(SYS_ioctl), Int(terminal.number), Int(TIOCGWINSZ), Int(bitPattern: bytes.baseAddress))
      }
      let controls = file.process.statistics.terminal == Int32(truncatingIfNeeded: file.status.st_rdev)
      return .with {
        ($0.id, $0.type, $0.rdev) = (index * 2, .pty, UInt32(truncatingIfNeeded: file.status.st_rdev))
        ($0.locked, $0.exclusive, $0.packetMode) = (false, false, false)
        $0.sid = controls ? UInt32(file.process.statistics.session) : 0
        $0.pgrp = controls ? UInt32(bitPattern: file.process.statistics.terminalGroup) : 0
        $0.termios = entry(settings)
        $0.termiosLocked = entry(termios())
        $0.winsize = .with {
          ($0.wsRow, $0.wsCol) = (UInt32(size.ws_row), UInt32(size.ws_col))
          ($0.wsXpixel, $0.wsYpixel) = (UInt32(size.ws_xpixel), UInt32(size.ws_ypixel))
        }
        $0.pty = .with { $0.index = index }
        ($0.uid, $0.gid) = (file.status.st_uid, file.status.st_gid)
      }
    }
  }

  /// The image keeps the control characters as bytes packed into words.
  private static func entry(_ settings: termios) -> TermiosEntry {
    let characters = withUnsafeBytes(of: settings.c_cc) { [UInt8]($0.prefix(19)) } + [0]
    let packed = stride(from: 0, to: 20, by: 4).map { start in
      (0..<4).reduce(UInt32(0)) { $0 | UInt32(characters[start + $1]) << UInt32(8 * $1) }
    }
    return .with {
      ($0.cIflag, $0.cOflag) = (settings.c_iflag, settings.c_oflag)
      ($0.cCflag, $0.cLflag) = (settings.c_cflag, settings.c_lflag)
      ($0.cLine, $0.cIspeed, $0.cOspeed) = (UInt32(settings.c_line), 0, 0)
      $0.cCc = packed + [UInt32](repeating: 0, count: 14)
    }
  }

  // MARK: Restore

  static func check(_ entry: FileEntry, _ files: RestoredFiles) throws(Failure) {
    guard ownTerminal() == nil else { return }
    throw Failure(
      .cannotRestore, "Cannot restore \(files.imagePath)",
      why: "the job was on a terminal, and torpor has none to give it", advice: "run torpor restore in a terminal")
  }

  /// Which of our own descriptors is a terminal.
  private static func ownTerminal() -> Int32? { [0, 1, 2].first { isatty($0) == 1 } }

  static func open(_ entry: FileEntry, _ files: RestoredFiles) throws(Failure) -> Descriptor {
    try attempt("Cannot give the job this terminal") { () throws(Errno) in
      guard let own = ownTerminal() else { throw Errno(rawValue: ENOTTY) }
      let flags = Int32(bitPattern: entry.tty.flags) & (O_ACCMODE | O_NONBLOCK | O_APPEND | O_ASYNC)
      let file = try Descriptor.open("/proc/self/fd/\(own)", flags | O_NOCTTY)
      try file.setOwner(entry.tty.fown)
      return file
    }
  }
}

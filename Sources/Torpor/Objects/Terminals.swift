import CLinux
import Images
import Linux
import SystemPackage

/// A descriptor of the terminal that the job was started from. What is restored speaks with the terminal of whoever
/// restores it.
enum TerminalRoom: FileRoom {
  static let type = FdTypes.tty

  /// Numbers of the terminal drivers: pseudo-terminals' slaves, and /dev/tty.
  private static let slaves: ClosedRange<UInt32> = 136...143
  private static let other: Set<UInt32> = [4, 5, 128, 129, 130, 131, 132, 133, 134, 135, 204, 229]

  static func recognises(_ facts: DescriptorFacts) -> Bool {
    guard facts.fileType == FileKind.characterDevice, !facts.isPathOnly else { return false }
    let major = clinux_major(UInt64(facts.status.st_rdev))
    return slaves.contains(major) || other.contains(major)
  }

  static func save(_ facts: DescriptorFacts, id: UInt32, _ saving: Saving) throws(Failure) -> FileEntry? {
    guard let terminal = SavedTerminals.Kind(UInt64(facts.status.st_rdev)) else {
      let isMaster = facts.link.hasSuffix("ptmx")
      saving.refuse(
        facts.process,
        "\(facts.label) is \(isMaster ? "the master side of a pseudo-terminal" : "the terminal device \(facts.link)")",
        advice: isMaster
          ? "a later version of torpor will save terminals inside of the job" : "start the job in a pseudo-terminal, or without a terminal")
      return nil
    }
    let duplicate = try facts.duplicate()
    let owner = try facts.owner(duplicate)
    try saving.files.terminals.note(terminal, facts, duplicate)
    let fileID = saving.files.newID()
    saving.files.add(
      RegularFileRoom.entry(
        id: fileID, path: facts.link, status: facts.status, flags: facts.flags, owner: owner))
    return .with {
      $0.type = type
      $0.id = id
      $0.tty = .with {
        $0.id = id
        $0.ttyInfoID = terminal.id
        $0.flags = UInt32(bitPattern: facts.flags)
        $0.fown = owner
        $0.regfID = fileID
      }
    }
  }

  static func settings(_ entry: FileEntry) -> (flags: Int32, owner: FownEntry) {
    (Int32(bitPattern: entry.tty.flags), entry.tty.fown)
  }

  static func check(_ entry: FileEntry, _ files: RestoredFiles) throws(Failure) {
    guard files.isOpen(entry.id) else { return }
    try files.terminals.check(entry.tty, files.what)
  }

  static func open(_ entry: FileEntry, _ files: RestoredFiles) throws(Failure) -> Descriptor {
    try files.terminals.open(entry.tty, files.what)
  }
}

/// The terminals of a frozen job.
struct SavedTerminals {
  /// Which terminal a device number stands for.
  enum Kind: Equatable {
    /// The slave side of a pseudo-terminal.
    case slave(index: UInt32)
    /// /dev/tty: whatever terminal controls the process.
    case controlling

    init?(_ device: UInt64) {
      let (major, minor) = (clinux_major(device), clinux_minor(device))
      switch (major, minor) {
      case (136...143, _): self = .slave(index: (major - 136) << 8 | minor)
      case (5, 0): self = .controlling
      default: return nil
      }
    }

    /// Two numbers for each: the other one would be the master's.
    var id: UInt32 {
      switch self {
      case .slave(let index): index * 2
      case .controlling: 1006 * 2
      }
    }
  }

  private struct Terminal {
    let kind: Kind
    let facts: DescriptorFacts
    let entry: TtyInfoEntry
  }

  private var terminals: [UInt32: Terminal] = [:]

  mutating func note(_ kind: Kind, _ facts: DescriptorFacts, _ duplicate: borrowing Descriptor) throws(Failure) {
    guard terminals[kind.id] == nil else { return }
    terminals[kind.id] = Terminal(kind: kind, facts: facts, entry: try Self.entry(kind, facts, duplicate))
  }

  private static func entry(
    _ kind: Kind, _ facts: DescriptorFacts, _ duplicate: borrowing Descriptor
  ) throws(Failure) -> TtyInfoEntry {
    let statistics = facts.process.statistics
    let isControlling =
      kind == .controlling || UInt64(UInt32(bitPattern: statistics.terminal)) == UInt64(facts.status.st_rdev)
    var entry = TtyInfoEntry.with {
      $0.id = kind.id
      $0.type = kind == .controlling ? .ctty : .pty
      ($0.locked, $0.exclusive, $0.packetMode) = (false, false, false)
      $0.sid = isControlling ? UInt32(bitPattern: statistics.session) : 0
      $0.pgrp = isControlling ? UInt32(bitPattern: max(statistics.terminalGroup, 0)) : 0
      $0.rdev = UInt32(truncatingIfNeeded: facts.status.st_rdev)
      $0.dev = UInt32(truncatingIfNeeded: facts.status.st_dev)
      ($0.uid, $0.gid) = (facts.status.st_uid, facts.status.st_gid)
      if case .slave(let index) = kind { $0.pty = .with { $0.index = index } }
    }
    do throws(Errno) {
      var exclusive: Int32 = 0
      // TIOCGEXCL, _IOR('T', 0x40, int)
      try duplicate.control(0x8004_5440, &exclusive)
      entry.exclusive = exclusive != 0
      entry.termios = try TerminalModes(of: duplicate, TerminalModes.get).entry
      entry.termiosLocked = try TerminalModes(of: duplicate, TerminalModes.getLocks).entry
      var size: (UInt16, UInt16, UInt16, UInt16) = (0, 0, 0, 0)
      try duplicate.control(UInt(TIOCGWINSZ), &size)
      entry.winsize = .with {
        ($0.wsRow, $0.wsCol) = (UInt32(size.0), UInt32(size.1))
        ($0.wsXpixel, $0.wsYpixel) = (UInt32(size.2), UInt32(size.3))
      }
      return entry
    } catch .ioError {
      // Whoever had the other side has gone: there are no modes any more.
      return entry
    } catch { throw Failure("Cannot look at \(facts.label) of \(facts.process.label)", error) }
  }

  /// Refuses what one terminal at the restore cannot stand for.
  func finish(_ saving: Saving) {
    let slaves = terminals.values.filter { $0.kind != .controlling }.sorted { $0.entry.id < $1.entry.id }
    for terminal in slaves.dropFirst() {
      saving.refuse(
        terminal.facts.process,
        "\(terminal.facts.label) is the terminal \(terminal.facts.link), and other descriptors of the job are the terminal \(slaves[0].facts.link)",
        advice: "start the job with descriptors of one terminal only")
    }
    for terminal in terminals.values {
      guard let leader = saving.job.process(ProcessID(bitPattern: terminal.entry.sid)), !leader.isZombie else { continue }
      saving.refuse(
        terminal.facts.process,
        "\(terminal.facts.label) is the terminal \(terminal.facts.link), whose session is led by \(leader.label), a part of the job",
        advice: "checkpoint a program below that shell, or wait for a version that saves terminals together with their session")
    }
  }

  func write(to image: ImageWriter) throws(Failure) {
    let entries = terminals.values.map(\.entry).sorted { $0.id < $1.id }
    if !entries.isEmpty { try image.write(.ttyInfo, all: entries) }
  }
}

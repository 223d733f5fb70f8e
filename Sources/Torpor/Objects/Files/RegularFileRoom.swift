import CLinux
import Images
import Linux
import SystemPackage

/// Regular files, directories, and devices that are the same everywhere: whatever is opened by its name.
enum RegularFileRoom: FileRoom {
  static let type = FdTypes.reg

  static func recognises(_ facts: DescriptorFacts) -> Bool {
    switch facts.fileType {
    case FileKind.regular: isNamed(facts)
    case FileKind.directory: facts.link.hasPrefix("/")
    case 0o120000 /* S_IFLNK */, FileKind.socket, FileKind.blockDevice: facts.isPathOnly && facts.link.hasPrefix("/")
    case FileKind.characterDevice: facts.isPathOnly || isHarmlessDevice(facts.status)
    case FileKind.pipe: facts.isPathOnly && facts.link.hasPrefix("/")
    default: false
    }
  }

  /// memfd_create(2) and memfd_secret(2) make regular files too, whose names are none.
  private static func isNamed(_ facts: DescriptorFacts) -> Bool {
    facts.link.hasPrefix("/") && !facts.link.hasPrefix("/memfd:") && !facts.link.hasPrefix("/secretmem")
      && !facts.link.hasPrefix("/SYSV")
  }

  /// null, zero, full, random, urandom.
  static func isHarmlessDevice(_ status: stat) -> Bool {
    clinux_major(UInt64(status.st_rdev)) == 1 && [3, 5, 7, 8, 9].contains(clinux_minor(UInt64(status.st_rdev)))
  }

  // MARK: Save

  static func save(_ facts: DescriptorFacts, id: UInt32, _ saving: Saving) throws(Failure) -> FileEntry? {
    var path = facts.link
    if SavedGhosts.canKeep(facts.status, path), !facts.isPathOnly {
      path = saving.files.addGhost(id, path, facts.status, facts.process, link: "fd/\(facts.number)")
    } else if let problem = FileName.problem(path, facts.status) {
      saving.refuse(facts.process, "\(facts.label): \(problem)", advice: FileName.advice)
      return nil
    }
    return entry(
      id: id, path: path, status: facts.status, flags: facts.flags, position: facts.info.position,
      owner: try facts.owner())
  }

  static func entry(
    id: UInt32, path: String, status: stat, flags: Int32, position: Int64 = 0, owner: FownEntry = .none
  ) -> FileEntry {
    .with {
      $0.type = .reg
      $0.id = id
      $0.reg = .with {
        $0.id = id
        $0.flags = UInt32(bitPattern: flags)
        $0.pos = UInt64(bitPattern: position)
        $0.fown = owner
        $0.name = path
        $0.mode = status.st_mode
        // Whoever appends to a log does not mind that it has grown or was cut.
        let appends = flags & O_ACCMODE == O_WRONLY && flags & O_APPEND != 0
        guard status.kind == FileKind.regular, !appends else { return }
        $0.size = UInt64(status.st_size)
        if flags & O_ACCMODE == O_RDONLY, status.st_nlink > 0, status.st_mode & 0o111 != 0 || path.contains(".so") {
          $0.buildID = BuildID.read(path) ?? []
        }
      }
    }
  }

  // MARK: Check

  static func check(_ entry: FileEntry, _ files: RestoredFiles) throws(Failure) {
    let file = entry.reg
    guard file.name.hasPrefix("/"), !file.name.utf8.contains(0) else {
      throw files.damaged("\"\(file.name)\" is not a path")
    }
    if files.ghosts.has(entry.id) { return try files.ghosts.check(entry.id, file.name) }
    guard !isOfProcess(file.name) else { return }
    let status: stat
    do { status = try fileStatus(file.name, followingLink: false) } catch {
      let why = error == .noSuchFileOrDirectory ? "\(file.name) is missing" : "\(file.name): \(error.words)"
      throw Failure(.cannotRestore, files.what, why: why, advice: "put it back where it was")
    }
    if file.hasMode, file.mode & FileKind.mask != status.kind {
      throw Failure(
        .cannotRestore, files.what,
        why: "\(file.name) was a \(typeName(file.mode)) and is a \(typeName(status.st_mode)) now",
        advice: "put the right one back")
    }
    guard file.hasSize, status.kind == FileKind.regular else { return }
    try checkContent(file, status, isMapped: !files.isOpen(entry.id), files.what)
  }

  private static func checkContent(
    _ file: RegFileEntry, _ status: stat, isMapped: Bool, _ what: String
  ) throws(Failure) {
    let size = UInt64(status.st_size)
    let isReadOnly = Int32(bitPattern: file.flags) & O_ACCMODE == O_RDONLY
    // What is in memory of a mapped program fits no other build of it.
    if isMapped, isReadOnly {
      let isOther = size != file.size || (!file.buildID.isEmpty && BuildID.read(file.name) != file.buildID)
      guard isOther else { return }
      throw Failure(
        .cannotRestore, what, why: "\(file.name) is another build than the one that the job uses",
        advice: "install the version that was there at the checkpoint")
    }
    guard size < file.size else { return }
    throw Failure(
      .cannotRestore, what,
      why: "\(file.name) is shorter than it was: \(size) bytes instead of \(file.size)",
      advice: "put back the file as it was at the checkpoint")
  }

  /// Files of a process in /proc come into being with it.
  private static func isOfProcess(_ path: String) -> Bool {
    guard path.hasPrefix("/proc/") else { return false }
    return path.dropFirst("/proc/".count).first?.isNumber == true
  }

  // MARK: Open

  static func settings(_ entry: FileEntry) -> (flags: Int32, owner: FownEntry) {
    (Int32(bitPattern: entry.reg.flags), entry.reg.fown)
  }

  static func open(_ entry: FileEntry, _ files: RestoredFiles) throws(Failure) -> Descriptor {
    let file = entry.reg
    let descriptor = try open(file, flags: Int32(bitPattern: file.flags), files)
    let pathOnly = Int32(bitPattern: file.flags) & O_PATH != 0
    if file.pos != 0, !pathOnly {
      try attempt("\(files.what): \(file.name), offset \(file.pos)") { () throws(Errno) in
        try descriptor.seek(to: Int64(bitPattern: file.pos))
      }
    }
    return descriptor
  }

  /// Opens a file that has a name, or had one.
  static func open(_ file: RegFileEntry, flags: Int32, _ files: RestoredFiles) throws(Failure) -> Descriptor {
    if let ghost = try files.ghosts.open(file.id, file.name, flags: harmless(flags)) { return ghost }
    return try open(path: file.name, flags: flags, files)
  }

  /// Without what makes or cuts files, or takes a terminal.
  private static func harmless(_ flags: Int32) -> Int32 {
    let temporary = O_TMPFILE & ~O_DIRECTORY
    return flags & ~(O_CREAT | O_EXCL | O_TRUNC | O_ASYNC | temporary) | O_NOCTTY
  }

  /// Opens a file that exists. Nothing is ever made or cut, whatever `flags` say.
  static func open(path: String, flags: Int32, _ files: RestoredFiles) throws(Failure) -> Descriptor {
    do { return try Descriptor.open(path, harmless(flags)) } catch {
      throw Failure(.cannotRestore, files.what, why: "\(path) cannot be opened: \(error.words)", advice: advice(error))
    }
  }

  private static func advice(_ error: Errno) -> String {
    switch error {
    case .tooManyOpenFiles: "raise the limit of open files (ulimit -Hn)"
    case .permissionDenied, .notPermitted: "run torpor as the user who may open it, or as root"
    default: "put it back as it was at the checkpoint"
    }
  }
}

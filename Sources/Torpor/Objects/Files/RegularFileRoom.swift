import CLinux
import Images
import Linux
import SystemPackage

/// Files, directories and plain devices that are opened by name.
enum RegularFileRoom: FileRoom {
  static let type = FdTypes.reg

  /// null, zero, full, random, urandom, kmsg's neighbours: those that keep nothing for whoever has them open.
  /// (Documentation/admin-guide/devices.txt, major number 1)
  private static let plainDevices: Set<UInt32> = [3, 5, 7, 8, 9]

  // MARK: Save

  static func recognises(_ file: OpenFile) -> Bool {
    switch file.type {
    case FileKind.regular: return !file.link.hasPrefix("/memfd:") && file.link.hasPrefix("/")
    case FileKind.directory: return true
    case FileKind.characterDevice:
      let device = UInt64(file.status.st_rdev)
      return clinux_major(device) == 1 && plainDevices.contains(clinux_minor(device))
    default: return false
    }
  }

  static func save(_ file: OpenFile, id: UInt32, _ saving: Saving) throws(Failure) -> FileEntry? {
    guard let named = try? fileStatus(file.link), named.st_ino == file.status.st_ino, named.st_dev == file.status.st_dev
    else {
      refuseLost(file.link, place: "descriptor \(file.number)", file.process, saving)
      return nil
    }
    let owner = try attempt("Cannot look at descriptor \(file.number) of \(file.process.label)") { () throws(Errno) in
      try file.owner()
    }
    let reg = RegFileEntry.with {
      ($0.id, $0.flags, $0.pos) = (id, UInt32(bitPattern: file.flags), file.position)
      ($0.name, $0.fown, $0.mode) = (file.link, owner, file.status.st_mode)
      // A log that others append to may grow; any other file must be what it was.
      let appends = file.flags & O_APPEND != 0 && file.flags & O_ACCMODE == O_WRONLY
      if file.type == FileKind.regular, !appends { $0.size = UInt64(file.status.st_size) }
    }
    return .with { ($0.type, $0.id, $0.reg) = (.reg, id, reg) }
  }

  /// Refuses a file that its path no longer leads to.
  static func refuseLost(_ path: String, place: String, _ process: JobProcess, _ saving: Saving) {
    let deleted = path.hasSuffix(" (deleted)")
    let name = deleted ? String(path.dropLast(10)) : path
    saving.refuse(
      process, "\(place) is \(name), which has been \(deleted ? "deleted" : "replaced by another file")",
      advice: "a later version of torpor will save such files; for now put the file back, or restart the program")
  }

  // MARK: Restore

  static func check(_ entry: FileEntry, _ files: RestoredFiles) throws(Failure) {
    try check(entry.reg, files)
  }

  static func check(_ reg: RegFileEntry, _ files: RestoredFiles) throws(Failure) {
    let what = "Cannot restore \(files.imagePath)"
    guard reg.name.hasPrefix("/"), !reg.name.contains("\0") else {
      throw Failure(.badImage, what, why: "files.img is damaged: \"\(reg.name)\" is no path", advice: "use another image")
    }
    let status: stat
    do throws(Errno) { status = try fileStatus(reg.name) } catch {
      throw Failure(
        .cannotRestore, what, why: "the file \(reg.name) of the job cannot be found: \(error.words)",
        advice: "put it back where it was")
    }
    if reg.hasMode, reg.mode & FileKind.mask != status.kind {
      throw Failure(
        .cannotRestore, what, why: "\(reg.name) is now another kind of file than at the checkpoint",
        advice: "put the old one back")
    }
    guard reg.hasSize, status.kind == FileKind.regular, UInt64(status.st_size) != reg.size else { return }
    let isShorter = UInt64(status.st_size) < reg.size
    // What the job itself may have written since the checkpoint is written again, to the same places.
    let access = Int32(bitPattern: reg.flags) & O_ACCMODE
    guard isShorter || access == O_RDONLY else { return }
    let change = isShorter ? "shorter" : "longer"
    throw Failure(
      .cannotRestore, what,
      why: "\(reg.name) has changed since the checkpoint: it is \(change) (\(status.st_size) bytes, not \(reg.size))",
      advice: "put the file back as it was at the checkpoint; torpor overwrites nothing")
  }

  static func open(_ entry: FileEntry, _ files: RestoredFiles) throws(Failure) -> Descriptor {
    let reg = entry.reg
    // What only matters at the moment of opening is not repeated: nothing is created or cut.
    let flags = Int32(bitPattern: reg.flags) & ~(O_CREAT | O_EXCL | O_TRUNC | O_CLOEXEC) | O_NOCTTY
    let advice = "torpor needs the same access to it that the job had"
    return try attempt("Cannot open \(reg.name) for the job", advice: advice) { () throws(Errno) in
      let file = try Descriptor.open(reg.name, flags)
      if flags & O_PATH == 0 {
        if reg.pos != 0 { try systemCall(Int32(SYS_lseek), Int(file.number), Int(reg.pos), Int(SEEK_SET)) }
        try file.setOwner(reg.fown)
      }
      return file
    }
  }
}

import CLinux
import Images
import Linux
import SystemPackage

/// Files that a job uses without a descriptor: mapped ones, executables, directories. Each is in the image once.
struct NamedFiles {
  private struct Area: Hashable {
    let major: UInt32
    let minor: UInt32
    let inode: UInt64
    let name: String
    let access: Int32
  }

  private struct Name: Hashable {
    let device: UInt64
    let inode: UInt64
    let path: String
    let access: Int32
  }

  private var areas: [Area: UInt32] = [:]
  private var names: [Name: UInt32] = [:]

  mutating func mappedFile(
    _ process: JobProcess, _ area: MemoryArea, _ saving: Saving
  ) throws(Failure) -> UInt32 {
    let link = "map_files/\(String(area.range.start, radix: 16))-\(String(area.range.end, radix: 16))"
    // A private mapping never writes to its file.
    let access = area.isShared ? Self.access(of: link, process, area) : O_RDONLY
    let key = Area(
      major: area.deviceMajor, minor: area.deviceMinor, inode: area.inode, name: area.name, access: access)
    if let id = areas[key] { return id }
    let status = Self.status(of: area, link, process)
    let what = "the mapping at 0x\(String(area.range.start, radix: 16))"
    let id = try self.id(process, status, path: area.name, access: access, what: what, link: link, saving)
    areas[key] = id
    return id
  }

  mutating func link(_ process: JobProcess, _ name: String, _ saving: Saving) throws(Failure) -> UInt32 {
    let path: String
    let status: stat
    do throws(Errno) {
      path = try process.proc.link(name)
      status = try fileStatus(name, at: process.proc.directory.number)
    } catch { throw Failure("Cannot checkpoint \(process.label): its \(name)", error) }
    let what =
      switch name {
      case "exe": "its program"
      case "cwd": "its working directory"
      case "root": "its root directory"
      default: "its \(name)"
      }
    return try id(process, status, path: path, access: O_RDONLY, what: what, link: name, saving)
  }

  /// What the mapping's own link leads to; where that may not be followed, what its path leads to.
  private static func status(of area: MemoryArea, _ link: String, _ process: JobProcess) -> stat? {
    if let status = try? fileStatus(link, at: process.proc.directory.number) { return status }
    guard let status = try? fileStatus(area.name), UInt64(status.st_ino) == area.inode else { return nil }
    return status
  }

  /// Whether the mapped file was opened for writing: the mode of the mapping's link says so.
  private static func access(of link: String, _ process: JobProcess, _ area: MemoryArea) -> Int32 {
    guard let status = try? fileStatus(link, followingLink: false, at: process.proc.directory.number) else {
      return area.isWritable ? O_RDWR : O_RDONLY
    }
    return status.st_mode & 0o200 != 0 ? O_RDWR : O_RDONLY
  }

  private mutating func id(
    _ process: JobProcess, _ status: stat?, path: String, access: Int32, what: String, link: String,
    _ saving: Saving
  ) throws(Failure) -> UInt32 {
    if let status, SavedGhosts.canKeep(status, path) {
      return ghost(process, status, path: path, access: access, link: link, saving)
    }
    guard let status, FileName.problem(path, status) == nil else {
      let why = status.flatMap { FileName.problem(path, $0) } ?? "\(path) is not the file that it was"
      saving.refuse(process, "\(what): \(why)", advice: FileName.advice)
      return 0
    }
    if status.kind == FileKind.blockDevice || (status.kind == FileKind.characterDevice && !RegularFileRoom.isHarmlessDevice(status)) {
      saving.refuse(process, "\(what) is memory of the device \(path)", advice: "close the device before the checkpoint")
    }
    let key = Name(device: UInt64(status.st_dev), inode: UInt64(status.st_ino), path: path, access: access)
    if let id = names[key] { return id }
    let id = saving.files.newID()
    saving.files.add(RegularFileRoom.entry(id: id, path: path, status: status, flags: access))
    names[key] = id
    return id
  }
}

extension NamedFiles {
  /// A file without a name: the image keeps its content.
  private mutating func ghost(
    _ process: JobProcess, _ status: stat, path: String, access: Int32, link: String, _ saving: Saving
  ) -> UInt32 {
    let key = Name(device: UInt64(status.st_dev), inode: UInt64(status.st_ino), path: path, access: access)
    if let id = names[key] { return id }
    let id = saving.files.newID()
    let name = saving.files.addGhost(id, path, status, process, link: link)
    saving.files.add(RegularFileRoom.entry(id: id, path: name, status: status, flags: access))
    names[key] = id
    return id
  }
}

/// Whether a file can be found again by its name.
enum FileName {
  static let advice = "a later version of torpor will save such files; for now start the program anew, or put the file back"

  /// What stands against finding the file again under `path`; nil if nothing does.
  static func problem(_ path: String, _ status: stat) -> String? {
    guard path.hasPrefix("/") else { return "\(path) is not below torpor's root directory" }
    let found = try? fileStatus(path, followingLink: false)
    if let found, found.isSameFile(as: status) { return nil }
    let name = path.hasSuffix(deletedMark) ? String(path.dropLast(deletedMark.count)) : path
    if path.hasSuffix(deletedMark) || status.st_nlink == 0 {
      let another = (try? fileStatus(name, followingLink: false)) != nil
      return another ? "\(name) has been replaced by another file" : "\(name) has been deleted"
    }
    return found == nil ? "\(name) cannot be reached by its name" : "another file now has the name \(name)"
  }

  /// What the kernel puts behind the name of a file that has none any more.
  static let deletedMark = " (deleted)"
}

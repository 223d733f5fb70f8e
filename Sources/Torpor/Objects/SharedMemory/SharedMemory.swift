import CLinux
import Images
import Linux
import SystemPackage

/// Memory that several mappings share without a named file: shared anonymous memory, and files in memory
/// (memfd_create(2)). To the kernel both are files without a name in a file system of its own, and the image keeps them
/// alike.
enum SharedMemory {
  /// The name of what mmap(2) makes with MAP_SHARED and MAP_ANONYMOUS.
  static let anonymousName = "/dev/zero"
  static let memfdPrefix = "/memfd:"

  /// The device number of that file system; nil where memfd_create(2) does not work.
  static let device: UInt64? = {
    let number = memfd_create("torpor", UInt32(MFD_CLOEXEC))
    guard number >= 0 else { return nil }
    let file = Descriptor(owning: number)
    return (try? file.status()).map { UInt64($0.st_dev) }
  }()

  /// Whether such a file lies under `area`. System V memory is of that file system too.
  static func isUnder(_ area: MemoryArea) -> Bool {
    guard area.isFileBacked, let device else { return false }
    return clinux_makedev(area.deviceMajor, area.deviceMinor) == device && !area.name.hasPrefix("/SYSV")
  }

  /// The name it was made with, from what /proc shows.
  static func name(_ shown: String) -> String {
    let mark = FileName.deletedMark
    let name = shown.hasSuffix(mark) ? shown.dropLast(mark.count) : shown[...]
    return String(name.hasPrefix(memfdPrefix) ? name.dropFirst(memfdPrefix.count) : name)
  }

  /// F_SEAL_ bits. fcntl(2)
  enum Seal {
    static let seal: UInt32 = 0x1
    static let write: UInt32 = 0x8
  }
}

/// A descriptor of a file in memory.
enum MemfdRoom: FileRoom {
  static let type = FdTypes.memfd

  static func recognises(_ facts: DescriptorFacts) -> Bool {
    facts.fileType == FileKind.regular && facts.link.hasPrefix(SharedMemory.memfdPrefix)
      && UInt64(facts.status.st_dev) == SharedMemory.device
  }

  static func save(_ facts: DescriptorFacts, id: UInt32, _ saving: Saving) throws(Failure) -> FileEntry? {
    let inode = try saving.files.sharedMemory.inode(
      facts.process, link: "fd/\(facts.number)", name: facts.link, status: facts.status)
    let owner = try facts.owner()
    return .with {
      ($0.type, $0.id) = (type, id)
      $0.memfd = .with {
        ($0.id, $0.inodeID) = (id, inode)
        $0.flags = UInt32(bitPattern: facts.flags)
        $0.pos = UInt64(bitPattern: facts.info.position)
        $0.fown = owner
      }
    }
  }

  static func check(_ entry: FileEntry, _ files: RestoredFiles) throws(Failure) {
    guard files.sharedMemory.has(.inode(UInt64(entry.memfd.inodeID))) else { throw files.damaged("file \(entry.id) has no content") }
  }

  static func open(_ entry: FileEntry, _ files: RestoredFiles) throws(Failure) -> Descriptor {
    let flags = Int32(bitPattern: entry.memfd.flags) & (O_ACCMODE | O_PATH | O_APPEND | O_LARGEFILE | O_NOATIME)
    let file = try files.sharedMemory.open(.inode(UInt64(entry.memfd.inodeID)), flags)
    if entry.memfd.pos != 0 {
      try attempt("\(files.what): file \(entry.id)") { () throws(Errno) in
        try file.seek(to: Int64(bitPattern: entry.memfd.pos))
      }
    }
    return file
  }

  static func settings(_ entry: FileEntry) -> (flags: Int32, owner: FownEntry) {
    (Int32(bitPattern: entry.memfd.flags), entry.memfd.fown)
  }
}

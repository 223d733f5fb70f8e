import CLinux
import Images
import Linux
import SystemPackage

/// The files of a job that is being saved: each open file description once, each file that is only named or mapped once.
public final class SavedFiles {
  private(set) var entries: [FileEntry] = []
  private var tables: [(id: UInt32, descriptors: [FdinfoEntry])] = []
  private var nextID: UInt32 = 1

  /// What two descriptors of one open file description have in common at least.
  private struct Resemblance: Hashable {
    var device: UInt64
    var inode: UInt64
    var flags: Int32
    var position: UInt64
    var mount: Int32
  }
  private struct Known {
    var pid: ProcessID
    var number: Int32
    var id: UInt32
    var type: FdTypes
  }
  /// In the kernel's order, by which a description is found among those that resemble it. (kcmp(2))
  private var descriptions: [Resemblance: [Known]] = [:]

  private struct Name: Hashable {
    var device: UInt64
    var inode: UInt64
    var path: String
    var flags: Int32
  }
  private var named: [Name: UInt32] = [:]
  let pipes = SavedPipes()
  /// Pseudo-terminals by their number.
  var terminals: [UInt32: TtyInfoEntry] = [:]

  public init() {}

  func makeID() -> UInt32 {
    defer { nextID += 1 }
    return nextID
  }

  func add(_ entry: FileEntry) { entries.append(entry) }

  // MARK: Descriptors

  /// Saves the descriptor table of a process.
  ///
  /// - Returns: its ID.
  public func collectDescriptors(_ process: JobProcess, _ saving: Saving) throws(Failure) -> UInt32 {
    let numbers = try attempt("Cannot read the descriptors of \(process.label)") { () throws(Errno) in
      try process.proc.numbers(in: "fd")
    }
    var descriptors: [FdinfoEntry] = []
    for number in numbers {
      let file = try attempt("Cannot read descriptor \(number) of \(process.label)") { () throws(Errno) in
        try OpenFile(process, number)
      }
      guard let known = try description(of: file, saving) else { continue }
      descriptors.append(
        .with {
          ($0.id, $0.type, $0.fd) = (known.id, known.type, UInt32(number))
          $0.flags = file.closesOnExec ? 1 : 0
        })
    }
    // 1 is Torpor's own.
    let id = UInt32(tables.count + 2)
    tables.append((id, descriptors))
    return id
  }

  private func description(of file: OpenFile, _ saving: Saving) throws(Failure) -> Known? {
    let likeness = Resemblance(
      device: UInt64(file.status.st_dev), inode: UInt64(file.status.st_ino), flags: file.flags,
      position: file.position, mount: file.mount)
    var group = descriptions[likeness] ?? []
    var (low, high) = (0, group.count)
    while low < high {
      let middle = (low + high) / 2
      let order = try attempt("Cannot compare descriptor \(file.number) of \(file.process.label)") { () throws(Errno) in
        try compareFiles(file.process.pid, file.number, group[middle].pid, group[middle].number)
      }
      switch order {
      case .same: return group[middle]
      case .before: high = middle
      case .after, .different: low = middle + 1
      }
    }
    guard let room = fileRooms.first(where: { $0.recognises(file) }) else {
      let what = Self.kind(of: file)
      saving.refuse(
        file.process, "descriptor \(file.number) is \(what)",
        advice: "have the program close it, or wait for a version of torpor that saves it")
      return nil
    }
    let id = makeID()
    guard let entry = try room.save(file, id: id, saving) else { return nil }
    file.closeDuplicate()
    refuseLocks(file, saving)
    add(entry)
    let known = Known(pid: file.process.pid, number: file.number, id: id, type: room.type)
    group.insert(known, at: low)
    descriptions[likeness] = group
    return known
  }

  /// Locks are listed in the descriptor's information, whoever of several owners took them.
  private func refuseLocks(_ file: OpenFile, _ saving: Saving) {
    guard file.value(of: "lock:\t") != nil else { return }
    saving.refuse(
      file.process, "descriptor \(file.number) (\(file.link)) holds a file lock",
      advice: "a later version of torpor will save locks; for now have the program release it")
  }

  /// What a file is, in words, for one that no room knows.
  private static func kind(of file: OpenFile) -> String {
    switch file.type {
    case FileKind.socket: return SocketFacts.describe(file)
    case FileKind.blockDevice: return "a block device (\(file.link))"
    case FileKind.characterDevice: return "a device (\(file.link))"
    case FileKind.pipe: return "a named pipe (\(file.link))"
    default: return file.link.hasPrefix("anon_inode:") ? "of a kernel object (\(file.link))" : "a file of an unknown kind (\(file.link))"
    }
  }

  // MARK: Named files

  /// The entry of the file behind a mapping.
  func mappedFile(_ process: JobProcess, _ area: MemoryArea, _ saving: Saving) throws(Failure) -> UInt32 {
    let device = clinux_makedev(area.deviceMajor, area.deviceMinor)
    let place = "the mapping at \(MemoryRoom.hex(area.range.start))"
    let name = Name(device: device, inode: area.inode, path: area.name, flags: O_RDONLY)
    if let id = named[name] { return id }
    return try addNamed(name, place: place, process, saving)
  }

  /// The entry of what a link in /proc/PID names: exe, cwd or root.
  func namedLink(_ process: JobProcess, _ link: String, _ saving: Saving) throws(Failure) -> UInt32 {
    let (path, status) = try attempt("Cannot read the \(link) of \(process.label)") { () throws(Errno) in
      (
        try process.proc.link(link), try fileStatus(link, at: process.proc.directory.number)
      )
    }
    let flags = status.kind == FileKind.directory ? O_RDONLY | O_DIRECTORY : O_RDONLY
    let name = Name(device: UInt64(status.st_dev), inode: UInt64(status.st_ino), path: path, flags: flags)
    if let id = named[name] { return id }
    return try addNamed(name, place: "its \(link)", process, saving)
  }

  private func addNamed(
    _ name: Name, place: String, _ process: JobProcess, _ saving: Saving
  ) throws(Failure) -> UInt32 {
    let id = makeID()
    named[name] = id
    // The mapped device number of some file systems is not that of stat(2): the inode alone decides then.
    guard let status = try? fileStatus(name.path), UInt64(status.st_ino) == name.inode else {
      RegularFileRoom.refuseLost(name.path, place: place, process, saving)
      return id
    }
    if status.kind == FileKind.characterDevice || status.kind == FileKind.blockDevice {
      saving.refuse(
        process, "\(place) is memory of the device \(name.path)", advice: "close the device before the checkpoint")
    }
    let isDirectory = status.kind == FileKind.directory
    let reg = RegFileEntry.with {
      ($0.id, $0.pos, $0.name) = (id, 0, name.path)
      $0.flags = isDirectory ? 0 : UInt32(bitPattern: name.flags)
      $0.fown = .with { ($0.uid, $0.euid, $0.signum, $0.pidType, $0.pid) = (0, 0, 0, 0, 0) }
      $0.mode = status.st_mode
      if !isDirectory { $0.size = UInt64(status.st_size) }
    }
    add(.with { ($0.type, $0.id, $0.reg) = (.reg, id, reg) })
    return id
  }

  // MARK: Write

  /// Looks at what could only be judged with the whole job at hand.
  func finishCollecting(_ saving: Saving) throws(Failure) { try pipes.refuseOutsiders(saving) }

  /// Writes files.img, fdinfo-N.img, pipes-data.img.
  func write(to image: ImageWriter) throws(Failure) {
    try image.write(.files, all: entries)
    for table in tables where !table.descriptors.isEmpty {
      try image.write(.descriptors, UInt64(table.id), all: table.descriptors)
    }
    if !terminals.isEmpty { try image.write(.ttyInfo, all: terminals.sorted { $0.key < $1.key }.map(\.value)) }
    try pipes.write(to: image)
  }
}

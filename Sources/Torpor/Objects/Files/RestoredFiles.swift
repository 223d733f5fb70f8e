import CLinux
import Images
import Linux
import SystemPackage
import Tracing

/// The files of a job that is being built. Each open file description is made once, here, and dealt to every process that
/// has it.
public final class RestoredFiles {
  let imagePath: String
  private var entries: [UInt32: FileEntry] = [:]
  /// By the ID of the descriptor table, in ascending order of numbers.
  private var tables: [UInt32: [FdinfoEntry]] = [:]
  private var open: [UInt32: Int32] = [:]
  let pipes: RestoredPipes
  /// Event polls that have been filled already.
  private var filled: Set<UInt32> = []

  public init(image: ImageReader, processes: [RestoredProcess]) throws(Failure) {
    imagePath = image.path
    pipes = try RestoredPipes(image)
    for entry in try image.readAll(.files, as: FileEntry.self) { entries[entry.id] = entry }
    for process in processes where !process.isZombie {
      let rows = try image.readAll(.descriptors, UInt64(process.ids.filesID), as: FdinfoEntry.self)
        .sorted { $0.fd < $1.fd }
      try check(rows, process)
      tables[process.ids.filesID] = rows
      guard let memory = process.memory, entries[memory.exeFileID]?.hasReg == true else {
        throw damaged("process \(process.pid) has no executable")
      }
    }
  }

  private func damaged(_ why: String) -> Failure {
    Failure(.badImage, "Cannot restore \(imagePath)", why: why, advice: "use another image, or a good copy of this one")
  }

  private func check(_ rows: [FdinfoEntry], _ process: RestoredProcess) throws(Failure) {
    var last: Int64 = -1
    for row in rows {
      guard Int64(row.fd) > last, row.fd < 1 << 30 else { throw damaged("fdinfo-\(process.ids.filesID).img is no descriptor table") }
      last = Int64(row.fd)
      guard let entry = entries[row.id] else {
        throw damaged("descriptor \(row.fd) of process \(process.pid) has no file")
      }
      guard room(for: entry) != nil else {
        throw Failure(
          .cannotRestore, "Cannot restore \(imagePath)",
          why: "descriptor \(row.fd) of process \(process.pid) is of kind \(entry.type), which is not supported yet",
          advice: "use criu restore for this image")
      }
    }
  }

  private func room(for entry: FileEntry) -> (any FileRoom.Type)? { fileRooms.first { $0.type == entry.type } }

  func regular(_ id: UInt32) -> RegFileEntry? { entries[id]?.hasReg == true ? entries[id]?.reg : nil }

  /// Whether the job has descriptors of the terminal it was started from.
  var usesTerminal: Bool { tables.values.contains { $0.contains { $0.type == .tty } } }

  /// Looks whether everything is there, before anything is built.
  public func check() throws(Failure) {
    let held = Set(tables.values.flatMap { $0.map(\.id) })
    for entry in entries.values.sorted(by: { $0.id < $1.id }) {
      // Entries that no descriptor has are executables, mapped files, directories.
      if held.contains(entry.id) || entry.type == .reg, let room = room(for: entry) { try room.check(entry, self) }
    }
  }

  /// No process will have a descriptor above it, neither of its own nor while its files are being mapped.
  public func highestDescriptor() -> Int32 {
    let own = Int(tables.values.compactMap { $0.last?.fd }.max() ?? 0)
    let dealt = entries.count * 2 + 2
    return Int32(clamping: max(own, dealt))
  }

  // MARK: Mapped files

  /// Opens a file that is mapped or executed.
  public func openForMapping(_ id: UInt32, writable: Bool) throws(Failure) -> Descriptor {
    guard let reg = regular(id) else { throw damaged("a mapping has no file") }
    return try attempt("Cannot open \(reg.name) for the job", advice: "torpor needs the access to it that the job had") {
      () throws(Errno) in try Descriptor.open(reg.name, writable ? O_RDWR : O_RDONLY)
    }
  }

  // MARK: Descriptors

  /// Makes every open file.
  func openAll(_ restoring: Restoring) throws(Failure) {
    for rows in tables.values {
      for row in rows where open[row.id] == nil {
        guard let entry = entries[row.id], let room = room(for: entry) else { continue }
        open[row.id] = try room.open(entry, self).release()
      }
    }
  }

  /// The soft limit of open files is for programs that use select(2); ours does not.
  static func raiseLimit() {
    var limit = rlimit()
    getrlimit(RLIMIT_NOFILE, &limit)
    limit.rlim_cur = limit.rlim_max
    setrlimit(RLIMIT_NOFILE, &limit)
  }

  /// Deals a process its descriptors, and adds the calls that move each to its number.
  func deal(_ process: RestoredProcess, _ restoring: Restoring, into script: inout Script) throws(Failure) {
    let rows = tables[process.ids.filesID] ?? []
    try restoring.dealer.deal(rows.map { open[$0.id] ?? -1 }, &script)
    // They have come as 0, 1, 2, ...; each belongs at its own place or further up, so the last one moves first.
    for (index, row) in rows.enumerated().reversed() {
      if Int(row.fd) != index {
        script.call(
          Int32(SYS_dup3), .init(index), .init(row.fd), .init(row.flags & 1 == 1 ? O_CLOEXEC : 0))
        script.call(Int32(SYS_close), .init(index))
      } else if row.flags & 1 == 1 {
        script.call(Int32(SYS_fcntl), .init(index), .init(F_SETFD), .init(FD_CLOEXEC))
      }
    }
  }

  /// What can only be done by a process that has its descriptors: filling event polls.
  func finishProcess(_ process: RestoredProcess, _ restoring: Restoring, into script: inout Script) throws(Failure) {
    let rows = tables[process.ids.filesID] ?? []
    let numbers = Set(rows.map(\.fd))
    for row in rows where row.type == .eventpoll && !filled.contains(row.id) {
      guard let entry = entries[row.id], entry.epfd.tfd.allSatisfy({ numbers.contains($0.tfd) }) else { continue }
      filled.insert(row.id)
      EventpollRoom.fill(entry.epfd, number: row.fd, into: &script)
    }
  }

  func closeAll() {
    for number in open.values { close(number) }
    open = [:]
    pipes.closeAll()
  }
}

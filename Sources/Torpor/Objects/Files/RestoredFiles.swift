import CLinux
import Images
import Linux
import Logging
import SystemPackage

/// The files of a job that is being built: read from the image, opened once, dealt out.
public final class RestoredFiles {
  private let image: ImageReader
  private var entries: [UInt32: FileEntry] = [:]
  /// The rows of each descriptor table, by ascending number.
  private var tables: [UInt32: [FdinfoEntry]] = [:]
  private var openIDs: Set<UInt32> = []
  /// Every process, as others see it, and the number of its table.
  private var owners: [(user: SocketUser, table: UInt32)] = []
  private var descriptors: [UInt32: Int32] = [:]
  private var watchesLeft: [UInt32: [EventpollTfdEntry]] = [:]
  private let locks: RestoredLocks
  var pipes: RestoredPipes
  var ghosts: RestoredGhosts
  var terminals: RestoredTerminals
  let sharedMemory: RestoredSharedMemory
  let unixSockets: RestoredUnixSockets
  let datagrams: RestoredDatagrams
  let ended = EndedProcesses()
  /// Where warnings go while files are opened.
  private(set) var log: Logger?

  /// Reads every table and every open file, and checks that they fit together.
  public init(image: ImageReader, processes: [RestoredProcess]) throws(Failure) {
    self.image = image
    locks = try RestoredLocks(image)
    pipes = try RestoredPipes(image)
    ghosts = try RestoredGhosts(image)
    terminals = try RestoredTerminals(image)
    sharedMemory = try RestoredSharedMemory(image)
    unixSockets = try RestoredUnixSockets(image)
    datagrams = try RestoredDatagrams(image)
    for entry in try image.readAll(.files, as: FileEntry.self) {
      guard entries.updateValue(entry, forKey: entry.id) == nil else {
        throw damaged("two files have the number \(entry.id)")
      }
      if entry.type == .unixsk, !unixSockets.note(entry.usk) { throw damaged("two sockets have the number \(entry.usk.ino)") }
    }
    try readInFlight()
    for process in processes where !process.isZombie {
      try readTable(of: process)
      let credentials = process.cores.first { $0.hasThreadCore }?.threadCore.creds ?? CredsEntry()
      owners.append((.with { ($0.pid, $0.uid, $0.gid) = (process.pid, credentials.euid, credentials.egid) }, process.ids.filesID))
      guard let memory = process.memory, entries[memory.exeFileID]?.type == .reg else {
        throw damaged("process \(process.pid) has no executable")
      }
    }
  }

  /// The soft limit of open files is for programs that use select(2); torpor does not.
  static func raiseLimit() { raiseDescriptorLimit() }

  /// For messages.
  var what: String { "Cannot restore \(image.path)" }

  func damaged(_ why: String) -> Failure {
    Failure(
      .badImage, "Cannot read the image \(image.path)", why: "it is damaged: \(why)",
      advice: "use another image, or a good copy of this one")
  }

  /// Files that no process has yet, on their way in unix sockets.
  private func readInFlight() throws(Failure) {
    for id in unixSockets.packets.files {
      guard let entry = entries[id], FileRooms.room(for: entry.type) != nil else {
        throw damaged("file \(id), which is on its way in a socket, is not there")
      }
      openIDs.insert(id)
    }
  }

  private func readTable(of process: RestoredProcess) throws(Failure) {
    let id = process.ids.filesID
    guard tables[id] == nil else {
      throw Failure(
        .cannotRestore, "Cannot restore \(process.label)", why: "it shares its descriptor table with another process",
        advice: "a later version of torpor will be able to")
    }
    let rows = try image.readAll(.descriptors, UInt64(id), as: FdinfoEntry.self).sorted { $0.fd < $1.fd }
    var last: UInt32?
    for row in rows {
      guard row.fd != last, row.fd < UInt32(Int32.max) else {
        throw damaged("descriptor \(row.fd) of \(process.label) is there twice")
      }
      last = row.fd
      guard let entry = entries[row.id], entry.type == row.type else {
        throw damaged("descriptor \(row.fd) of \(process.label) is of a file that is not there")
      }
      try checkKind(entry, row, process)
      openIDs.insert(row.id)
    }
    tables[id] = rows
  }

  private func checkKind(_ entry: FileEntry, _ row: FdinfoEntry, _ process: RestoredProcess) throws(Failure) {
    guard FileRooms.room(for: entry.type) != nil else {
      throw Failure(
        .cannotRestore, "Cannot restore \(process.label)",
        why: "descriptor \(row.fd) is of the kind \(entry.type), which this version of torpor cannot restore",
        advice: "use a newer version, or the program that made the image")
    }
    if entry.type == .reg, entry.reg.ext {
      throw Failure(
        .cannotRestore, "Cannot restore \(process.label)", why: "descriptor \(row.fd) is a file that a plugin opens",
        advice: "use the program that made the image")
    }
  }

  // MARK: Checks

  /// Whether a descriptor refers to the file, as opposed to a mapping or a name.
  func isOpen(_ id: UInt32) -> Bool { openIDs.contains(id) }

  /// Whether a descriptor of the job is its terminal.
  public var usesTerminal: Bool { entries.values.contains { $0.type == .tty && isOpen($0.id) } }

  /// Finds out, before anything is spawned, whether everything can be opened here.
  public func check() throws(Failure) {
    let highest = UInt64(highestDescriptor())
    guard highest + 8 < descriptorLimit().hard else {
      throw Failure(
        .cannotRestore, what, why: "the job has descriptor \(highest), and no process may have more than \(descriptorLimit().hard)",
        advice: "raise the limit of open files (ulimit -Hn)")
    }
    var first: Failure?
    var others = 0
    for entry in entries.values.sorted(by: { $0.id < $1.id }) {
      guard let room = FileRooms.room(for: entry.type) else { continue }
      do throws(Failure) { try room.check(entry, self) } catch {
        if first == nil { first = error } else if first?.why != error.why { others += 1 }
      }
    }
    guard var first else { return }
    if others > 0 { first.why += " (and \(others) more)" }
    throw first
  }

  /// No process will have a descriptor above it, neither of its own nor while its files are being mapped.
  public func highestDescriptor() -> Int32 {
    let own = tables.values.reduce(2) { max($0, Int32(bitPattern: $1.last?.fd ?? 0)) }
    // While memory is being built, a process has the files that are mapped, each for reading and for writing at most.
    let mapped = entries.values.count { $0.type == .reg && !isOpen($0.id) }
    return max(own, Int32(clamping: mapped * 2 + 2))
  }

  /// A process that has the open file; nil where there is none.
  func holder(of id: UInt32) -> SocketUser? {
    for (process, table) in owners {
      guard let rows = tables[table], rows.contains(where: { $0.id == id }) else { continue }
      return process
    }
    return nil
  }

  // MARK: Names

  /// The file `id` that belongs to another entry.
  func regularFile(_ id: UInt32, of entry: FileEntry) throws(Failure) -> RegFileEntry {
    guard let file = entries[id], file.type == .reg else { throw damaged("file \(entry.id) has no name") }
    return file.reg
  }

  /// The path of the directory with this ID.
  func directory(_ id: UInt32, of process: RestoredProcess) throws(Failure) -> String {
    guard let entry = entries[id], entry.type == .reg else {
      throw damaged("a directory of \(process.label) is not there")
    }
    return entry.reg.name.hasPrefix("/") ? entry.reg.name : "/" + entry.reg.name
  }

  /// Whether there is such a file to map, named or in memory.
  func canMap(_ id: UInt32, isShared: Bool) -> Bool { entries[id]?.type == (isShared ? .memfd : .reg) }

  /// Opens a file that is mapped.
  public func openForMapping(_ id: UInt32, writable: Bool) throws(Failure) -> Descriptor {
    if let entry = entries[id], entry.type == .memfd {
      return try sharedMemory.open(.inode(UInt64(entry.memfd.inodeID)), writable ? O_RDWR : O_RDONLY)
    }
    guard let entry = entries[id], entry.type == .reg else { throw damaged("a mapped file is not there") }
    return try RegularFileRoom.open(entry.reg, flags: writable ? O_RDWR : O_RDONLY, self)
  }

  // MARK: Open

  /// Opens every open file once, in this process.
  public func openAll(_ restoring: Restoring) throws(Failure) {
    log = restoring.log
    try unixSockets.make(restoring, self)
    for entry in entries.values.sorted(by: { $0.id < $1.id }) where isOpen(entry.id) {
      guard let room = FileRooms.room(for: entry.type) else { continue }
      let descriptor = try room.open(entry, self)
      let (flags, owner) = room.settings(entry)
      if entry.type != .fifo { try apply(flags: flags, owner: owner, to: descriptor, "file \(entry.id)") }
      if entry.type == .eventpoll { watchesLeft[entry.id] = entry.epfd.tfd }
      descriptors[entry.id] = descriptor.release()
    }
    ended.reap()
    try unixSockets.finish(descriptors, restoring, self)
  }

  /// Sets what of an open file is changed with fcntl(2).
  func apply(
    flags: Int32, owner: FownEntry, to descriptor: borrowing Descriptor, _ name: @autoclosure () -> String
  ) throws(Failure) {
    guard flags & O_PATH == 0 else { return }
    let mask = O_APPEND | O_ASYNC | O_DIRECT | O_NOATIME | O_NONBLOCK
    do throws(Errno) {
      // The owner first: with O_ASYNC signals may start to flow.
      try apply(owner, to: descriptor)
      if try descriptor.statusFlags() & mask != flags & mask { try descriptor.setStatusFlags(flags & mask) }
    } catch { throw Failure("\(what): \(name())", error) }
  }

  private func apply(_ owner: FownEntry, to descriptor: borrowing Descriptor) throws(Errno) {
    if owner.signum != 0 { try descriptor.setOwnerSignal(Int32(truncatingIfNeeded: owner.signum)) }
    guard owner.pid != 0 else { return }
    let wanted = FileOwner(kind: Int32(bitPattern: owner.pidType), id: Int32(bitPattern: owner.pid))
    guard owner.uid != getuid() || owner.euid != geteuid() else { return try descriptor.setOwner(wanted) }
    // The kernel notes who asks, to see later whether that user may send the signal. The bare call changes this
    // thread only; the saved ID leads back.
    let own = (Int(getuid()), Int(geteuid()))
    try systemCall(Int32(SYS_setresuid), Int(owner.uid), Int(owner.euid), own.1)
    defer { _ = try? systemCall(Int32(SYS_setresuid), own.0, own.1, -1) }
    try descriptor.setOwner(wanted)
  }

  // MARK: Deal

  /// How many descriptors may be on their way at a time: what the socket's buffer takes is limited.
  private static let largestLoad = 8 * DescriptorDealer.largestHand

  /// Gives the process its descriptors, each under its number.
  public func deal(
    _ process: RestoredProcess, _ restoring: Restoring, into script: inout Script
  ) throws(Failure) {
    let rows = tables[process.ids.filesID] ?? []
    var next = 0
    while next < rows.count {
      let load = rows[next..<min(next + Self.largestLoad, rows.count)]
      var numbers: [Int32] = []
      for row in load {
        guard let number = descriptors[row.id] else { throw damaged("file \(row.id) has not been opened") }
        numbers.append(number)
      }
      try restoring.dealer.deal(numbers, &script)
      next = load.endIndex
      if next < rows.count {
        try process.run(script, in: restoring.layout)
        script = Script()
      }
    }
    Self.place(rows, &script)
  }

  /// Where each descriptor goes that has come under another number than its own, in order.
  ///
  /// They come as 0, 1, 2, ..., and their own numbers ascend: from the highest down nothing is in the way.
  static func moves(_ rows: [FdinfoEntry]) -> [(from: Int, to: UInt32, flags: UInt32)] {
    rows.enumerated().reversed().filter { $0.offset != Int($0.element.fd) }.map {
      (from: $0.offset, to: $0.element.fd, flags: $0.element.flags)
    }
  }

  private static func place(_ rows: [FdinfoEntry], _ script: inout Script) {
    let closesOnExec = UInt32(FD_CLOEXEC)
    for move in moves(rows) {
      script.call(
        Int32(SYS_dup3), .init(move.from), .init(move.to), .init(move.flags & closesOnExec != 0 ? O_CLOEXEC : 0))
      script.call(Int32(SYS_close), .init(move.from))
    }
    for (number, row) in rows.enumerated() where number == Int(row.fd) && row.flags & closesOnExec != 0 {
      script.call(Int32(SYS_fcntl), .init(number), .init(F_SETFD), .init(FD_CLOEXEC))
    }
  }

  /// Adds what only the process itself can do once all descriptors are in their places: watches and locks.
  public func finishProcess(
    _ process: RestoredProcess, _ restoring: Restoring, into script: inout Script
  ) throws(Failure) {
    let rows = tables[process.ids.filesID] ?? []
    addWatches(rows, &script)
    for lock in locks.of(process) { RestoredLocks.take(lock, &script) }
    let isLast = process === restoring.processes.last { !$0.isZombie }
    guard isLast else { return }
    for (id, descriptor) in descriptors {
      if let entry = entries[id], entry.type == .inotify {
        try FileWatchRoom.addWatches(entry.ify, to: descriptor, what)
      }
    }
    guard let left = watchesLeft.first(where: { !$0.value.isEmpty }) else { return }
    throw damaged("epoll instance \(left.key) watches descriptor \(left.value[0].tfd), which is not there")
  }

  /// The first process that has the epoll instance and the watched number adds the watch.
  private func addWatches(_ rows: [FdinfoEntry], _ script: inout Script) {
    guard !watchesLeft.isEmpty else { return }
    let instances = rows.filter { $0.type == .eventpoll && !(watchesLeft[$0.id] ?? []).isEmpty }
    guard !instances.isEmpty else { return }
    let numbers = Set(rows.map(\.fd))
    for row in instances {
      guard let watches = watchesLeft[row.id] else { continue }
      for watch in watches where numbers.contains(watch.tfd) { EventPollRoom.add(watch, to: row.fd, &script) }
      watchesLeft[row.id] = watches.filter { !numbers.contains($0.tfd) }
    }
  }

  // MARK: End

  /// Sets timers going and closes everything in this process: from here on only the job has its files.
  public func closeAll() {
    for (id, descriptor) in descriptors {
      if let entry = entries[id], entry.type == .timerfd { try? TimerDescriptorRoom.arm(descriptor, entry.tfd) }
      close(descriptor)
    }
    descriptors = [:]
    unixSockets.handOver()
    pipes.closeAll()
    ghosts.closeAll()
    terminals.handOver()
  }

  deinit {
    for descriptor in descriptors.values { close(descriptor) }
    pipes.closeAll()
    ghosts.closeAll()
  }
}

import CLinux
import Images
import Linux
import SystemPackage

/// The files of a frozen job: every open file description once, every file that is mapped or otherwise named once.
public final class SavedFiles {
  private struct Table {
    let id: UInt32
    var rows: [FdinfoEntry] = []
  }

  private var tables: [Table] = []
  private var entries: [FileEntry] = []
  private var openFiles = OpenFileTable()
  private var lastID: UInt32 = 0

  /// Files that have no descriptor: mapped ones, executables, directories.
  var named = NamedFiles()
  var pipes = SavedPipes()
  var terminals = SavedTerminals()
  var eventPolls = SavedEventPolls()
  var locks = SavedLocks()
  var ghosts = SavedGhosts()
  var sharedMemory = SavedSharedMemory()
  let unixSockets = SavedUnixSockets()
  var datagrams = SavedDatagrams()
  /// Stand-ins for the processes that will get files which are still on their way to them.
  private var carriers: [ProcessID: JobProcess] = [:]

  public init() {}

  // MARK: Descriptors

  /// Looks at all descriptors of `process`. What cannot be saved is noted in `saving.refusals`.
  ///
  /// - Returns: the ID of its descriptor table.
  func collectDescriptors(_ process: JobProcess, _ saving: Saving) throws(Failure) -> UInt32 {
    // 1 is the table of whoever makes the image.
    var table = Table(id: UInt32(tables.count + 2))
    let readAhead = process.descriptors
    process.descriptors = nil
    let numbers = if let readAhead { readAhead.map(\.number) } else { try DescriptorFacts.numbers(of: process) }
    table.rows.reserveCapacity(numbers.count)
    for (index, number) in numbers.enumerated() {
      let facts = if let readAhead { readAhead[index] } else { try DescriptorFacts(process, number) }
      guard let (fileID, type) = try collect(facts, saving) else { continue }
      locks.note(facts, id: fileID, saving)
      eventPolls.noteDescriptor(facts, id: fileID)
      table.rows.append(
        .with {
          $0.id = fileID
          $0.flags = facts.info.closesOnExec ? UInt32(FD_CLOEXEC) : 0
          $0.type = type
          $0.fd = UInt32(number)
        })
    }
    tables.append(table)
    return table.id
  }

  /// Looks at an open file; nil where no room knows it, which has been noted then.
  private func collect(_ facts: DescriptorFacts, _ saving: Saving) throws(Failure) -> (id: UInt32, type: FdTypes)? {
    guard let room = FileRooms.room(for: facts) else {
      let (what, advice) = UnknownFile.describe(facts)
      saving.refuse(facts.process, "\(facts.label) is \(what) (\(facts.link))", advice: advice)
      return nil
    }
    let (id, isNew) = try openFiles.id(of: facts, newID: newID)
    if isNew, let entry = try room.save(facts, id: id, saving) { entries.append(entry) }
    pipes.noteHolder(facts)
    return (id, room.type)
  }

  /// Looks at an open file that is on its way to `receiver` in a socket.
  ///
  /// - Parameter number: our own descriptor of it, which stays open until the image is written.
  /// - Returns: its ID; nil where it cannot be saved, which has been noted then.
  func collectInFlight(_ number: Int32, to receiver: JobProcess, _ saving: Saving) throws(Failure) -> UInt32? {
    if carriers[receiver.pid] == nil { carriers[receiver.pid] = try receiver.carrier() }
    guard let carrier = carriers[receiver.pid] else { return nil }
    let facts = try DescriptorFacts(carrier, number, isInFlight: true)
    let known = lastID
    guard let (id, _) = try collect(facts, saving) else { return nil }
    if id > known, facts.info.detail("lock") != nil {
      saving.refuse(
        receiver, "\(facts.label) has a lock (\(facts.link))", advice: "try again when the job has taken it")
    }
    return id
  }

  /// Looks at what can only be judged when all processes have been looked at.
  func finishCollecting(_ saving: Saving) throws(Failure) {
    try unixSockets.finish(saving)
    try datagrams.finish()
    try pipes.finish(saving)
    terminals.finish(saving)
    try eventPolls.finish(saving)
    sharedMemory.refuseOutsiders(saving)
  }

  /// A number that no other file of the image has.
  func newID() -> UInt32 {
    lastID += 1
    return lastID
  }

  /// Notes that the file `id` has lost its name, and that its content is to be kept.
  ///
  /// - Returns: the name that it had.
  func addGhost(_ id: UInt32, _ path: String, _ status: stat, _ process: JobProcess, link: String) -> String {
    // `ghosts` must not be in use while it asks for a number.
    let number = newID()
    return ghosts.add(id, path, status, process, link: link, newID: { number })
  }

  func add(_ entry: FileEntry) { entries.append(entry) }

  // MARK: Mapped and named files

  /// The ID of the file under a mapping.
  func mappedFile(_ process: JobProcess, _ area: MemoryArea, _ saving: Saving) throws(Failure) -> UInt32 {
    try named.mappedFile(process, area, saving)
  }

  /// The ID of the file that /proc/PID/`name` leads to: `exe`, `cwd` or `root`.
  func namedLink(_ process: JobProcess, _ name: String, _ saving: Saving) throws(Failure) -> UInt32 {
    try named.link(process, name, saving)
  }

  // MARK: Write

  /// Writes everything that has been collected, and the content of pipes.
  func write(to image: ImageWriter) throws(Failure) {
    for table in tables where !table.rows.isEmpty {
      try image.write(.descriptors, UInt64(table.id), all: table.rows)
    }
    try pipes.write(to: image)
    try terminals.write(to: image)
    try locks.write(to: image)
    try ghosts.write(to: image)
    try sharedMemory.write(to: image)
    try unixSockets.write(to: image) { entries.append($0) }
    try datagrams.write(to: image)
    for entry in eventPolls.entries { entries.append(entry) }
    if !entries.isEmpty { try image.write(.files, all: entries) }
  }
}

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

  private var tables: [ProcessID: Table] = [:]
  private var entries: [FileEntry] = []
  private var openFiles = OpenFileTable()
  private var lastID: UInt32 = 0
  private var hasCollected = false
  private var waitingRefusals: [(process: JobProcess, why: String, advice: String)] = []

  /// Files that have no descriptor: mapped ones, executables, directories.
  var named = NamedFiles()
  var pipes = SavedPipes()
  var terminals = SavedTerminals()
  var eventPolls = SavedEventPolls()
  var locks = SavedLocks()
  /// Working and root directory of each process, and its file mode mask.
  var fileSystems: [ProcessID: FsEntry] = [:]

  public init() {}

  // MARK: Descriptors

  /// Looks at all descriptors of `process`. What cannot be saved is noted in `saving.refusals`.
  ///
  /// - Returns: the ID of its descriptor table.
  public func collectDescriptors(_ process: JobProcess, _ saving: Saving) throws(Failure) -> UInt32 {
    // The first question is answered for all processes: a pipe's two ends are often held by two of them.
    if !hasCollected {
      hasCollected = true
      try collectAll(saving)
    }
    for refusal in waitingRefusals { saving.refuse(refusal.process, refusal.why, advice: refusal.advice) }
    waitingRefusals = []
    guard let table = tables[process.pid] else {
      throw Failure("Cannot checkpoint \(process.label)", why: "its descriptors have not been looked at")
    }
    return table.id
  }

  private func collectAll(_ saving: Saving) throws(Failure) {
    // 1 is the table of whoever makes the image.
    for (index, process) in saving.job.living.enumerated() {
      try collectTable(process, id: UInt32(index + 2), saving)
      fileSystems[process.pid] = try FileSystemRoom.collect(process, self)
    }
    try pipes.finish(saving)
    terminals.finish(saving)
    try eventPolls.finish(saving)
  }

  private func collectTable(_ process: JobProcess, id: UInt32, _ saving: Saving) throws(Failure) {
    var table = Table(id: id)
    let numbers = try attempt("Cannot read the descriptors of \(process.label)") { () throws(Errno) in
      try process.proc.numbers(in: "fd")
    }
    table.rows.reserveCapacity(numbers.count)
    for number in numbers {
      let facts = try DescriptorFacts(process, number)
      guard let room = FileRooms.room(for: facts) else {
        let (what, advice) = UnknownFile.describe(facts)
        saving.refuse(process, "\(facts.label) is \(what) (\(facts.link))", advice: advice)
        continue
      }
      let (fileID, isNew) = try openFiles.id(of: facts, newID: newID)
      if isNew, let entry = try room.save(facts, id: fileID, saving) { entries.append(entry) }
      locks.note(facts, id: fileID, saving)
      pipes.noteHolder(facts)
      eventPolls.noteDescriptor(facts, id: fileID)
      table.rows.append(
        .with {
          $0.id = fileID
          $0.flags = facts.info.closesOnExec ? UInt32(FD_CLOEXEC) : 0
          $0.type = room.type
          $0.fd = UInt32(number)
        })
    }
    tables[process.pid] = table
  }

  /// A number that no other file of the image has.
  func newID() -> UInt32 {
    lastID += 1
    return lastID
  }

  func add(_ entry: FileEntry) { entries.append(entry) }

  /// Notes a refusal where no `Saving` is at hand; it is passed on with the next question for descriptors.
  func refuse(_ process: JobProcess, _ why: String, advice: String) {
    waitingRefusals.append((process, why, advice))
  }

  // MARK: Mapped and named files

  /// The ID of the file under a mapping.
  public func mappedFile(_ process: JobProcess, _ area: MemoryArea) throws(Failure) -> UInt32 {
    try named.mappedFile(process, area, self)
  }

  /// The ID of the file that /proc/PID/`name` leads to: `exe`, `cwd` or `root`.
  public func namedLink(_ process: JobProcess, _ name: String) throws(Failure) -> UInt32 {
    try named.link(process, name, self)
  }

  // MARK: Write

  /// Writes everything that has been collected, and the content of pipes.
  public func write(to image: ImageWriter) throws(Failure) {
    for table in tables.values.sorted(by: { $0.id < $1.id }) where !table.rows.isEmpty {
      try image.write(.descriptors, UInt64(table.id), all: table.rows)
    }
    try pipes.write(to: image)
    try terminals.write(to: image)
    try locks.write(to: image)
    for entry in eventPolls.entries { entries.append(entry) }
    if !entries.isEmpty { try image.write(.files, all: entries) }
  }
}

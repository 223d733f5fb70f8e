import CLinux
import Images
import Linux
import SystemPackage

/// Either end of a pipe.
enum PipeRoom: FileRoom {
  static let type = FdTypes.pipe

  static func recognises(_ facts: DescriptorFacts) -> Bool {
    facts.fileType == FileKind.pipe && facts.link.hasPrefix("pipe:[") && !facts.isPathOnly
  }

  static func save(_ facts: DescriptorFacts, id: UInt32, _ saving: Saving) throws(Failure) -> FileEntry? {
    let owner = try facts.owner()
    return .with {
      $0.type = type
      $0.id = id
      $0.pipe = .with {
        $0.id = id
        $0.pipeID = facts.inode
        $0.flags = UInt32(bitPattern: facts.flags)
        $0.fown = owner
      }
    }
  }

  static func settings(_ entry: FileEntry) -> (flags: Int32, owner: FownEntry) {
    (Int32(bitPattern: entry.pipe.flags), entry.pipe.fown)
  }

  static func open(_ entry: FileEntry, _ files: RestoredFiles) throws(Failure) -> Descriptor {
    try files.pipes.openEnd(entry.pipe, files.what)
  }
}

/// A pipe with a name in the file system.
enum FIFORoom: FileRoom {
  static let type = FdTypes.fifo

  static func recognises(_ facts: DescriptorFacts) -> Bool {
    facts.fileType == FileKind.pipe && facts.link.hasPrefix("/") && !facts.isPathOnly
  }

  static func save(_ facts: DescriptorFacts, id: UInt32, _ saving: Saving) throws(Failure) -> FileEntry? {
    let fileID = saving.files.newID()
    guard let file = try RegularFileRoom.save(facts, id: fileID, saving) else { return nil }
    saving.files.add(file)
    return .with {
      $0.type = type
      $0.id = id
      $0.fifo = .with {
        $0.id = id
        $0.pipeID = facts.inode
        $0.regfID = fileID
      }
    }
  }

  static func settings(_ entry: FileEntry) -> (flags: Int32, owner: FownEntry) {
    // They are in the entry of the file, which `open` uses.
    (0, .none)
  }

  static func open(_ entry: FileEntry, _ files: RestoredFiles) throws(Failure) -> Descriptor {
    let file = try files.regularFile(entry.fifo.hasRegfID ? entry.fifo.regfID : entry.id, of: entry)
    try files.pipes.fillFIFO(entry.fifo.pipeID, file.name, files.what)
    let flags = Int32(bitPattern: file.flags)
    let descriptor = try RegularFileRoom.open(path: file.name, flags: flags, files)
    try files.apply(flags: flags, owner: file.fown, to: descriptor, file.name)
    return descriptor
  }
}

/// The pipes of a frozen job.
struct SavedPipes {
  private struct Ends {
    let facts: DescriptorFacts
    var reader: (process: JobProcess, number: Int32)?
    var hasWriter = false
    var isPacketwise = false
  }

  private struct Key: Hashable {
    let device: UInt64
    let inode: UInt64
  }

  private var pipes: [Key: Ends] = [:]

  /// Notes who holds which end.
  mutating func noteHolder(_ facts: DescriptorFacts) {
    guard facts.fileType == FileKind.pipe, !facts.isPathOnly else { return }
    let key = Key(device: UInt64(facts.status.st_dev), inode: UInt64(facts.status.st_ino))
    var ends = pipes[key] ?? Ends(facts: facts)
    if facts.canRead, ends.reader == nil { ends.reader = (facts.process, facts.number) }
    if facts.canWrite { ends.hasWriter = true }
    if facts.canWrite, facts.flags & O_DIRECT != 0 { ends.isPacketwise = true }
    pipes[key] = ends
  }

  /// Refuses pipes whose other end is held by somebody outside of the job.
  func finish(_ saving: Saving) throws(Failure) {
    var halves: [Ends] = []
    for pipe in pipes.values where (pipe.reader == nil || !pipe.hasWriter) {
      if try Self.hasOtherEnd(pipe.facts) { halves.append(pipe) }
    }
    guard !halves.isEmpty else { return }
    let outsiders = PipeOutsiders(
      of: Set(halves.map(\.facts.link)), job: Set(saving.job.processes.map(\.pid)))
    for pipe in halves.sorted(by: { ($0.facts.process.pid, $0.facts.number) < ($1.facts.process.pid, $1.facts.number) }) {
      refuse(pipe, outsiders.holder(of: pipe.facts.link, reading: pipe.reader == nil), saving)
    }
  }

  private func refuse(_ pipe: Ends, _ holder: String?, _ saving: Saving) {
    let facts = pipe.facts
    let direction = pipe.reader == nil ? "to" : "from"
    if holder == nil, !PipeRoom.recognises(facts) { return }
    // Pipes that came by inheritance from outside of a container are rarely in use, but for the first three.
    if holder == nil, facts.number > 2 {
      saving.log.warning(
        "\(facts.label) of \(facts.process.label) is a pipe \(direction) a process that cannot be seen from here; after a restore nobody will be at its other end")
      return
    }
    let other = holder.map { "\($0), which is not part of the job" } ?? "a process that cannot be seen from here"
    saving.refuse(
      facts.process, "\(facts.label) is a pipe \(direction) \(other) (\(facts.link))",
      advice: "start the job with its input and output in files (</dev/null >out.txt 2>&1), or checkpoint the parent of both")
  }

  /// Whether anybody at all holds the end that nobody in the job has.
  private static func hasOtherEnd(_ facts: DescriptorFacts) throws(Failure) -> Bool {
    let end = try facts.duplicate()
    var request = pollfd(fd: end.number, events: 0, revents: 0)
    guard poll(&request, 1, 0) >= 0 else { return true }
    // POLLERR: nobody reads; POLLHUP: nobody writes any more.
    return Int32(request.revents) & (POLLERR | POLLHUP) == 0
  }

  // MARK: Write

  func write(to image: ImageWriter) throws(Failure) {
    for (_, pipe) in pipes.sorted(by: { $0.key.inode < $1.key.inode }) {
      do throws(Errno) {
        try write(pipe, image)
      } catch { throw Failure("Cannot checkpoint \(pipe.facts.process.label): \(pipe.facts.label), \(pipe.facts.link)", error) }
    }
  }

  private func write(_ pipe: Ends, _ image: ImageWriter) throws(Errno) {
    let holder = pipe.reader ?? (pipe.facts.process, pipe.facts.number)
    let end = try copyDescriptor(holder.number, from: holder.process.handle)
    let size = try end.pipeSize()
    // Nobody can read any more what is in a pipe without a reader.
    let (bytes, packets) = pipe.reader == nil ? ([], []) : try Self.content(end, size: size, pipe.isPacketwise)
    let kind = pipe.facts.link.hasPrefix("pipe:[") ? ImageKind.pipesData : .fifoData
    do {
      try image.append(kind, 0, entry(pipe, count: bytes.count, size: size), raw: bytes)
      for packet in packets { try image.append(.pipePackets, 0, entry(pipe, count: packet, size: size)) }
    } catch { throw .ioError }
  }

  private func entry(_ pipe: Ends, count: Int, size: Int) -> PipeDataEntry {
    .with {
      $0.pipeID = pipe.facts.inode
      $0.bytes = UInt32(count)
      $0.size = UInt32(size)
    }
  }

  /// What is in a pipe, without taking it out, and where packets end.
  private static func content(
    _ end: borrowing Descriptor, size: Int, _ isPacketwise: Bool
  ) throws(Errno) -> (bytes: [UInt8], packets: [Int]) {
    let copy = try Pipe(O_NONBLOCK)
    if try copy.writing.pipeSize() < size { try copy.writing.setPipeSize(size) }
    let count: Int
    do { count = try tee(from: end, to: copy.writing, size) } catch .resourceTemporarilyUnavailable { return ([], []) }
    var bytes = [UInt8](repeating: 0, count: count)
    var packets: [Int] = []
    var done = 0
    while done < count {
      let read = try bytes.withMutableBytes { buffer throws(Errno) in
        // A read ends at the end of a packet.
        try copy.reading.read(into: UnsafeMutableRawBufferPointer(rebasing: buffer[done...]))
      }
      guard read > 0 else { throw .ioError }
      packets.append(read)
      done += read
    }
    return (bytes, isPacketwise ? packets : [])
  }
}

/// Processes outside of the job that hold an end of its pipes.
private struct PipeOutsiders {
  private var readers: [String: String] = [:]
  private var writers: [String: String] = [:]

  init(of links: Set<String>, job: Set<ProcessID>) {
    guard let directory = try? Descriptor.open("/proc", O_RDONLY | O_DIRECTORY),
      let pids = try? numericEntries(of: directory)
    else { return }
    for pid in pids where !job.contains(pid) && pid != getpid() {
      guard let proc = try? ProcDirectory(pid), let numbers = try? proc.numbers(in: "fd") else { continue }
      for number in numbers {
        guard let link = try? proc.link("fd/\(number)"), links.contains(link),
          let status = try? fileStatus("fd/\(number)", followingLink: false, at: proc.directory.number)
        else { continue }
        let name = (try? TaskStatistics(of: proc))?.command ?? "?"
        if status.st_mode & 0o400 != 0 { readers[link] = "\(pid) (\(name))" }
        if status.st_mode & 0o200 != 0 { writers[link] = "\(pid) (\(name))" }
      }
    }
  }

  func holder(of link: String, reading: Bool) -> String? { reading ? readers[link] : writers[link] }
}

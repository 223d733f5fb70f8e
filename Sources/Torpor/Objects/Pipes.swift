import CLinux
import Images
import Linux
import SystemPackage

/// Ends of pipes, and what is in the pipes.
enum PipeRoom: FileRoom {
  static let type = FdTypes.pipe

  static func recognises(_ file: OpenFile) -> Bool { file.type == FileKind.pipe && file.link.hasPrefix("pipe:[") }

  static func save(_ file: OpenFile, id: UInt32, _ saving: Saving) throws(Failure) -> FileEntry? {
    try saving.files.pipes.add(file, saving)
    let owner = try attempt("Cannot look at descriptor \(file.number) of \(file.process.label)") { () throws(Errno) in
      try file.owner()
    }
    let pipe = PipeEntry.with {
      ($0.id, $0.flags, $0.fown) = (id, UInt32(bitPattern: file.flags), owner)
      $0.pipeID = UInt32(truncatingIfNeeded: file.status.st_ino)
    }
    return .with { ($0.type, $0.id, $0.pipe) = (.pipe, id, pipe) }
  }

  static func open(_ entry: FileEntry, _ files: RestoredFiles) throws(Failure) -> Descriptor {
    try files.pipes.open(entry.pipe)
  }
}

/// The pipes of a job that is being saved.
final class SavedPipes {
  private struct Pipe {
    var holder: String
    var number: Int32
    var process: JobProcess
    var hasReader = false
    var hasWriter = false
    var entry = PipeDataEntry()
    var data: [UInt8] = []
  }

  private var pipes: [UInt64: Pipe] = [:]

  /// Notes one end, and on first sight copies what is in the pipe.
  func add(_ file: OpenFile, _ saving: Saving) throws(Failure) {
    let inode = UInt64(file.status.st_ino)
    var pipe = pipes[inode] ?? Pipe(holder: file.process.label, number: file.number, process: file.process)
    switch file.flags & O_ACCMODE {
    case O_RDONLY: pipe.hasReader = true
    case O_WRONLY: pipe.hasWriter = true
    default: (pipe.hasReader, pipe.hasWriter) = (true, true)
    }
    if pipes[inode] == nil {
      try attempt("Cannot read the pipe at descriptor \(file.number) of \(file.process.label)") { () throws(Errno) in
        try copyContent(of: file, into: &pipe)
      }
      // In packet mode the borders between writes matter, and the image has no place for them.
      if file.flags & O_DIRECT != 0, !pipe.data.isEmpty {
        saving.refuse(
          file.process, "descriptor \(file.number) is a pipe in packet mode with data in it",
          advice: "try again when the packets have been read")
      }
    }
    pipes[inode] = pipe
  }

  /// tee(2) copies without consuming, into a pipe of ours of the same size.
  private func copyContent(of file: OpenFile, into pipe: inout Pipe) throws(Errno) {
    // An end for reading of our own, whichever end the job has.
    let path = "fd/\(file.number)"
    let source = try file.process.proc.open(path, O_RDONLY | O_NONBLOCK)
    let size = try systemCall(Int32(SYS_fcntl), Int(source.number), 1032 /* F_GETPIPE_SZ */)
    pipe.entry.pipeID = UInt32(truncatingIfNeeded: file.status.st_ino)
    pipe.entry.size = UInt32(size)
    pipe.entry.bytes = 0
    var ends: [Int32] = [-1, -1]
    guard pipe2(&ends, O_CLOEXEC | O_NONBLOCK) == 0 else { throw Errno(rawValue: clinux_errno()) }
    let reading = Descriptor(owning: ends[0])
    let writing = Descriptor(owning: ends[1])
    try systemCall(Int32(SYS_fcntl), Int(writing.number), 1031 /* F_SETPIPE_SZ */, size)
    let count: Int
    do throws(Errno) {
      count = try systemCall(
        Int32(SYS_tee), Int(source.number), Int(writing.number), size, 2 /* SPLICE_F_NONBLOCK */)
    } catch .resourceTemporarilyUnavailable { return }
    var data = [UInt8](repeating: 0, count: count)
    var done = 0
    while done < count {
      let offset = done
      done += try data.withMutableBytes { bytes throws(Errno) in
        try reading.read(into: UnsafeMutableRawBufferPointer(rebasing: bytes[offset...]))
      }
    }
    pipe.data = data
    pipe.entry.bytes = UInt32(count)
  }

  /// Refuses pipes that somebody outside of the job holds, too. /proc is only searched if a pipe has but one end here.
  func refuseOutsiders(_ saving: Saving) throws(Failure) {
    let halves = pipes.filter { !($0.value.hasReader && $0.value.hasWriter) }
    guard !halves.isEmpty else { return }
    let members = Set(saving.job.processes.map(\.pid))
    let outsiders = try Self.holders(of: Set(halves.keys), except: members)
    for (inode, pipe) in halves.sorted(by: { $0.value.number < $1.value.number }) {
      guard let outsider = outsiders[inode] else { continue }
      saving.refuse(
        pipe.process, "descriptor \(pipe.number) is a pipe to \(outsider), which is not part of the job",
        advice: "start the job with a file in place of the pipe, or checkpoint the process above both")
    }
  }

  private static func holders(of inodes: Set<UInt64>, except members: Set<ProcessID>) throws(Failure) -> [UInt64: String] {
    var result: [UInt64: String] = [:]
    let pids = try attempt("Cannot read /proc") { () throws(Errno) in
      try numericEntries(of: .open("/proc", O_RDONLY | O_DIRECTORY))
    }
    for pid in pids where !members.contains(pid) && pid != getpid() {
      guard let proc = try? ProcDirectory(pid), let numbers = try? proc.numbers(in: "fd") else { continue }
      for number in numbers {
        guard let link = try? proc.link("fd/\(number)"), link.hasPrefix("pipe:["),
          let inode = UInt64(link.dropFirst(6).dropLast()), inodes.contains(inode)
        else { continue }
        result[inode] = "\(pid) (\((try? TaskStatistics(of: proc))?.command ?? "?"))"
      }
    }
    return result
  }

  func write(to image: ImageWriter) throws(Failure) {
    for (_, pipe) in pipes.sorted(by: { $0.key < $1.key }) {
      try image.append(.pipesData, 0, pipe.entry, raw: pipe.data)
    }
  }
}

/// The pipes of a job that is being built. Each end is opened anew from a pipe of ours, so that two ends that were opened
/// apart are two open files again; ours are closed at the end.
final class RestoredPipes {
  private struct Content {
    var size: UInt32
    var data: [UInt8]
  }
  private var contents: [UInt32: Content] = [:]
  private var made: [UInt32: (reading: Int32, writing: Int32)] = [:]

  init(_ image: ImageReader) throws(Failure) {
    guard image.has(.pipesData) else { return }
    var cursor = try image.open(.pipesData)
    while let entry = try cursor.next(PipeDataEntry.self) {
      contents[entry.pipeID] = Content(size: entry.size, data: Array(try cursor.raw(Int(entry.bytes))))
    }
  }

  func open(_ entry: PipeEntry) throws(Failure) -> Descriptor {
    try attempt("Cannot make pipe \(entry.pipeID) of the job") { () throws(Errno) in
      if made[entry.pipeID] == nil { made[entry.pipeID] = try make(entry.pipeID) }
      guard let ends = made[entry.pipeID] else { throw .badFileDescriptor }
      let flags = Int32(bitPattern: entry.flags) & (O_ACCMODE | O_NONBLOCK | O_DIRECT | O_ASYNC)
      let source = flags & O_ACCMODE == O_RDONLY ? ends.reading : ends.writing
      let end = try Descriptor.open("/proc/self/fd/\(source)", flags)
      try end.setOwner(entry.fown)
      return end
    }
  }

  private func make(_ id: UInt32) throws(Errno) -> (reading: Int32, writing: Int32) {
    var ends: [Int32] = [-1, -1]
    guard pipe2(&ends, O_CLOEXEC) == 0 else { throw Errno(rawValue: clinux_errno()) }
    if let content = contents[id] {
      if content.size != 0 {
        try systemCall(Int32(SYS_fcntl), Int(ends[1]), 1031 /* F_SETPIPE_SZ */, Int(content.size))
      }
      var done = 0
      while done < content.data.count {
        let offset = done
        done += try content.data.withBytes { (bytes) throws(Errno) -> Int in
          try systemCall(
            Int32(SYS_write), Int(ends[1]), Int(bitPattern: bytes.baseAddress) + offset, bytes.count - offset)
        }
      }
    }
    return (ends[0], ends[1])
  }

  func closeAll() {
    for ends in made.values {
      close(ends.reading)
      close(ends.writing)
    }
    made = [:]
  }
}

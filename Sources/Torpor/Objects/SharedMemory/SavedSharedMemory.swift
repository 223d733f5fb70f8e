import CLinux
import Images
import Linux
import SystemPackage

/// The shared memory of a frozen job, each segment once.
struct SavedSharedMemory {
  private struct Identity: Hashable {
    let device: UInt64
    let inode: UInt64
  }

  private struct Segment {
    var entry: MemfdInodeEntry
    let process: JobProcess
    /// A link in the process's /proc that leads to it.
    let link: String
  }

  private struct Access: Hashable {
    let inode: UInt32
    let flags: UInt32
  }

  /// The content of one segment.
  struct Content {
    let id: UInt64
    let name: String
    let source: FilePages
    let runs: [PageRun]
    var bytes: UInt64 { runs.reduce(0) { $0 + $1.range.count } }
  }

  private var segments: [Segment] = []
  private var known: [Identity: UInt32] = [:]
  /// The entries in files.img by which mappings refer to segments.
  private var files: [Access: UInt32] = [:]

  /// The ID of the file under a mapping of shared memory.
  ///
  /// - Parameter flags: how it was open: O_RDONLY or O_RDWR.
  mutating func mapped(
    _ process: JobProcess, _ area: MemoryArea, _ flags: UInt32, _ saving: Saving
  ) throws(Failure) -> UInt32 {
    let status = try attempt(
      "Cannot look at the shared memory at \(MemoryRoom.hex(area.range.start)) of \(process.label)",
      advice: "run torpor as root, or with the capability CAP_CHECKPOINT_RESTORE"
    ) { () throws(Errno) in try fileStatus(area.link, at: process.proc.directory.number) }
    let inode = try inode(process, link: area.link, name: area.name, status: status)
    if let id = files[Access(inode: inode, flags: flags)] { return id }
    let id = saving.files.newID()
    saving.files.add(
      .with {
        ($0.type, $0.id) = (.memfd, id)
        $0.memfd = .with { ($0.id, $0.flags, $0.pos, $0.fown, $0.inodeID) = (id, flags, 0, .none, inode) }
      })
    files[Access(inode: inode, flags: flags)] = id
    return id
  }

  /// The number of a segment, which is met for the first time or not.
  mutating func inode(
    _ process: JobProcess, link: String, name: String, status: stat
  ) throws(Failure) -> UInt32 {
    let identity = Identity(device: UInt64(status.st_dev), inode: UInt64(status.st_ino))
    if let id = known[identity] { return id }
    let id = UInt32(segments.count + 1)
    let seals = try attempt("Cannot look at \(name) of \(process.label)") { () throws(Errno) in
      let file = try process.proc.open(link)
      return try systemCall(Int32(SYS_fcntl), Int(file.number), 1034 /* F_GET_SEALS */)
    }
    let entry = MemfdInodeEntry.with {
      $0.name = SharedMemory.name(name)
      ($0.uid, $0.gid, $0.mode) = (status.st_uid, status.st_gid, status.st_mode)
      $0.size = UInt64(status.st_size)
      ($0.shmid, $0.inodeID, $0.seals) = (id, UInt64(id), UInt32(seals))
    }
    segments.append(Segment(entry: entry, process: process, link: link))
    known[identity] = id
    return id
  }

  /// Memory that somebody outside of the job sees too would not be shared any more after a restore.
  func refuseOutsiders(_ saving: Saving) {
    guard !segments.isEmpty, let processes = try? numericEntries(of: .open("/proc", O_RDONLY | O_DIRECTORY)) else { return }
    let inside = Set(saving.job.processes.map(\.pid))
    for pid in processes where !inside.contains(pid) {
      guard let proc = try? ProcDirectory(pid), let areas = try? readMemoryMap(of: proc, withFlags: false) else { continue }
      for area in areas where SharedMemory.isUnder(area) {
        let device = clinux_makedev(area.deviceMajor, area.deviceMinor)
        guard let id = known[Identity(device: device, inode: area.inode)] else { continue }
        let segment = segments[Int(id) - 1]
        let name = (try? TaskStatistics(of: proc))?.command ?? "?"
        saving.refuse(
          segment.process, "it shares memory (\(segment.entry.name)) with \(pid) (\(name)), which is not part of the job",
          advice: "checkpoint the process above both")
        break
      }
    }
  }

  // MARK: Write

  /// What is in all segments. The files stay open until it is gone.
  func contents() throws(Failure) -> [Content] {
    var result: [Content] = []
    for segment in segments {
      let content = try attempt("Cannot read shared memory \(segment.entry.name) of \(segment.process.label)") {
        () throws(Errno) in
        let source = FilePages(try segment.process.proc.open(segment.link))
        return Content(
          id: UInt64(segment.entry.shmid), name: segment.entry.name, source: source, runs: try source.runs())
      }
      result.append(content)
    }
    return result
  }

  /// Writes memfd.img.
  func write(to image: ImageWriter) throws(Failure) {
    if !segments.isEmpty { try image.write(.memfd, all: segments.map(\.entry)) }
  }
}

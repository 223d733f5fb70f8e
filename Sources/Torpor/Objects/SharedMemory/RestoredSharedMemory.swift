import CLinux
import Images
import Linux
import SystemPackage

/// The shared memory of a job that is being built: each segment is made once, here, and dealt to every process that maps
/// it or has a descriptor of it.
final class RestoredSharedMemory {
  /// How mappings and descriptors refer to a segment.
  enum Key: Hashable {
    /// A file in memory, or shared anonymous memory as CRIU 4.2 and Torpor write it.
    case inode(UInt64)
    /// Shared anonymous memory as older versions of CRIU wrote it.
    case anonymous(UInt64)
  }

  private struct Segment {
    var entry: MemfdInodeEntry
    var pages = PageMap()
    var file: Int32 = -1
    var isAnonymous: Bool { entry.name == SharedMemory.anonymousName }
  }

  private let image: ImageReader
  private var segments: [Key: Segment] = [:]
  private var order: [Key] = []

  init(_ image: ImageReader) throws(Failure) {
    self.image = image
    for entry in try image.readAll(.memfd, as: MemfdInodeEntry.self) { add(.inode(entry.inodeID), entry) }
  }

  deinit { for segment in segments.values where segment.file >= 0 { close(segment.file) } }

  private func add(_ key: Key, _ entry: MemfdInodeEntry) {
    if segments.updateValue(Segment(entry: entry), forKey: key) == nil { order.append(key) }
  }

  func has(_ key: Key) -> Bool { segments[key] != nil }

  /// Takes notice of a mapping of shared anonymous memory that no entry describes: the farthest one tells its size.
  func note(_ area: VmaEntry) throws(Failure) {
    let (end, overflow) = area.pgoff.addingReportingOverflow(area.count)
    guard !overflow, end <= highestAddress else { throw damaged("shared memory \(area.shmid) is too large") }
    let key = Key.anonymous(area.shmid)
    guard segments[key] == nil else {
      if let size = segments[key]?.entry.size, size < end { segments[key]?.entry.size = end }
      return
    }
    add(
      key,
      .with {
        ($0.name, $0.size, $0.seals, $0.inodeID) = (SharedMemory.anonymousName, end, SharedMemory.Seal.seal, 0)
        ($0.uid, $0.gid) = (geteuid(), getegid())
        $0.shmid = UInt32(truncatingIfNeeded: area.shmid)
      })
  }

  private func damaged(_ why: String) -> Failure {
    Failure(
      .badImage, "Cannot restore \(image.path)", why: why, advice: "use another image, or a good copy of this one")
  }

  /// Checks sizes, and that all pages are there. To be called after every `note`.
  func check() throws(Failure) {
    for key in order {
      guard let entry = segments[key]?.entry else { continue }
      guard entry.size <= highestAddress, !entry.hasHugetlbFlag else {
        throw damaged("shared memory \(entry.name) is of a size or kind that cannot be restored")
      }
      guard entry.size > 0, image.has(.sharedPagemap, UInt64(entry.shmid)) else { continue }
      let pages = try PageMap(image, .sharedPagemap, UInt64(entry.shmid), limit: entry.size.pageCeiling)
      try pages.checkLength(image)
      segments[key]?.pages = pages
    }
  }

  // MARK: Make

  /// Makes and fills every segment.
  func makeAll() throws(Failure) {
    for key in order {
      guard let segment = segments[key] else { continue }
      segments[key]?.file = try attempt("Cannot restore shared memory \(segment.entry.name)") { () throws(Errno) in
        try make(segment).release()
      }
      // This seal cannot be set while there are mappings that could be made writable, as those of the job would be.
      if segment.entry.seals & SharedMemory.Seal.write != 0 { try seal(key) }
    }
  }

  private func make(_ segment: Segment) throws(Errno) -> Descriptor {
    let size = Int(segment.entry.size.pageCeiling)
    if segment.isAnonymous, size > 0 {
      // A file that is made by mapping has no descriptor but through the mapping.
      let memory = try map(size, Int32(MAP_ANONYMOUS), -1)
      defer { munmap(memory.baseAddress, size) }
      if let file = try? Self.file(under: memory) {
        try fill(memory, segment.pages)
        return file
      }
    }
    let sealing = segment.entry.seals == SharedMemory.Seal.seal ? 0 : UInt32(MFD_ALLOW_SEALING)
    let number = memfd_create(segment.entry.name, UInt32(MFD_CLOEXEC) | sealing)
    guard number >= 0 else { throw Errno(rawValue: clinux_errno()) }
    let file = Descriptor(owning: number)
    guard ftruncate(number, Int(segment.entry.size)) == 0 else { throw Errno(rawValue: clinux_errno()) }
    if !segment.pages.runs.isEmpty {
      let memory = try map(size, 0, number)
      defer { munmap(memory.baseAddress, size) }
      try fill(memory, segment.pages)
    }
    guard fchown(number, segment.entry.uid, segment.entry.gid) == 0,
      !segment.entry.hasMode || fchmod(number, segment.entry.mode & 0o7777) == 0
    else { throw Errno(rawValue: clinux_errno()) }
    return file
  }

  private func map(_ size: Int, _ flags: Int32, _ file: Int32) throws(Errno) -> UnsafeMutableRawBufferPointer {
    let address = try systemCall(
      Int32(SYS_mmap), 0, size, Int(PROT_READ | PROT_WRITE), Int(MAP_SHARED | flags | Int32(MAP_NORESERVE)), Int(file), 0)
    return UnsafeMutableRawBufferPointer(start: UnsafeMutableRawPointer(bitPattern: address), count: size)
  }

  private static func file(under memory: UnsafeMutableRawBufferPointer) throws(Errno) -> Descriptor {
    let start = UInt(bitPattern: memory.baseAddress)
    let name = "\(String(start, radix: 16))-\(String(start + UInt(memory.count), radix: 16))"
    return try .open("/proc/self/map_files/\(name)", O_RDWR)
  }

  /// Reads all pages, many runs at a time.
  private func fill(_ memory: UnsafeMutableRawBufferPointer, _ pages: PageMap) throws(Errno) {
    guard !pages.runs.isEmpty, let start = memory.baseAddress else { return }
    let file = try image.openFile(ImageKind.pagesFileName(pages.pagesID))
    var offset = 0
    for run in pages.runs {
      let part = UnsafeMutableRawBufferPointer(start: start + Int(run.start), count: Int(run.count))
      guard try file.read(into: part, at: offset) == part.count else { throw .ioError }
      offset += part.count
    }
  }

  /// Sets the seals that would have been in the way of making mappings.
  func sealAll() throws(Failure) {
    for key in order {
      if let seals = segments[key]?.entry.seals, seals & SharedMemory.Seal.write == 0 { try seal(key) }
    }
  }

  private func seal(_ key: Key) throws(Failure) {
    guard let segment = segments[key], segment.entry.seals != SharedMemory.Seal.seal, segment.entry.seals != 0 else { return }
    try attempt("Cannot seal shared memory \(segment.entry.name)") { () throws(Errno) in
      _ = try systemCall(Int32(SYS_fcntl), Int(segment.file), 1033 /* F_ADD_SEALS */, Int(segment.entry.seals))
    }
  }

  // MARK: Open

  /// A new open file of a segment that has been made.
  func open(_ key: Key, _ flags: Int32) throws(Failure) -> Descriptor {
    guard let segment = segments[key], segment.file >= 0 else { throw damaged("a mapping is of shared memory that is not there") }
    return try attempt("Cannot open shared memory \(segment.entry.name)") { () throws(Errno) in
      try .open("/proc/self/fd/\(segment.file)", flags)
    }
  }
}

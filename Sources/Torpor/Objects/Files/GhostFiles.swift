import CLinux
import Images
import Linux
import SystemPackage

/// Regular files that have no name any more: the image keeps their content.
struct SavedGhosts {
  /// Larger ones are refused: they are rather data than what a program has left open.
  static let sizeLimit: Int64 = 64 << 20
  /// From this size on content is kept in pieces, so that holes stay holes.
  private static let pieceThreshold: Int64 = 12288
  private static let largestPiece = 1 << 20

  private struct Key: Hashable {
    let device: UInt64
    let inode: UInt64
  }

  private struct Ghost {
    let id: UInt32
    let process: JobProcess
    /// Its link below /proc/PID.
    let link: String
    let name: String
    let status: stat
  }

  private var ghosts: [Key: Ghost] = [:]
  private var remaps: [RemapFilePathEntry] = []

  /// Whether a file can be kept this way.
  static func canKeep(_ status: stat, _ path: String) -> Bool {
    status.kind == FileKind.regular && status.st_nlink == 0 && Int64(status.st_size) <= sizeLimit
      && path.hasPrefix("/") && path.hasSuffix(FileName.deletedMark)
  }

  /// Notes that file `fileID` is one without a name.
  ///
  /// - Parameter link: where it can be opened, below the directory of `process` in /proc.
  /// - Returns: the name that it had.
  mutating func add(
    _ fileID: UInt32, _ path: String, _ status: stat, _ process: JobProcess, link: String, newID: () -> UInt32
  ) -> String {
    let name = String(path.dropLast(FileName.deletedMark.count))
    let key = Key(device: UInt64(status.st_dev), inode: UInt64(status.st_ino))
    let ghost = ghosts[key] ?? Ghost(id: newID(), process: process, link: link, name: name, status: status)
    ghosts[key] = ghost
    remaps.append(
      .with {
        $0.origID = fileID
        $0.remapID = ghost.id
        $0.remapType = .ghost
      })
    return name
  }

  // MARK: Write

  func write(to image: ImageWriter) throws(Failure) {
    guard !remaps.isEmpty else { return }
    try image.write(.remappedPaths, all: remaps)
    for ghost in ghosts.values.sorted(by: { $0.id < $1.id }) {
      let what = "Cannot checkpoint \(ghost.process.label): the deleted file \(ghost.name)"
      let file = try attempt(what) { () throws(Errno) in try ghost.process.proc.open(ghost.link) }
      let size = Int64(ghost.status.st_size)
      guard size >= Self.pieceThreshold else {
        let bytes = try attempt(what) { () throws(Errno) in try Self.read(file, 0, Int(size)) }
        try image.append(.ghostFile, UInt64(ghost.id), Self.entry(ghost.status, inPieces: false), raw: bytes)
        continue
      }
      try image.append(.ghostFile, UInt64(ghost.id), Self.entry(ghost.status, inPieces: true))
      try writePieces(of: file, size, UInt64(ghost.id), image, what)
    }
  }

  private func writePieces(
    of file: borrowing Descriptor, _ size: Int64, _ id: UInt64, _ image: ImageWriter, _ what: String
  ) throws(Failure) {
    var offset: Int64 = 0
    while offset < size, let data = Self.seek(file, offset, 3 /* SEEK_DATA */), data < size {
      let end = min(Self.seek(file, data, 4 /* SEEK_HOLE */) ?? size, size)
      offset = data
      while offset < end {
        let count = min(Int(end - offset), Self.largestPiece)
        let start = Int(offset)
        let bytes = try attempt(what) { () throws(Errno) in try Self.read(file, start, count) }
        let piece = GhostChunkEntry.with { ($0.len, $0.off) = (UInt64(count), UInt64(start)) }
        try image.append(.ghostFile, id, piece, raw: bytes)
        offset += Int64(count)
      }
    }
  }

  /// nil where there is no data, or no hole, behind `offset`.
  private static func seek(_ file: borrowing Descriptor, _ offset: Int64, _ whence: Int) -> Int64? {
    let result = try? systemCall(Int32(SYS_lseek), Int(file.number), Int(offset), whence)
    return result.map { Int64($0) }
  }

  private static func read(_ file: borrowing Descriptor, _ offset: Int, _ count: Int) throws(Errno) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: count)
    let read = try bytes.withMutableBytes { buffer throws(Errno) in try file.read(into: buffer, at: offset) }
    guard read == count else { throw .ioError }
    return bytes
  }

  private static func entry(_ status: stat, inPieces: Bool) -> GhostFileEntry {
    func time(_ value: timespec) -> Timeval {
      .with { ($0.tvSec, $0.tvUsec) = (UInt64(bitPattern: Int64(value.tv_sec)), UInt64(value.tv_nsec / 1000)) }
    }
    return .with {
      ($0.uid, $0.gid, $0.mode) = (status.st_uid, status.st_gid, status.st_mode)
      ($0.dev, $0.ino) = (UInt32(truncatingIfNeeded: kernelDevice(UInt64(status.st_dev))), UInt64(status.st_ino))
      ($0.atim, $0.mtim) = (time(status.st_atim), time(status.st_mtim))
      if inPieces { ($0.chunks, $0.size) = (true, UInt64(status.st_size)) }
    }
  }
}

/// Files without a name of a job that is being built.
struct RestoredGhosts {
  private let image: ImageReader
  /// The number of the content, by that of the file.
  private let contents: [UInt32: UInt32]
  private var made: [UInt32: Int32] = [:]

  init(_ image: ImageReader) throws(Failure) {
    self.image = image
    var contents: [UInt32: UInt32] = [:]
    for entry in try image.readAll(.remappedPaths, as: RemapFilePathEntry.self) {
      guard entry.hasRemapType, entry.remapType == .ghost else {
        throw Failure(
          .cannotRestore, "Cannot restore \(image.path)",
          why: "file \(entry.origID) has no name and is kept in a way (\(entry.remapType)) that torpor does not know",
          advice: "use the program that made the image")
      }
      contents[entry.origID] = entry.remapID
    }
    self.contents = contents
  }

  func has(_ fileID: UInt32) -> Bool { contents[fileID] != nil }

  /// Whether the content is there, and the directory that it goes into.
  func check(_ fileID: UInt32, _ path: String) throws(Failure) {
    guard let id = contents[fileID] else { return }
    _ = try image.open(.ghostFile, UInt64(id))
    let directory = Self.directory(of: path)
    if (try? fileStatus(directory))?.kind == FileKind.directory { return }
    throw Failure(
      .cannotRestore, "Cannot restore \(image.path)",
      why: "the directory \(directory), where the job has a deleted file open, is missing", advice: "make it")
  }

  /// Opens the file; the first time it is made.
  mutating func open(_ fileID: UInt32, _ path: String, flags: Int32) throws(Failure) -> Descriptor? {
    guard let id = contents[fileID] else { return nil }
    let number: Int32
    if let known = made[id] {
      number = known
    } else {
      number = try make(id, path).release()
      made[id] = number
    }
    return try attempt("Cannot restore \(image.path): the deleted file \(path)") { () throws(Errno) in
      try Descriptor.open("/proc/self/fd/\(number)", flags)
    }
  }

  private static func directory(of path: String) -> String {
    let slash = path.lastIndex(of: "/") ?? path.startIndex
    return slash == path.startIndex ? "/" : String(path[..<slash])
  }

  /// A file without a name on the same file system, with content, owner and times as it had.
  private func make(_ id: UInt32, _ path: String) throws(Failure) -> Descriptor {
    let directory = Self.directory(of: path)
    let what = "Cannot restore \(image.path): the deleted file \(path)"
    var cursor = try image.open(.ghostFile, UInt64(id))
    guard let entry = try cursor.next(GhostFileEntry.self), entry.mode & FileKind.mask == FileKind.regular else {
      throw Failure(.cannotRestore, what, why: "it is not a regular file", advice: "use the program that made the image")
    }
    let file = try attempt(what) { () throws(Errno) in try Self.create(path, directory) }
    if entry.chunks {
      while let piece = try cursor.next(GhostChunkEntry.self) {
        guard piece.off <= entry.size, piece.len <= entry.size - piece.off else {
          throw Failure(.badImage, what, why: "a piece of it lies behind its end", advice: "use another image")
        }
        let bytes = Array(try cursor.raw(Int(piece.len)))
        try attempt(what) { () throws(Errno) in
          try bytes.withBytes { bytes throws(Errno) in try file.write(bytes, at: Int(piece.off)) }
        }
      }
    } else {
      let bytes = Array(try cursor.raw(cursor.bytesLeft))
      try attempt(what) { () throws(Errno) in
        try bytes.withBytes { bytes throws(Errno) in try file.write(bytes, at: 0) }
      }
    }
    // Kept without write access, for a program that somebody may write to cannot be run.
    return try attempt(what) { () throws(Errno) in
      try Self.finish(file, entry)
      return try Descriptor.open("/proc/self/fd/\(file.number)", O_PATH)
    }
  }

  /// An empty file that has no name any more; what its name was is still to be seen in /proc, unless it is taken.
  private static func create(_ path: String, _ directory: String) throws(Errno) -> Descriptor {
    if let file = try? Descriptor.open(path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW) {
      unlink(path)
      return file
    }
    return try Descriptor.open(directory, O_TMPFILE | O_RDWR)
  }

  private static func finish(_ file: borrowing Descriptor, _ entry: GhostFileEntry) throws(Errno) {
    if entry.chunks { try systemCall(Int32(SYS_ftruncate), Int(file.number), Int(entry.size)) }
    let status = try file.status()
    if status.st_uid != entry.uid || status.st_gid != entry.gid {
      try systemCall(Int32(SYS_fchown), Int(file.number), Int(entry.uid), Int(entry.gid))
    }
    try systemCall(Int32(SYS_fchmod), Int(file.number), Int(entry.mode & 0o7777))
    guard entry.hasAtim, entry.hasMtim else { return }
    func time(_ value: Timeval) -> timespec {
      timespec(tv_sec: Int(truncatingIfNeeded: value.tvSec), tv_nsec: Int(truncatingIfNeeded: value.tvUsec) * 1000)
    }
    var times = (time(entry.atim), time(entry.mtim))
    let number = file.number
    try withUnsafeMutableBytes(of: &times) { bytes throws(Errno) in
      _ = try systemCall(Int32(SYS_utimensat), Int(number), 0, Int(bitPattern: bytes.baseAddress), 0)
    }
  }

  mutating func closeAll() {
    for number in made.values { close(number) }
    made = [:]
  }
}

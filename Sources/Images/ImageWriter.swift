import CLinux
import Linux
import SwiftProtobuf
import Synchronization
import SystemPackage

/// An image directory that is being written, beside its final place; `commit` puts it there, complete and on disk.
///
/// Until then it has the name `.NAME.partial-PID`, and it is removed again at the end of the value's life.
public final class ImageWriter {
  public let path: String
  private let partialPath: String
  private let parent: Descriptor
  private let directory: Descriptor
  private let ledger = Ledger()
  /// Writes small files while the next are being made ready: creating one takes the file system longer than filling it.
  private var scribe: Worker?
  private var written = 0
  private var streams: [String: [UInt8]] = [:]
  private var isCommitted = false

  /// Makes the directory, mode 0700.
  ///
  /// - Throws: where `path` exists, or cannot be made.
  public init(at path: String) throws(Failure) {
    var trimmed = path
    while trimmed.count > 1, trimmed.hasSuffix("/") { trimmed.removeLast() }
    self.path = trimmed
    let slash = trimmed.lastIndex(of: "/")
    let name = slash.map { String(trimmed[trimmed.index(after: $0)...]) } ?? trimmed
    let parentPath = slash.map { $0 == trimmed.startIndex ? "/" : String(trimmed[..<$0]) } ?? "."
    let partial = (parentPath == "/" ? "/" : parentPath + "/") + ".\(name).partial-\(getpid())"
    partialPath = partial
    if (try? fileStatus(trimmed, followingLink: false)) != nil {
      throw Failure(
        .badRequest, "Cannot write the image \(trimmed)", why: "it exists already",
        advice: "remove it or choose another name with --output")
    }
    let advice = "choose a directory you can write to with --output"
    parent = try attempt("Cannot write the image \(trimmed): the directory \(parentPath)", advice: advice) {
      () throws(Errno) in try Descriptor.open(parentPath, O_RDONLY | O_DIRECTORY)
    }
    guard mkdir(partial, 0o700) == 0 else {
      throw Failure("Cannot write the image \(trimmed)", Errno(rawValue: clinux_errno()), advice: advice)
    }
    directory = try attempt("Cannot write the image \(trimmed)") { () throws(Errno) in
      try Descriptor.open(partial, O_RDONLY | O_DIRECTORY)
    }
  }

  deinit {
    try? scribe?.wait()
    if !isCommitted { removeDirectory(partialPath) }
  }

  /// From so many files on it pays to start a thread for them.
  private static let manyFiles = 24

  // MARK: Content

  /// Writes a file of one entry.
  public func write(_ kind: ImageKind, _ id: UInt64 = 0, _ entry: some Message) throws(Failure) {
    var bytes = Self.header(of: kind)
    try Self.append(entry, to: &bytes, kind.fileName(id))
    try writeFile(kind.fileName(id), bytes)
  }

  /// Writes a file of many entries.
  public func write(_ kind: ImageKind, _ id: UInt64 = 0, all entries: some Sequence<some Message>) throws(Failure) {
    var bytes = Self.header(of: kind)
    for entry in entries { try Self.append(entry, to: &bytes, kind.fileName(id)) }
    try writeFile(kind.fileName(id), bytes)
  }

  /// Writes a file of one entry that is followed by many of another kind.
  public func write(
    _ kind: ImageKind, _ id: UInt64 = 0, head: some Message, all entries: some Sequence<some Message>
  ) throws(Failure) {
    var bytes = Self.header(of: kind)
    try Self.append(head, to: &bytes, kind.fileName(id))
    for entry in entries { try Self.append(entry, to: &bytes, kind.fileName(id)) }
    try writeFile(kind.fileName(id), bytes)
  }

  /// Adds an entry, and the raw bytes that belong to it, to a file that is written at the commit.
  public func append(
    _ kind: ImageKind, _ id: UInt64 = 0, _ entry: some Message, raw: [UInt8] = []
  ) throws(Failure) {
    let name = kind.fileName(id)
    var bytes = streams.removeValue(forKey: name) ?? Self.header(of: kind)
    try Self.append(entry, to: &bytes, name)
    bytes.append(contentsOf: raw)
    streams[name] = bytes
  }

  /// Writes a file that `append` has gathered, before the commit would.
  public func finish(_ kind: ImageKind, _ id: UInt64 = 0) throws(Failure) {
    let name = kind.fileName(id)
    if let bytes = streams.removeValue(forKey: name) { try writeFile(name, bytes) }
  }

  private static func header(of kind: ImageKind) -> [UInt8] {
    var bytes: [UInt8] = []
    if kind.hasCommonMagic { bytes.append(word: ImageKind.commonMagic) }
    bytes.append(word: kind.magic)
    return bytes
  }

  private static func append(_ entry: some Message, to bytes: inout [UInt8], _ name: String) throws(Failure) {
    do {
      let body: [UInt8] = try entry.serializedBytes()
      bytes.append(word: UInt32(body.count))
      bytes.append(contentsOf: body)
    } catch { throw Failure("Cannot write \(name)", why: "\(error)") }
  }

  /// Writes a whole file of the image. An error may come later, with the commit at the latest.
  public func writeFile(_ name: String, _ bytes: [UInt8]) throws(Failure) {
    let file = WholeFile(name: name, bytes: bytes, image: path, directory: directory.number)
    written += 1
    guard written > Self.manyFiles else { return try file.write(ledger) }
    if scribe == nil { scribe = Worker() }
    let ledger = ledger
    scribe?.submit { () throws(Failure) in try file.write(ledger) }
  }

  /// - Throws: where the file system has no room for so many bytes more.
  public func checkRoom(for bytes: UInt64) throws(Failure) {
    var facts = statfs()
    guard fstatfs(directory.number, &facts) == 0 else { return }
    let free = UInt64(facts.f_bfree) * UInt64(facts.f_bsize)
    guard free < bytes else { return }
    throw Failure(
      "Cannot write the image \(path)",
      why: "it needs \(bytes >> 20) MiB, and the file system has \(free >> 20) MiB free",
      advice: "free some space or choose another place with --output")
  }

  /// Creates a file for a writer who keeps its digest and tells it with `record`.
  public func create(_ name: String) throws(Failure) -> Descriptor {
    try WholeFile.create(name, image: path, directory: directory.number)
  }

  /// Enters a file into the manifest.
  public func record(_ name: String, size: UInt64, digest: String) { ledger.record(name, size: size, digest: digest) }

  // MARK: Commit

  /// Brings everything to disk, writes the manifest, and gives the directory its name.
  ///
  /// - Returns: the size of all files in bytes.
  @discardableResult
  public func commit(_ manifest: Manifest) throws(Failure) -> UInt64 {
    for (name, bytes) in streams.sorted(by: { $0.key < $1.key }) { try writeFile(name, bytes) }
    streams = [:]
    try scribe?.wait()
    var manifest = manifest
    manifest.files = ledger.files()
    let text: [UInt8]
    do { text = try manifest.jsonUTF8Bytes() } catch { throw Failure("Cannot write \(path)", why: "\(error)") }
    // The rest must be on disk before the file that says so, and that before the name. One syncfs(2) brings all files
    // to disk together, where an fsync(2) of each would wait for the journal each time.
    try synchronize()
    try WholeFile(name: manifestName, bytes: text + [0x0a], image: path, directory: directory.number).write(ledger)
    try synchronize()
    let renamed = partialPath.withCString { from in
      path.withCString { to in
        clinux_syscall(
          Int(SYS_renameat2), Int(AT_FDCWD), UnsafeRawPointer(from).word, Int(AT_FDCWD), UnsafeRawPointer(to).word,
          1 /* RENAME_NOREPLACE */, 0)
      }
    }
    guard renamed == 0 else {
      throw Failure("Cannot write the image \(path)", Errno(rawValue: CInt(-renamed)))
    }
    isCommitted = true
    try attempt("Cannot write the image \(path)") { () throws(Errno) in try parent.synchronize() }
    return ledger.files().reduce(0) { $0 + $1.size }
  }

  private func synchronize() throws(Failure) {
    try attempt("Cannot write the image \(path)", advice: "free some space or choose another place with --output") {
      () throws(Errno) in _ = try systemCall(Int32(SYS_syncfs), Int(directory.number))
    }
  }
}

/// The files that are in an image, told by whichever thread has written them.
private final class Ledger: Sendable {
  private let entries = Mutex<[ManifestFile]>([])

  func record(_ name: String, size: UInt64, digest: String) {
    let entry = ManifestFile.with { ($0.name, $0.size, $0.xxh3) = (name, size, digest) }
    entries.withLock { $0.append(entry) }
  }

  func files() -> [ManifestFile] { entries.withLock { $0 }.sorted { $0.name < $1.name } }
}

/// A file whose whole content is there.
private struct WholeFile: Sendable {
  let name: String
  let bytes: [UInt8]
  /// For messages.
  let image: String
  let directory: Int32

  func write(_ ledger: Ledger) throws(Failure) {
    let file = try Self.create(name, image: image, directory: directory)
    try attempt("Cannot write \(image)/\(name)", advice: "free some space or choose another place with --output") {
      () throws(Errno) in try bytes.withBytes { bytes throws(Errno) in try file.write(bytes) }
    }
    ledger.record(name, size: UInt64(bytes.count), digest: bytes.withBytes { Digest.of($0) })
  }

  static func create(_ name: String, image: String, directory: Int32) throws(Failure) -> Descriptor {
    try attempt("Cannot write \(image)/\(name)") { () throws(Errno) in
      try Descriptor.open(name, O_RDWR | O_CREAT | O_EXCL, mode: 0o600, at: directory)
    }
  }
}

/// The name of Torpor's own file in an image directory.
let manifestName = "torpor.json"

extension [UInt8] {
  mutating func append(word: UInt32) {
    Swift.withUnsafeBytes(of: word.littleEndian) { append(contentsOf: $0) }
  }
}

/// Removes a directory of plain files, as an image is.
public func removeDirectory(_ path: String) {
  for name in namesOfFiles(in: path) { unlink("\(path)/\(name)") }
  rmdir(path)
}

/// The names of all files in a directory of plain files.
func namesOfFiles(in path: String) -> [String] {
  guard let directory = opendir(path) else { return [] }
  defer { closedir(directory) }
  var names: [String] = []
  while let entry = readdir(directory) {
    let name = withUnsafeBytes(of: entry.pointee.d_name) { bytes in
      String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
    }
    if name != ".", name != ".." { names.append(name) }
  }
  return names
}

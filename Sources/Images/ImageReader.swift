import CLinux
import Linux
import SwiftProtobuf
import SystemPackage

/// An image directory to read. What it says is not trusted: lengths are checked against the file before anything is
/// allocated for them.
public final class ImageReader {
  public let path: String
  private let directory: Descriptor
  /// What `torpor.json` says; nil for an image that CRIU wrote.
  public let manifest: Manifest?

  /// The newest version of the manifest that this reader understands.
  public static let version: UInt32 = 1
  /// No image but the raw ones is larger; a mapping takes about 40 bytes, so this is enough for millions.
  private static let sizeLimit = 1 << 30

  /// Opens the directory and reads its manifest.
  public init(at path: String) throws(Failure) {
    self.path = path
    do {
      directory = try Descriptor.open(path, O_RDONLY | O_DIRECTORY)
    } catch {
      throw Failure(.badImage, "Cannot read the image \(path)", why: error.words, advice: "give the image's directory")
    }
    manifest = try Self.readManifest(directory, path)
  }

  private static func readManifest(_ directory: borrowing Descriptor, _ path: String) throws(Failure) -> Manifest? {
    let text: [UInt8]
    do { text = try readWholeFile(manifestName, at: directory.number) } catch .noSuchFileOrDirectory {
      return nil
    } catch { throw Failure("Cannot read \(path)/\(manifestName)", error) }
    var options = JSONDecodingOptions()
    options.ignoreUnknownFields = true
    let manifest: Manifest
    do { manifest = try Manifest(jsonUTF8Bytes: text, options: options) } catch {
      throw damaged(path, manifestName, "it is not the JSON that it should be")
    }
    guard manifest.version <= version else {
      throw Failure(
        .badImage, "Cannot read the image \(path)",
        why: "it has format version \(manifest.version), and this torpor knows \(version) at most",
        advice: "use torpor \(manifest.torpor) or newer")
    }
    guard manifest.version > 0 else { throw damaged(path, manifestName, "it has no version") }
    return manifest
  }

  static func damaged(_ path: String, _ name: String, _ why: String) -> Failure {
    Failure(
      .badImage, "Cannot read the image \(path)", why: "\(name) is damaged: \(why)",
      advice: "use another image, or a good copy of this one")
  }

  private func damaged(_ name: String, _ why: String) -> Failure { Self.damaged(path, name, why) }

  // MARK: Content

  /// Whether the image has a file of this kind.
  public func has(_ kind: ImageKind, _ id: UInt64 = 0) -> Bool {
    (try? fileStatus(kind.fileName(id), followingLink: false, at: directory.number)) != nil
  }

  /// The only entry of a file.
  public func read<Entry: Message>(_ kind: ImageKind, _ id: UInt64 = 0, as type: Entry.Type = Entry.self)
    throws(Failure) -> Entry
  {
    let name = kind.fileName(id)
    var cursor = try open(kind, id)
    guard let entry = try cursor.next(type) else { throw damaged(name, "it has no entry") }
    return entry
  }

  /// Every entry of a file; none where there is no such file.
  public func readAll<Entry: Message>(_ kind: ImageKind, _ id: UInt64 = 0, as type: Entry.Type = Entry.self)
    throws(Failure) -> [Entry]
  {
    guard has(kind, id) else { return [] }
    var cursor = try open(kind, id)
    var entries: [Entry] = []
    while let entry = try cursor.next(type) { entries.append(entry) }
    return entries
  }

  /// A cursor before the first entry of a file.
  public func open(_ kind: ImageKind, _ id: UInt64 = 0) throws(Failure) -> EntryCursor {
    let name = kind.fileName(id)
    var cursor = EntryCursor(bytes: try content(of: name), path: path, name: name)
    var first = cursor.word()
    if first == ImageKind.commonMagic { first = cursor.word() }
    guard first == kind.magic else { throw damaged(name, "it does not start with its magic number") }
    return cursor
  }

  private func content(of name: String) throws(Failure) -> [UInt8] {
    do throws(Errno) {
      let file = try openFile(name)
      let size = Int(try file.status().st_size)
      guard size <= Self.sizeLimit else { throw Errno.fileTooLarge }
      var bytes = [UInt8](repeating: 0, count: size)
      let count = try bytes.withMutableBytes { buffer throws(Errno) in try file.read(into: buffer, at: 0) }
      if count < size { bytes.removeLast(size - count) }
      return bytes
    } catch .noSuchFileOrDirectory {
      throw Failure(
        .badImage, "Cannot read the image \(path)", why: "\(name) is missing",
        advice: "give the directory of a complete image")
    } catch { throw Failure(.badImage, "Cannot read \(path)/\(name)", why: error.words) }
  }

  /// Opens one of the image's files; symbolic links are not followed.
  public func openFile(_ name: String) throws(Errno) -> Descriptor {
    try Descriptor.open(name, O_RDONLY | O_NOFOLLOW, at: directory.number)
  }

  /// How many bytes all files in the directory have together, and how many files there are.
  public func totalSize() -> (bytes: UInt64, files: Int) {
    var total: (bytes: UInt64, files: Int) = (0, 0)
    for name in namesOfFiles(in: path) {
      guard let status = try? fileStatus(name, followingLink: false, at: directory.number) else { continue }
      total.bytes += UInt64(status.st_size)
      total.files += 1
    }
    return total
  }

  // MARK: Checks

  /// Checks size and digest of every file in the manifest for which `filter` holds.
  ///
  /// An image of CRIU's has no digests: there is nothing to check then.
  ///
  /// - Parameter progress: told the number of bytes after each piece.
  public func verify(
    where filter: (String) -> Bool = { _ in true }, progress: (Int) -> Void = { _ in }
  ) throws(Failure) {
    guard let manifest else { return }
    let names = Set(manifest.files.map(\.name))
    guard names.contains(ImageKind.inventory.fileName()), names.contains(ImageKind.processTree.fileName()) else {
      throw damaged(manifestName, "it does not list every file")
    }
    let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: 1 << 20, alignment: 4096)
    defer { buffer.deallocate() }
    for entry in manifest.files where filter(entry.name) { try verify(entry, buffer, progress) }
  }

  private func verify(
    _ entry: ManifestFile, _ buffer: UnsafeMutableRawBufferPointer, _ progress: (Int) -> Void
  ) throws(Failure) {
    guard !entry.name.contains("/") else { throw damaged(manifestName, "it names a file outside of the image") }
    var digest = Digest()
    var size: UInt64 = 0
    do throws(Errno) {
      let file = try openFile(entry.name)
      while true {
        let count = try file.read(into: buffer)
        if count == 0 { break }
        digest.update(UnsafeRawBufferPointer(rebasing: buffer[0..<count]))
        size += UInt64(count)
        progress(count)
        if size > entry.size { break }
      }
    } catch .noSuchFileOrDirectory {
      throw Failure(
        .badImage, "Cannot read the image \(path)", why: "\(entry.name) is missing",
        advice: "use another image, or a complete copy of this one")
    } catch { throw Failure(.badImage, "Cannot read \(path)/\(entry.name)", why: error.words) }
    guard size == entry.size else {
      throw damaged(entry.name, "it should have \(entry.size) bytes and has \(size > entry.size ? "more" : "\(size)")")
    }
    guard digest.text() == entry.xxh3 else { throw damaged(entry.name, "its content is not what was written") }
  }
}

/// Goes through the entries of one image file.
public struct EntryCursor {
  private let bytes: [UInt8]
  private var offset = 0
  private let path: String
  private let name: String

  init(bytes: [UInt8], path: String, name: String) {
    self.bytes = bytes
    self.path = path
    self.name = name
  }

  mutating func word() -> UInt32? {
    guard bytes.count - offset >= 4 else { return nil }
    defer { offset += 4 }
    return bytes.withUnsafeBytes { UInt32(littleEndian: $0.loadUnaligned(fromByteOffset: offset, as: UInt32.self)) }
  }

  /// The next entry; nil at the end of the file.
  public mutating func next<Entry: Message>(_ type: Entry.Type = Entry.self) throws(Failure) -> Entry? {
    if offset == bytes.count { return nil }
    guard let length = word(), Int(length) <= bytes.count - offset else {
      throw ImageReader.damaged(path, name, "it ends in the middle of an entry")
    }
    defer { offset += Int(length) }
    do { return try Entry(serializedBytes: Array(bytes[offset..<(offset + Int(length))])) } catch {
      throw ImageReader.damaged(path, name, "the entry at byte \(offset) is not a \(Entry.protoMessageName)")
    }
  }

  /// How many bytes there are up to the end of the file.
  public var bytesLeft: Int { bytes.count - offset }

  /// The `count` raw bytes that follow the last entry.
  public mutating func raw(_ count: Int) throws(Failure) -> ArraySlice<UInt8> {
    guard count >= 0, count <= bytes.count - offset else {
      throw ImageReader.damaged(path, name, "it ends in the middle of its data")
    }
    defer { offset += count }
    return bytes[offset..<(offset + count)]
  }
}

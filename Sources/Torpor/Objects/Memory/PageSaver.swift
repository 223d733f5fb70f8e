import CLinux
import Images
import Linux
import SystemPackage

/// Writes pages into the image, each process's and each shared segment's into a file of its own.
///
/// They go from their source into one of a few fixed buffers in large vectors, and are digested there while the cache has
/// them. Other threads write what is in the rest of the buffers meanwhile.
final class PageSaver {
  let image: ImageWriter
  private let progress: Progress
  /// Made when there is work for them.
  private var workers: [Worker] = []
  private let buffers: [UnsafeMutableRawBufferPointer]
  /// For each buffer the last piece of work with it.
  private var pieces: [(worker: Int, number: Int)?]
  private var next = 0
  private var total: UInt64 = 0
  private var expected: UInt64 = 0
  private var hasManyFiles = false
  private var batch: [PageRun] = []

  private static let bufferSize = 4 << 20
  private static let bufferCount = 4
  /// What one thread writes as fast as two, where there is little of it.
  private static let smallBatch = 512 << 10
  /// From so many files on, small ones keep another thread busy too.
  private static let manyFiles = 8
  /// Most entries of a vector. (UIO_MAXIOV)
  private static let longestVector = 1024

  init(_ image: ImageWriter, _ progress: Progress) throws(Failure) {
    self.image = image
    self.progress = progress
    buffers = (0..<Self.bufferCount).map { _ in .allocate(byteCount: Self.bufferSize, alignment: 2 << 20) }
    pieces = [(worker: Int, number: Int)?](repeating: nil, count: buffers.count)
    batch.reserveCapacity(Self.longestVector)
  }

  deinit {
    for worker in workers { try? worker.wait() }
    for buffer in buffers { buffer.deallocate() }
  }

  /// Tells how much there will be in all.
  ///
  /// - Throws: where the file system has not that much room.
  func expect(_ bytes: UInt64, in files: Int) throws(Failure) {
    expected = bytes
    hasManyFiles = files >= Self.manyFiles
    try image.checkRoom(for: bytes)
    guard bytes >= PagesFile.large else { return }
    for buffer in buffers { madvise(buffer.baseAddress, buffer.count, MADV_HUGEPAGE) }
  }

  /// Waits until everything is written.
  ///
  /// - Returns: how many bytes of pages that was.
  func finish() throws(Failure) -> UInt64 {
    for worker in workers { try worker.wait() }
    return total
  }

  /// Writes a pagemap, and its pages to pages-`pagesID`.img.
  func save(
    _ runs: [PageRun], from source: any PageSource, as kind: ImageKind, _ id: UInt64, pagesID: UInt32,
    _ what: @autoclosure () -> String
  ) throws(Failure) {
    try writePageMap(runs, kind, id, pagesID)
    let name = ImageKind.pagesFileName(pagesID)
    let file = PagesFile(try image.create(name), path: "\(image.path)/\(name)", startsWriteback: hasManyFiles)
    try file.reserve(runs.reduce(0) { $0 + $1.range.count })
    var count = 0
    for run in runs {
      var start = run.range.start
      while start < run.range.end {
        // The vDSO is looked at as a whole, and is far smaller than a buffer.
        if run.way == .vdso, count > 0 { try flush(&count, source, file, what()) }
        let end = min(run.range.end, start + UInt64(Self.bufferSize - count))
        batch.append(PageRun(range: AddressRange(start, end), way: run.way))
        count += Int(end - start)
        start = end
        if count == Self.bufferSize || batch.count == Self.longestVector { try flush(&count, source, file, what()) }
      }
    }
    try flush(&count, source, file, what())
    image.record(name, size: file.size, digest: file.digest.text())
  }

  private func writePageMap(_ runs: [PageRun], _ kind: ImageKind, _ id: UInt64, _ pagesID: UInt32) throws(Failure) {
    let entries = runs.lazy.map { run in
      let pages = run.range.count / pageSize
      return PagemapEntry.with {
        $0.vaddr = run.range.start
        $0.nrPages = pages
        $0.compatNrPages = UInt32(clamping: pages)
        $0.flags = PageFlags.present
      }
    }
    try image.write(kind, id, head: PagemapHead.with { $0.pagesID = pagesID }, all: entries)
  }

  /// Reads the batch, and writes it or has it written.
  private func flush(
    _ count: inout Int, _ source: any PageSource, _ file: PagesFile, _ what: @autoclosure () -> String
  ) throws(Failure) {
    guard count > 0 else { return }
    let index = next
    next = (next + 1) % buffers.count
    if let piece = pieces[index] { try workers[piece.worker].wait(for: piece.number) }
    let content = UnsafeMutableRawBufferPointer(rebasing: buffers[index][0..<count])
    try attempt(what()) { () throws(Errno) in try source.read(batch, into: content) }
    let bytes = UnsafeRawBufferPointer(content)
    file.digest.update(bytes)
    let offset = file.size
    file.size += UInt64(count)
    if offset == 0, count <= Self.smallBatch, !hasManyFiles {
      // Most of a small process: to wake another thread would cost more than the work.
      try file.write(bytes, at: offset)
    } else {
      // Writes through the page cache to one file wait for each other.
      let worker = file.isDirect ? index % 2 : 0
      while workers.count <= worker { workers.append(Worker()) }
      let piece = Piece(file: file, bytes: bytes, offset: offset)
      pieces[index] = (worker, workers[worker].submit { () throws(Failure) in try piece.write() })
    }
    total += UInt64(count)
    progress.update("memory", total, of: expected)
    count = 0
    batch.removeAll(keepingCapacity: true)
  }

  /// A buffer that one thread fills and another writes; the worker's counters keep them apart.
  private struct Piece: @unchecked Sendable {
    let file: PagesFile
    let bytes: UnsafeRawBufferPointer
    let offset: UInt64

    func write() throws(Failure) { try file.write(bytes, at: offset) }
  }
}

/// One pages file; closed when its last piece is written. Size and digest are the saver's own, for what it has read.
private final class PagesFile {
  private let file: Descriptor
  private let path: String
  var size: UInt64 = 0
  var digest = Digest()
  /// Whether it goes to the disk without a stay in the page cache.
  private(set) var isDirect = false
  /// Whether the disk shall have the data at once: that of many small files would otherwise all wait for the commit.
  private var startsWriteback: Bool

  /// From here on it pays to write past the page cache: that costs neither the copy nor fresh memory, nor does it push the
  /// data of others out.
  static let large: UInt64 = 32 << 20

  init(_ file: consuming Descriptor, path: String, startsWriteback: Bool) {
    self.file = file
    self.path = path
    self.startsWriteback = startsWriteback
  }

  private static let advice = "free some space or choose another place with --output"

  /// Prepares for a file of `bytes`.
  func reserve(_ bytes: UInt64) throws(Failure) {
    guard bytes >= Self.large else { return }
    startsWriteback = true
    // File systems that cannot reserve room say so. What can be written within the file, more than one may write.
    if fallocate(file.number, 0, 0, Int(bytes)) != 0, clinux_errno() == ENOSPC {
      throw Failure("Cannot write \(path)", .noSpace, advice: Self.advice)
    }
    isDirect = file.setDirect(true)
  }

  func write(_ bytes: UnsafeRawBufferPointer, at offset: UInt64) throws(Failure) {
    try attempt("Cannot write \(path)", advice: Self.advice) { () throws(Errno) in
      do throws(Errno) { try file.write(bytes, at: Int(offset)) } catch {
        // Some file systems find out only now that they cannot.
        guard error == .invalidArgument, isDirect, file.setDirect(false) else { throw error }
        try file.write(bytes, at: Int(offset))
      }
    }
    // Only starts it; whether it succeeds, the commit's syncfs tells.
    if startsWriteback, !isDirect { _ = sync_file_range(file.number, Int(offset), bytes.count, UInt32(SYNC_FILE_RANGE_WRITE)) }
  }
}

/// Above it there are no areas of a program. (TASK_SIZE_MAX with four levels of page tables)
let highestAddress: UInt64 = 0x7fff_ffff_f000

/// What an entry of a pagemap says of its pages.
enum PageFlags {
  static let parent: UInt32 = 1
  static let lazy: UInt32 = 2
  static let present: UInt32 = 4
}

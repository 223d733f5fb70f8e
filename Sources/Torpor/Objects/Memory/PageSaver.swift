import CLinux
import Images
import Linux
import SystemPackage

/// Writes pages into the image, each process's and each shared segment's into a file of its own.
///
/// They go from their source into one of a few fixed buffers in large vectors. A second thread digests and writes what is
/// in the others meanwhile.
final class PageSaver {
  let image: ImageWriter
  private let progress: Progress
  private let worker = Worker()
  private let buffers: [UnsafeMutableRawBufferPointer]
  /// For each buffer the last piece of work with it.
  private var pieces: [Int]
  private var next = 0
  private var files: [PagesFile] = []
  private var total: UInt64 = 0
  private var expected: UInt64 = 0
  private var batch: [PageRun] = []

  private static let bufferSize = 4 << 20
  /// What one thread writes as fast as two.
  private static let smallBatch = 512 << 10
  /// Most entries of a vector. (UIO_MAXIOV)
  private static let longestVector = 1024

  init(_ image: ImageWriter, _ progress: Progress) throws(Failure) {
    self.image = image
    self.progress = progress
    buffers = (0..<3).map { _ in .allocate(byteCount: Self.bufferSize, alignment: 4096) }
    pieces = [Int](repeating: 0, count: buffers.count)
    batch.reserveCapacity(Self.longestVector)
  }

  deinit {
    try? worker.wait()
    for buffer in buffers { buffer.deallocate() }
  }

  /// Tells how much there will be in all.
  ///
  /// - Throws: where the file system has not that much room.
  func expect(_ bytes: UInt64) throws(Failure) {
    expected = bytes
    try image.checkRoom(for: bytes)
  }

  /// Waits until everything is written.
  ///
  /// - Returns: how many bytes of pages that was.
  func finish() throws(Failure) -> UInt64 {
    try worker.wait()
    for file in files { image.record(file.name, size: file.size, digest: file.digest) }
    files = []
    return total
  }

  /// Writes a pagemap, and its pages to pages-`pagesID`.img.
  func save(
    _ runs: [PageRun], from source: any PageSource, as kind: ImageKind, _ id: UInt64, pagesID: UInt32,
    _ what: @autoclosure () -> String
  ) throws(Failure) {
    try writePageMap(runs, kind, id, pagesID)
    let name = ImageKind.pagesFileName(pagesID)
    let file = PagesFile(try image.create(name), name: name, path: image.path)
    files.append(file)
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
    if file.isWithWorker {
      worker.submit { () throws(Failure) in file.close() }
    } else {
      file.close()
    }
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

  /// Reads the batch and gives it to the worker.
  private func flush(
    _ count: inout Int, _ source: any PageSource, _ file: PagesFile, _ what: @autoclosure () -> String
  ) throws(Failure) {
    guard count > 0 else { return }
    let index = next
    next = (next + 1) % buffers.count
    try worker.wait(for: pieces[index])
    let content = UnsafeMutableRawBufferPointer(rebasing: buffers[index][0..<count])
    try attempt(what()) { () throws(Errno) in try source.read(batch, into: content) }
    let bytes = Bytes(UnsafeRawBufferPointer(content))
    if count <= Self.smallBatch, !file.isWithWorker {
      // All of a small process: to wake another thread would cost more than the work.
      try file.append(bytes.buffer)
    } else {
      file.isWithWorker = true
      pieces[index] = worker.submit { () throws(Failure) in try file.append(bytes.buffer) }
    }
    total += UInt64(count)
    progress.update("memory", total, of: expected)
    count = 0
    batch.removeAll(keepingCapacity: true)
  }

  /// A buffer that one thread fills and another reads; the worker's counters keep them apart.
  private struct Bytes: @unchecked Sendable {
    let buffer: UnsafeRawBufferPointer
    init(_ buffer: UnsafeRawBufferPointer) { self.buffer = buffer }
  }
}

/// One pages file. Once it is with the worker, only that touches it while there is work, and only the saver when there is
/// none.
private final class PagesFile: @unchecked Sendable {
  let name: String
  /// The saver's own note.
  var isWithWorker = false
  private let path: String
  private var number: Int32
  private var state = Digest()
  private(set) var size: UInt64 = 0
  private(set) var digest = ""
  private var started: UInt64 = 0

  /// Start writing to disk after so many bytes, for the commit waits for the disk.
  private static let writeBack = 32 << 20

  init(_ file: consuming Descriptor, name: String, path: String) {
    number = file.release()
    self.name = name
    self.path = path
  }

  deinit { close() }

  func append(_ bytes: UnsafeRawBufferPointer) throws(Failure) {
    state.update(bytes)
    try attempt("Cannot write \(path)/\(name)", advice: "free some space or choose another place with --output") {
      () throws(Errno) in try Descriptor.write(bytes, to: number)
    }
    size += UInt64(bytes.count)
    if size - started >= UInt64(Self.writeBack) {
      // Only starts it; whether it succeeds, the commit's syncfs tells.
      _ = sync_file_range(number, Int(started), Int(size - started), UInt32(SYNC_FILE_RANGE_WRITE))
      started = size
    }
  }

  func close() {
    guard number >= 0 else { return }
    digest = state.text()
    CLinux.close(number)
    number = -1
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

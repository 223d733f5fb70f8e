import CLinux
import Images
import Linux
import SystemPackage

/// Writes the pages that processes have of their own, each process's into one file.
///
/// Pages go from the process into one of a few fixed buffers in large vectors. A second thread digests and writes what
/// is in the others meanwhile.
final class PageSaver {
  let image: ImageWriter
  private let progress: Progress
  private let worker = Worker()
  private let buffers: [UnsafeMutableRawBufferPointer]
  /// For each buffer the last piece of work with it.
  private var pieces: [Int]
  private var next = 0
  private var total: UInt64 = 0
  private var expected: UInt64 = 0

  private static let bufferSize = 4 << 20
  /// Start writing to disk after so many bytes, for the commit waits for the disk.
  private static let writeBack = 32 << 20
  /// What one thread writes as fast as two.
  private static let smallBatch = 512 << 10
  /// Most entries of a vector. (UIO_MAXIOV)
  private static let longestVector = 1024

  init(_ image: ImageWriter, _ progress: Progress) throws(Failure) {
    self.image = image
    self.progress = progress
    buffers = (0..<3).map { _ in .allocate(byteCount: Self.bufferSize, alignment: 4096) }
    pieces = [Int](repeating: 0, count: buffers.count)
  }

  deinit {
    try? worker.wait()
    for buffer in buffers { buffer.deallocate() }
  }

  /// Tells how much there will be in all, for the progress.
  func expect(_ bytes: UInt64) { expected = bytes }

  /// - Returns: how many bytes of pages have been written.
  func finish() throws(Failure) -> UInt64 {
    try worker.wait()
    return total
  }

  // MARK: One process

  /// Writes pagemap-PID.img and pages-N.img.
  func save(_ areas: [VmaEntry], of process: JobProcess, pagesID: UInt32) throws(Failure) {
    let what = "Cannot read the memory of \(process.label)"
    let runs = try attempt(what) { () throws(Errno) in try ownRuns(areas, process) }
    try writePageMap(runs, process, pagesID)
    let name = ImageKind.pagesFileName(pagesID)
    let file = PagesFile(try image.create(name), path: "\(image.path)/\(name)")
    var batch = Batch()
    for run in runs {
      var start = run.range.start
      while start < run.range.end {
        let room = UInt64(Self.bufferSize - batch.count)
        let piece = AddressRange(start, min(run.range.end, start + room))
        batch.add(piece, isReadable: run.isReadable, isVDSO: run.isVDSO)
        start = piece.end
        if batch.count == Self.bufferSize || batch.pieces.count == Self.longestVector {
          try flush(&batch, process, file, what)
        }
      }
    }
    try flush(&batch, process, file, what)
    try worker.wait()
    image.record(name, size: file.size, digest: file.digestText())
    total += file.size
  }

  private struct Run {
    var range: AddressRange
    var isReadable: Bool
    var isVDSO = false
  }

  /// The runs of pages to store, cut at the borders of areas.
  private func ownRuns(_ areas: [VmaEntry], _ process: JobProcess) throws(Errno) -> [Run] {
    let scan = try PageScan(process.proc)
    var runs: [Run] = []
    var index = 0
    func add(_ run: Run) {
      if let last = runs.last, last.range.end == run.range.start, last.isReadable == run.isReadable,
        !last.isVDSO, !run.isVDSO
      {
        runs[runs.count - 1].range.end = run.range.end
      } else {
        runs.append(run)
      }
    }
    /// Areas before `address` that are stored whole.
    func passAreas(endingBefore address: UInt64) {
      while index < areas.count, areas[index].end <= address {
        if areas[index].kind.contains(.vdso) {
          add(Run(range: areas[index].range, isReadable: true, isVDSO: true))
        }
        index += 1
      }
    }
    try scan.forEachOwnRun(in: AddressRange(0, highestAddress)) { found in
      var start = found.start
      while start < found.end {
        passAreas(endingBefore: start)
        guard index < areas.count, areas[index].start < found.end else { return }
        let area = areas[index]
        let piece = AddressRange(max(start, area.start), min(found.end, area.end))
        if area.isPrivateMemory, piece.start < piece.end {
          add(Run(range: piece, isReadable: area.prot & UInt32(PROT_READ) != 0))
        }
        start = max(piece.end, area.end < found.end ? area.end : found.end)
      }
    }
    passAreas(endingBefore: .max)
    return runs
  }

  private func writePageMap(_ runs: [Run], _ process: JobProcess, _ pagesID: UInt32) throws(Failure) {
    try image.append(.pagemap, UInt64(process.pid), PagemapHead.with { $0.pagesID = pagesID })
    for run in runs {
      let pages = run.range.count / pageSize
      try image.append(
        .pagemap, UInt64(process.pid),
        PagemapEntry.with {
          $0.vaddr = run.range.start
          $0.nrPages = pages
          $0.compatNrPages = UInt32(clamping: pages)
          $0.flags = PageFlags.present
        })
    }
    try image.finish(.pagemap, UInt64(process.pid))
  }

  // MARK: Content

  /// What goes into one buffer.
  private struct Batch {
    var pieces: [(range: AddressRange, isReadable: Bool, isVDSO: Bool)] = []
    var count = 0
    mutating func add(_ range: AddressRange, isReadable: Bool, isVDSO: Bool) {
      pieces.append((range, isReadable, isVDSO))
      count += Int(range.count)
    }
  }

  private func flush(
    _ batch: inout Batch, _ process: JobProcess, _ file: PagesFile, _ what: String
  ) throws(Failure) {
    guard batch.count > 0 else { return }
    let index = next
    next = (next + 1) % buffers.count
    try worker.wait(for: pieces[index])
    let content = UnsafeMutableRawBufferPointer(rebasing: buffers[index][0..<batch.count])
    try attempt(what) { () throws(Errno) in try read(batch, of: process, into: content) }
    let bytes = Bytes(UnsafeRawBufferPointer(content))
    if batch.count <= Self.smallBatch, file.size == 0 {
      // All of a small process: to wake another thread would cost more than the work.
      try file.append(bytes.buffer)
      batch = Batch()
      return
    }
    pieces[index] = worker.submit { () throws(Failure) in try file.append(bytes.buffer) }
    progress.update("memory", total + file.size, of: expected)
    batch = Batch()
  }

  private func read(_ batch: Batch, of process: JobProcess, into buffer: UnsafeMutableRawBufferPointer) throws(Errno) {
    var offset = 0
    var index = 0
    while index < batch.pieces.count {
      let piece = batch.pieces[index]
      if piece.isReadable {
        // As many readable ones as follow each other go in one call.
        var end = index
        while end < batch.pieces.count, batch.pieces[end].isReadable { end += 1 }
        offset += try readVector(batch.pieces[index..<end].map(\.range), process, into: buffer, at: offset)
        if piece.isVDSO || batch.pieces[index..<end].contains(where: \.isVDSO) { cleanVDSO(batch, index..<end, buffer, offset) }
        index = end
      } else {
        // No right to read keeps /proc/PID/mem from nothing. (FOLL_FORCE, mm/gup.c)
        let part = UnsafeMutableRawBufferPointer(rebasing: buffer[offset..<(offset + Int(piece.range.count))])
        guard try process.memory.read(into: part, at: Int(piece.range.start)) == part.count else { throw .badAddress }
        offset += part.count
        index += 1
      }
    }
  }

  private func readVector(
    _ ranges: [AddressRange], _ process: JobProcess, into buffer: UnsafeMutableRawBufferPointer, at offset: Int
  ) throws(Errno) -> Int {
    let count = ranges.reduce(0) { $0 + Int($1.count) }
    var remote = ranges.map { range in
      iovec(iov_base: UnsafeMutableRawPointer(bitPattern: UInt(range.start)), iov_len: Int(range.count))
    }
    var local = iovec(iov_base: buffer.baseAddress.map { $0 + offset }, iov_len: count)
    let result = process_vm_readv(process.witness, &local, 1, &remote, UInt(remote.count), 0)
    guard result >= 0 else { throw Errno(rawValue: clinux_errno()) }
    guard result == count else { throw .badAddress }
    return count
  }

  /// The bytes behind the vDSO's ELF file are spare, and hold our trampoline when we died once in this process.
  private func cleanVDSO(
    _ batch: Batch, _ indices: Range<Int>, _ buffer: UnsafeMutableRawBufferPointer, _ end: Int
  ) {
    var offset = end - indices.reduce(0) { $0 + Int(batch.pieces[$1].range.count) }
    for index in indices {
      let count = Int(batch.pieces[index].range.count)
      if batch.pieces[index].isVDSO {
        let image = UnsafeMutableRawBufferPointer(rebasing: buffer[offset..<(offset + count)])
        let used = min(VDSO.length(of: UnsafeRawBufferPointer(image)), count)
        for spare in used..<count { image[spare] = 0 }
      }
      offset += count
    }
  }

  /// A buffer that one thread fills and another reads; the worker's counters keep them apart.
  private struct Bytes: @unchecked Sendable {
    let buffer: UnsafeRawBufferPointer
    init(_ buffer: UnsafeRawBufferPointer) { self.buffer = buffer }
  }

  /// One pages file. Only the worker touches it while there is work, only the saver when there is none.
  private final class PagesFile: @unchecked Sendable {
    private let file: Descriptor
    private let path: String
    private var digest = Digest()
    private(set) var size: UInt64 = 0
    private var started: UInt64 = 0

    init(_ file: consuming Descriptor, path: String) {
      self.file = file
      self.path = path
    }

    func append(_ bytes: UnsafeRawBufferPointer) throws(Failure) {
      digest.update(bytes)
      try attempt("Cannot write \(path)", advice: "free some space or choose another place with --output") {
        () throws(Errno) in try file.write(bytes)
      }
      size += UInt64(bytes.count)
      if size - started >= UInt64(PageSaver.writeBack) {
        // Only starts it; whether it succeeds, the commit's syncfs tells.
        _ = sync_file_range(file.number, Int(started), Int(size - started), UInt32(SYNC_FILE_RANGE_WRITE))
        started = size
      }
    }

    func digestText() -> String { digest.text() }
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

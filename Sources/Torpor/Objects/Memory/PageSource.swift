import CLinux
import Images
import Linux
import SystemPackage

/// Where pages come from.
protocol PageSource: AnyObject {
  /// Fills `buffer` with the pages of `runs`, one after another.
  func read(_ runs: [PageRun], into buffer: UnsafeMutableRawBufferPointer) throws(Errno)
}

/// The private memory of a process that stands still.
final class ProcessPages: PageSource {
  private let process: JobProcess
  private var remote: [iovec] = []

  init(_ process: JobProcess) { self.process = process }

  func read(_ runs: [PageRun], into buffer: UnsafeMutableRawBufferPointer) throws(Errno) {
    var offset = 0
    var index = 0
    while index < runs.count {
      let way = runs[index].way
      let first = index
      // As many of a kind as follow each other go in one call.
      repeat { index += 1 } while index < runs.count && runs[index].way == way && way == .vector
      let count = runs[first..<index].reduce(0) { $0 + Int($1.range.count) }
      let part = UnsafeMutableRawBufferPointer(rebasing: buffer[offset..<(offset + count)])
      switch way {
      case .vector: try readVector(runs[first..<index], into: part)
      case .memoryFile: try readMemoryFile(runs[first].range, into: part)
      case .vdso:
        try readMemoryFile(runs[first].range, into: part)
        clean(part)
      }
      offset += count
    }
  }

  private func readVector(_ runs: ArraySlice<PageRun>, into buffer: UnsafeMutableRawBufferPointer) throws(Errno) {
    remote.removeAll(keepingCapacity: true)
    for run in runs {
      remote.append(
        iovec(iov_base: UnsafeMutableRawPointer(bitPattern: UInt(run.range.start)), iov_len: Int(run.range.count)))
    }
    var local = iovec(iov_base: buffer.baseAddress, iov_len: buffer.count)
    let result = process_vm_readv(process.witness, &local, 1, &remote, UInt(remote.count), 0)
    if result == buffer.count { return }
    // Something in it resists; one by one, and with more force.
    var offset = 0
    for run in runs {
      let part = UnsafeMutableRawBufferPointer(rebasing: buffer[offset..<(offset + Int(run.range.count))])
      try readMemoryFile(run.range, into: part)
      offset += part.count
    }
  }

  /// No right to read keeps /proc/PID/mem from nothing. (FOLL_FORCE, mm/gup.c)
  private func readMemoryFile(_ range: AddressRange, into buffer: UnsafeMutableRawBufferPointer) throws(Errno) {
    guard try process.memory.read(into: buffer, at: Int(range.start)) == buffer.count else { throw .badAddress }
  }

  /// The bytes behind the vDSO's ELF file are spare, and hold our trampoline when we died once in this process.
  private func clean(_ image: UnsafeMutableRawBufferPointer) {
    let used = VDSO.length(of: UnsafeRawBufferPointer(image))
    for spare in used..<image.count { image[spare] = 0 }
  }
}

/// A file in memory; an address is an offset in it.
final class FilePages: PageSource {
  private let file: Descriptor

  init(_ file: consuming Descriptor) { self.file = file }

  /// The runs of pages with data. lseek(2), SEEK_DATA
  func runs() throws(Errno) -> [PageRun] {
    var runs: [PageRun] = []
    var end = 0
    while true {
      let start: Int
      do throws(Errno) { start = try systemCall(Int32(SYS_lseek), Int(file.number), end, 3 /* SEEK_DATA */) } catch {
        guard error == .noSuchAddressOrDevice else { throw error }
        return runs
      }
      end = try systemCall(Int32(SYS_lseek), Int(file.number), start, 4 /* SEEK_HOLE */)
      let range = AddressRange(UInt64(start).pageFloor, UInt64(end).pageCeiling)
      runs.append(PageRun(range: range, way: .memoryFile))
    }
  }

  func read(_ runs: [PageRun], into buffer: UnsafeMutableRawBufferPointer) throws(Errno) {
    var offset = 0
    for run in runs {
      let part = UnsafeMutableRawBufferPointer(rebasing: buffer[offset..<(offset + Int(run.range.count))])
      let count = try file.read(into: part, at: Int(run.range.start))
      // The last page may go beyond the end of the file.
      for index in count..<part.count { part[index] = 0 }
      offset += part.count
    }
  }
}

import CLinux
import Images
import Linux
import SystemPackage

/// The pipes of a job that is being built: made once, filled with what was in them.
struct RestoredPipes {
  private struct Content {
    var bytes: [UInt8]
    var size: Int?
    var packets: [Int] = []
  }

  private struct Made {
    let reading: Int32
    let writing: Int32
    var readingIsTaken = false
    var writingIsTaken = false
  }

  private var content: [UInt32: Content] = [:]
  private var fifoContent: [UInt32: Content] = [:]
  private var made: [UInt32: Made] = [:]
  private var fifos: [UInt32: Int32] = [:]

  init(_ image: ImageReader) throws(Failure) {
    content = try Self.read(image, .pipesData)
    fifoContent = try Self.read(image, .fifoData)
    for entry in try image.readAll(.pipePackets, as: PipeDataEntry.self) {
      content[entry.pipeID]?.packets.append(Int(entry.bytes))
      fifoContent[entry.pipeID]?.packets.append(Int(entry.bytes))
    }
  }

  private static func read(_ image: ImageReader, _ kind: ImageKind) throws(Failure) -> [UInt32: Content] {
    guard image.has(kind) else { return [:] }
    var result: [UInt32: Content] = [:]
    var cursor = try image.open(kind)
    while let entry = try cursor.next(PipeDataEntry.self) {
      let bytes = Array(try cursor.raw(Int(entry.bytes)))
      result[entry.pipeID] = Content(bytes: bytes, size: entry.hasSize ? Int(entry.size) : nil)
    }
    return result
  }

  /// One open file description of an end of a pipe.
  mutating func openEnd(_ entry: PipeEntry, _ what: String) throws(Failure) -> Descriptor {
    let flags = Int32(bitPattern: entry.flags)
    do throws(Errno) {
      if made[entry.pipeID] == nil { made[entry.pipeID] = try make(entry.pipeID) }
      guard var pipe = made[entry.pipeID] else { throw .badFileDescriptor }
      defer { made[entry.pipeID] = pipe }
      switch flags & O_ACCMODE {
      case O_RDONLY where !pipe.readingIsTaken:
        pipe.readingIsTaken = true
        return try Self.duplicate(pipe.reading)
      case O_WRONLY where !pipe.writingIsTaken:
        pipe.writingIsTaken = true
        return try Self.duplicate(pipe.writing)
      default:
        // A further description of the same pipe.
        return try Descriptor.open("/proc/self/fd/\(pipe.reading)", flags & (O_ACCMODE | O_NONBLOCK))
      }
    } catch { throw Failure(.cannotRestore, what, why: "a pipe cannot be made: \(error.words)", advice: Self.advice(error)) }
  }

  private func make(_ id: UInt32) throws(Errno) -> Made {
    let pipe = try Pipe(O_NONBLOCK)
    if let content = content[id] { try Self.fill(pipe.writing, content) }
    return Made(reading: try pipe.reading.duplicate().release(), writing: try pipe.writing.duplicate().release())
  }

  private static func duplicate(_ number: Int32) throws(Errno) -> Descriptor {
    Descriptor(owning: Int32(try systemCall(Int32(SYS_fcntl), Int(number), Int(F_DUPFD_CLOEXEC), 0)))
  }

  private static func fill(_ end: borrowing Descriptor, _ content: Content) throws(Errno) {
    if let size = content.size, try end.pipeSize() != size {
      // A smaller one would do as long as everything fits; the write below finds out.
      do throws(Errno) { try end.setPipeSize(size) } catch {
        guard try end.pipeSize() >= content.bytes.count else { throw error }
      }
    }
    guard content.packets.reduce(0, +) == content.bytes.count, !content.packets.isEmpty else {
      return try content.bytes.withBytes { bytes throws(Errno) in try end.write(bytes) }
    }
    try end.setStatusFlags(O_NONBLOCK | O_DIRECT)
    try content.bytes.withBytes { bytes throws(Errno) in
      var start = 0
      for count in content.packets {
        try end.write(UnsafeRawBufferPointer(rebasing: bytes[start..<(start + count)]))
        start += count
      }
    }
  }

  /// Opens a FIFO for both directions, so that no opening of it waits, and puts its content back once.
  mutating func fillFIFO(_ id: UInt32, _ path: String, _ what: String) throws(Failure) {
    guard fifos[id] == nil else { return }
    let content = fifoContent[id]
    fifos[id] = try attempt("\(what): \(path)") { () throws(Errno) in
      let fifo = try Descriptor.open(path, O_RDWR | O_NONBLOCK)
      if let content { try Self.fill(fifo, content) }
      return fifo.release()
    }
  }

  /// Lets go of the ends that were kept so that more could be made of them.
  mutating func closeAll() {
    for pipe in made.values {
      close(pipe.reading)
      close(pipe.writing)
    }
    for fifo in fifos.values { close(fifo) }
    made = [:]
    fifos = [:]
  }

  private static func advice(_ error: Errno) -> String {
    error == .tooManyOpenFiles ? "raise the limit of open files (ulimit -Hn)" : ""
  }
}

import CLinux
import Images
import Linux
import SystemPackage

/// The locks that a job holds on files. fcntl(2), flock(2)
struct SavedLocks {
  private var entries: [FileLockEntry] = []
  /// Locks of flock(2) and of open file descriptions, which every descriptor of them shows.
  private var seen: Set<UInt32> = []
  /// POSIX locks belong to the process, and every descriptor of the file shows them.
  private var seenPOSIX: Set<POSIXLock> = []

  private struct POSIXLock: Hashable {
    let process: ProcessID
    let device: UInt64
    let inode: UInt64
    let start: Int64
    let length: Int64
  }

  /// Notes the locks that fdinfo shows.
  mutating func note(_ facts: DescriptorFacts, id: UInt32, _ saving: Saving) {
    let lines = facts.info.details.filter { $0.name == "lock" }
    guard !lines.isEmpty else { return }
    let isKnown = !seen.insert(id).inserted
    for line in lines {
      guard var entry = Self.parse(line.value) else {
        saving.refuse(
          facts.process, "\(facts.label) (\(facts.link)) has a lock that torpor does not know: \(line.value)",
          advice: "release it before the checkpoint")
        continue
      }
      entry.pid = facts.process.pid
      entry.fd = facts.number
      if entry.flag == LockKind.posix {
        let lock = POSIXLock(
          process: facts.process.pid, device: UInt64(facts.status.st_dev), inode: UInt64(facts.status.st_ino),
          start: entry.start, length: entry.len)
        guard seenPOSIX.insert(lock).inserted else { continue }
      } else if isKnown {
        continue
      }
      entries.append(entry)
    }
  }

  /// A line `1: POSIX  ADVISORY  WRITE 4242 08:01:1234 0 EOF`, without what stands before the first colon.
  static func parse(_ text: String) -> FileLockEntry? {
    let words = text.split { $0 == " " || $0 == "\t" }
    guard words.count >= 8, words[2] == "ADVISORY", let start = Int64(words[6]) else { return nil }
    let kinds: [Substring: UInt32] = ["POSIX": LockKind.posix, "FLOCK": LockKind.flock, "OFDLCK": LockKind.description]
    let types: [Substring: UInt32] = ["READ": UInt32(F_RDLCK), "WRITE": UInt32(F_WRLCK)]
    guard let kind = kinds[words[1]], let type = types[words[3]] else { return nil }
    let length: Int64
    if words[7] == "EOF" {
      length = 0
    } else {
      guard let end = Int64(words[7]), end >= start else { return nil }
      length = end - start + 1
    }
    return .with {
      $0.flag = kind
      $0.type = type
      $0.start = start
      $0.len = length
      ($0.pid, $0.fd) = (0, 0)
    }
  }

  func write(to image: ImageWriter) throws(Failure) {
    if !entries.isEmpty { try image.write(.fileLocks, all: entries) }
  }
}

/// What made a lock, in CRIU's numbers.
enum LockKind {
  static let posix: UInt32 = 1
  static let flock: UInt32 = 2
  static let description: UInt32 = 4
}

/// The locks of a job that is being built.
struct RestoredLocks {
  private let locks: [ProcessID: [FileLockEntry]]

  init(_ image: ImageReader) throws(Failure) {
    locks = Dictionary(grouping: try image.readAll(.fileLocks, as: FileLockEntry.self)) { $0.pid }
  }

  func of(_ process: RestoredProcess) -> [FileLockEntry] { locks[process.pid] ?? [] }

  /// Adds the call that takes a lock; the process that runs it holds it then.
  ///
  /// The lock was free at the time of the check, so it is taken without waiting.
  static func take(_ lock: FileLockEntry, _ script: inout Script) {
    if lock.flag == LockKind.flock {
      let operation = (lock.type == UInt32(F_RDLCK) ? LOCK_SH : LOCK_EX) | LOCK_NB
      return script.call(Int32(SYS_flock), .init(lock.fd), .init(operation))
    }
    script.add(upTo: 64 + 48) { program in
      // struct flock: type, whence, start, length, pid.
      let structure = program.reserve(32)
      program.patch(structure, Int16(truncatingIfNeeded: lock.type))
      program.patch(structure + 8, lock.start)
      program.patch(structure + 16, lock.len)
      let operation = lock.flag == LockKind.posix ? F_SETLK : 37 /* F_OFD_SETLK */
      program.call(Int32(SYS_fcntl), .init(lock.fd), .init(operation), .data(structure))
    }
  }
}

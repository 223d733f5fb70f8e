import CLinux
import Images
import Linux
import SystemPackage

/// A kind of open file: how it is recognised, saved, checked and opened again.
protocol FileRoom: SendableMetatype {
  static var type: FdTypes { get }

  /// Whether a descriptor is of this kind.
  static func recognises(_ facts: DescriptorFacts) -> Bool

  /// Saves an open file description that is met for the first time.
  ///
  /// - Returns: nil where it cannot be saved, which has been noted in `saving` then.
  static func save(_ facts: DescriptorFacts, id: UInt32, _ saving: Saving) throws(Failure) -> FileEntry?

  /// Finds out, before anything is built, whether it can be opened here.
  static func check(_ entry: FileEntry, _ files: RestoredFiles) throws(Failure)

  /// Opens it.
  static func open(_ entry: FileEntry, _ files: RestoredFiles) throws(Failure) -> Descriptor

  /// The O_ bits and the owner in an entry of this kind.
  static func settings(_ entry: FileEntry) -> (flags: Int32, owner: FownEntry)
}

extension FileRoom {
  static func check(_ entry: FileEntry, _ files: RestoredFiles) throws(Failure) {}
}

/// All kinds of open files, in the order in which they are asked whether they know a descriptor.
enum FileRooms {
  static let all: [any FileRoom.Type] = [
    PipeRoom.self, EventCounterRoom.self, EventPollRoom.self, TimerDescriptorRoom.self, SignalDescriptorRoom.self,
    FileWatchRoom.self, ProcessHandleRoom.self, UnixSocketRoom.self, InternetSocketRoom.self, NetlinkSocketRoom.self,
    TerminalRoom.self, FIFORoom.self, MemfdRoom.self, RegularFileRoom.self,
  ]

  static func room(for facts: DescriptorFacts) -> (any FileRoom.Type)? { all.first { $0.recognises(facts) } }
  static func room(for type: FdTypes) -> (any FileRoom.Type)? { all.first { $0.type == type } }
}

/// What kinds of open files are that no room knows.
enum UnknownFile {
  private static let later = "close it before the checkpoint, or wait for a version of torpor that saves it"

  /// What the descriptor is, in words, and what the user can do about it.
  static func describe(_ facts: DescriptorFacts) -> (what: String, advice: String) {
    switch facts.fileType {
    case FileKind.socket where !facts.link.hasPrefix("/"): return (socket(facts), later)
    case FileKind.blockDevice, FileKind.characterDevice: return ("the \(typeName(facts.status.st_mode)) \(facts.link)", later)
    default: break
    }
    for (text, words) in names where facts.link.hasPrefix(text) { return (words, later) }
    return ("of a kind that torpor does not know", later)
  }

  private static let names: [(String, String)] = [
    ("/memfd:", "a file in memory (memfd)"), ("anon_inode:[io_uring]", "an io_uring"),
    ("anon_inode:[userfaultfd]", "a userfaultfd"), ("anon_inode:[perf_event]", "a performance counter"),
    ("anon_inode:[fanotify]", "a fanotify group"),
    ("anon_inode:bpf", "a BPF object"),
    ("/secretmem", "a secret memory area"), ("net:[", "a network namespace"), ("mnt:[", "a mount namespace"),
    ("pid:[", "a PID namespace"), ("user:[", "a user namespace"), ("uts:[", "a UTS namespace"),
    ("ipc:[", "an IPC namespace"), ("anon_inode:", "an object of the kernel"),
  ]

  private static func socket(_ facts: DescriptorFacts) -> String {
    guard let family = facts.family else { return "a socket" }
    switch family {
    case AF_PACKET: return "a packet socket"
    default: return "a socket of address family \(family)"
    }
  }
}

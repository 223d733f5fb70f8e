import CLinux
import Images
import Linux
import SystemPackage

/// Unix sockets of every type. unix(7)
enum UnixSocketRoom: FileRoom {
  static let type = FdTypes.unixsk

  /// Bits of `uflags`: the socket is not part of the job.
  static let isExternal: UInt32 = 1

  static func recognises(_ facts: DescriptorFacts) -> Bool { facts.family == AF_UNIX }

  /// The entry is finished when all sockets of the job are known.
  static func save(_ facts: DescriptorFacts, id: UInt32, _ saving: Saving) throws(Failure) -> FileEntry? {
    try saving.files.unixSockets.add(facts, id: id, saving)
    return nil
  }

  static func settings(_ entry: FileEntry) -> (flags: Int32, owner: FownEntry) {
    (Int32(bitPattern: entry.usk.flags), entry.usk.fown)
  }

  static func check(_ entry: FileEntry, _ files: RestoredFiles) throws(Failure) {
    try files.unixSockets.check(entry.usk, files)
  }

  static func open(_ entry: FileEntry, _ files: RestoredFiles) throws(Failure) -> Descriptor {
    try files.unixSockets.descriptor(of: entry.usk)
  }
}

extension UnixSkEntry {
  var isStream: Bool { type == UInt32(SOCK_STREAM.rawValue) }
  var isDatagram: Bool { type == UInt32(SOCK_DGRAM.rawValue) }
  var isListening: Bool { state == UInt32(UnixSocketFacts.listening) }
  var isConnected: Bool { state == UInt32(UnixSocketFacts.connected) }
  var isExternal: Bool { uflags & UnixSocketRoom.isExternal != 0 }
  var isAbstract: Bool { name.first == 0 }
  /// The path that it is bound to; nil where it has no name in the file system.
  var path: String? {
    guard let first = name.first, first != 0 else { return nil }
    return String(decoding: name.prefix { $0 != 0 }, as: UTF8.self)
  }

  /// For messages: ` at /run/x.sock`, or nothing.
  var place: String { UnixSocketName.place(Array(name)) }
}

/// The options of unix sockets that SkOptsEntry has no fields for, and others of asm-generic/socket.h.
enum UnixOption {
  static let passCredentials: Int32 = 16
  static let peerCredentials: Int32 = 17
  static let passSecurity: Int32 = 34
  static let passProcess: Int32 = 76
  /// Linux 6.16.
  static let passRights: Int32 = 83
}

import CLinux
import FoundationEssentials
import Images
import Linux
import SystemPackage

/// Sockets to the kernel itself, with nothing in them that has not been read. netlink(7)
enum NetlinkSocketRoom: FileRoom {
  static let type = FdTypes.netlinksk

  static func recognises(_ facts: DescriptorFacts) -> Bool { facts.family == AF_NETLINK }

  // MARK: Save

  static func save(_ facts: DescriptorFacts, id: UInt32, _ saving: Saving) throws(Failure) -> FileEntry? {
    let socket = try facts.duplicate()
    guard socket.readiness() & (POLLIN | POLLERR) == 0 else {
      saving.refuse(
        facts.process, "\(facts.label) is a netlink socket with messages that have not been read",
        advice: "try again when the job has read them")
      return nil
    }
    var entry = NetlinkSkEntry()
    do throws(Errno) {
      (entry.portid, _) = try address(socket, ofPeer: false)
      (entry.dstPortid, entry.dstGroup) = try address(socket, ofPeer: true)
      entry.protocol = UInt32(try socket.option(SOL_SOCKET, SO_PROTOCOL))
      entry.groups = try groups(socket)
      entry.opts = try SocketOptions.read(socket)
      try saving.files.datagrams.noteOptions(socket, id: id)
    } catch .permissionDenied {
      saving.refuse(
        facts.process, "\(facts.label) is a netlink socket with a BPF program as its filter",
        advice: "detach it before the checkpoint, or wait for a version of torpor that saves it")
      return nil
    } catch { throw Failure("Cannot look at \(facts.label) of \(facts.process.label)", error) }
    entry.id = id
    entry.ino = facts.inode
    // NETLINK_UNCONNECTED and NETLINK_CONNECTED of the kernel.
    entry.state = entry.dstPortid != 0 || entry.dstGroup != 0 ? 1 : 0
    entry.flags = UInt32(bitPattern: facts.flags)
    entry.fown = try facts.owner(socket)
    entry.nsID = IdentityRoom.own.netNsID
    return .with { ($0.type, $0.id, $0.nlsk) = (type, id, entry) }
  }

  /// The port, and the groups or the group, of either end.
  private static func address(_ socket: borrowing Descriptor, ofPeer: Bool) throws(Errno) -> (UInt32, UInt32) {
    // struct sockaddr_nl: family, padding, port, groups.
    let bytes = try socket.addressBytes(ofPeer: ofPeer)
    guard bytes.count >= 12 else { throw .invalidArgument }
    let (port, groups) = bytes.withUnsafeBytes {
      ($0.loadUnaligned(fromByteOffset: 4, as: UInt32.self), $0.loadUnaligned(fromByteOffset: 8, as: UInt32.self))
    }
    return (port, ofPeer && groups != 0 ? UInt32(groups.trailingZeroBitCount + 1) : groups)
  }

  private static func groups(_ socket: borrowing Descriptor) throws(Errno) -> [UInt32] {
    let bytes = try socket.optionBytes(Netlink.level, Netlink.memberships, room: 512)
    var words = stride(from: 0, to: bytes.count & ~3, by: 4).map { offset in
      bytes.withUnsafeBytes { $0.loadUnaligned(fromByteOffset: offset, as: UInt32.self) }
    }
    while words.last == 0 { words.removeLast() }
    return words
  }

  // MARK: Restore

  static func settings(_ entry: FileEntry) -> (flags: Int32, owner: FownEntry) {
    (Int32(bitPattern: entry.nlsk.flags), entry.nlsk.fown)
  }

  static func open(_ entry: FileEntry, _ files: RestoredFiles) throws(Failure) -> Descriptor {
    let wanted = entry.nlsk
    do throws(Errno) {
      let type = files.datagrams.type(of: entry.id) ?? Int32(SOCK_RAW.rawValue)
      let socket = try Descriptor.socket(AF_NETLINK, type, Int32(wanted.protocol))
      if wanted.portid != 0 { try socket.bind(to: address(port: wanted.portid, groups: 0)) }
      for (index, word) in wanted.groups.enumerated() {
        for bit in 0..<32 where word >> UInt32(bit) & 1 == 1 {
          try socket.setOption(Netlink.level, Netlink.join, Int32(index * 32 + bit + 1))
        }
      }
      if wanted.state == 1 {
        let group = wanted.dstGroup
        try socket.connect(to: address(port: wanted.dstPortid, groups: group == 0 ? 0 : 1 << (group - 1)))
      }
      try SocketOptions.applyGeneral(wanted.opts, to: socket)
      try files.datagrams.applyOptions(entry.id, to: socket)
      return socket
    } catch {
      throw Failure(
        .cannotRestore, files.what,
        why: "a netlink socket with the port \(wanted.portid) cannot be opened: \(error.words)",
        advice: error == .addressInUse ? "end the program that has this port (/proc/net/netlink)" : "")
    }
  }

  private static func address(port: UInt32, groups: UInt32) -> [UInt8] {
    withUnsafeBytes(of: (UInt32(AF_NETLINK), port, groups)) { [UInt8]($0) }
  }
}

/// netlink(7)
enum Netlink {
  static let level: Int32 = 270
  static let join: Int32 = 1
  static let memberships: Int32 = 9
}

import CLinux
import Images
import Linux
import SystemPackage

/// What getsockopt(2) tells of a socket.
struct SocketFacts {
  var family: Int32 = 0
  var type: Int32 = 0
  var networkProtocol: Int32 = 0
  var isListening = false

  init(_ socket: borrowing Descriptor) throws(Errno) {
    family = try socket.option(SOL_SOCKET, 39 /* SO_DOMAIN */)
    type = try socket.option(SOL_SOCKET, Int32(SO_TYPE))
    networkProtocol = try socket.option(SOL_SOCKET, 38 /* SO_PROTOCOL */)
    isListening = try socket.option(SOL_SOCKET, 30 /* SO_ACCEPTCONN */) == 1
  }

  /// In words, for a socket that no room knows.
  static func describe(_ file: OpenFile) -> String {
    let facts = try? file.withDuplicate { socket throws(Errno) in try SocketFacts(socket) }
    guard let facts else { return "a socket (\(file.link))" }
    let family =
      switch facts.family {
      case AF_UNIX: "unix"
      case AF_INET: facts.networkProtocol == 6 ? "TCP" : "IPv4"
      case AF_INET6: facts.networkProtocol == 6 ? "TCP (IPv6)" : "IPv6"
      case AF_NETLINK: "netlink"
      case AF_PACKET: "packet"
      default: "family \(facts.family)"
      }
    return "a \(facts.isListening ? "listening " : "")\(family) socket (\(file.link))"
  }
}

extension Descriptor {
  /// getsockopt(2) of a number.
  func option(_ level: Int32, _ name: Int32) throws(Errno) -> Int32 {
    var value: Int32 = 0
    var length = socklen_t(MemoryLayout<Int32>.size)
    guard getsockopt(number, level, name, &value, &length) == 0 else { throw Errno(rawValue: clinux_errno()) }
    return value
  }

  /// setsockopt(2) of a number.
  func setOption(_ level: Int32, _ name: Int32, _ value: Int32) throws(Errno) {
    var value = value
    guard setsockopt(number, level, name, &value, socklen_t(MemoryLayout<Int32>.size)) == 0 else {
      throw Errno(rawValue: clinux_errno())
    }
  }
}

/// TCP sockets that listen, with nobody waiting to be accepted. tcp(7)
enum ListeningSocketRoom: FileRoom {
  static let type = FdTypes.inetsk
  /// TCP_LISTEN of include/net/tcp_states.h.
  private static let listenState: UInt32 = 10
  private static let tcp: Int32 = 6

  static func recognises(_ file: OpenFile) -> Bool {
    guard file.type == FileKind.socket else { return false }
    let facts = try? file.withDuplicate { socket throws(Errno) in try SocketFacts(socket) }
    guard let facts else { return false }
    return facts.isListening && facts.networkProtocol == tcp && [AF_INET, AF_INET6].contains(facts.family)
  }

  // MARK: Save

  static func save(_ file: OpenFile, id: UInt32, _ saving: Saving) throws(Failure) -> FileEntry? {
    let (entry, waiting) = try attempt("Cannot look at descriptor \(file.number) of \(file.process.label)") {
      () throws(Errno) in
      let owner = try file.owner()
      return try file.withDuplicate { socket throws(Errno) in try describe(socket, file, id, owner) }
    }
    guard waiting == 0 else {
      saving.refuse(
        file.process,
        "descriptor \(file.number) listens on port \(entry.srcPort), where \(waiting) connections wait to be accepted",
        advice: "try again when the program has accepted them")
      return nil
    }
    return .with { ($0.type, $0.id, $0.isk) = (.inetsk, id, entry) }
  }

  private static func describe(
    _ socket: borrowing Descriptor, _ file: OpenFile, _ id: UInt32, _ owner: FownEntry
  ) throws(Errno) -> (InetSkEntry, waiting: UInt32) {
    let facts = try SocketFacts(socket)
    var entry = InetSkEntry()
    (entry.id, entry.ino) = (id, UInt32(truncatingIfNeeded: file.status.st_ino))
    (entry.family, entry.type, entry.proto) = (UInt32(facts.family), UInt32(facts.type), UInt32(tcp))
    (entry.state, entry.dstPort, entry.flags, entry.fown) = (listenState, 0, UInt32(bitPattern: file.flags), owner)
    let words = facts.family == AF_INET ? 1 : 4
    var address = [UInt8](repeating: 0, count: 28)
    var length = socklen_t(address.count)
    let number = socket.number
    try withUnsafeMutablePointer(to: &length) { length throws(Errno) in
      try address.withMutableBytes { bytes throws(Errno) in
        _ = try systemCall(
          Int32(SYS_getsockname), Int(number), Int(bitPattern: bytes.baseAddress), Int(bitPattern: length))
      }
    }
    // sockaddr_in: family 2, port 2, address 4; sockaddr_in6: family 2, port 2, flow 4, address 16, scope 4.
    address.withUnsafeBytes { bytes in
      entry.srcPort = UInt32(UInt16(bigEndian: bytes.loadUnaligned(fromByteOffset: 2, as: UInt16.self)))
      let start = facts.family == AF_INET ? 4 : 8
      entry.srcAddr = (0..<words).map { bytes.loadUnaligned(fromByteOffset: start + 4 * $0, as: UInt32.self) }
    }
    entry.dstAddr = [UInt32](repeating: 0, count: words)
    if facts.family == AF_INET6 { entry.v6Only = try socket.option(41 /* IPPROTO_IPV6 */, 26 /* IPV6_V6ONLY */) == 1 }
    let queue = try queue(socket)
    entry.backlog = queue.limit
    entry.opts = try options(socket)
    entry.nsID = 2
    return (entry, queue.waiting)
  }

  /// For a listening socket the kernel gives the two lengths of its queue in fields of struct tcp_info that are of no
  /// other use then: tcpi_unacked and tcpi_sacked, at 24 and 28. (tcp_get_info, net/ipv4/tcp.c)
  private static func queue(_ socket: borrowing Descriptor) throws(Errno) -> (waiting: UInt32, limit: UInt32) {
    var information = [UInt8](repeating: 0, count: 104)
    var length = socklen_t(information.count)
    let number = socket.number
    try information.withMutableBytes { bytes throws(Errno) in
      guard getsockopt(number, tcp, 11 /* TCP_INFO */, bytes.baseAddress, &length) == 0 else {
        throw Errno(rawValue: clinux_errno())
      }
    }
    return information.withUnsafeBytes {
      ($0.loadUnaligned(fromByteOffset: 24, as: UInt32.self), $0.loadUnaligned(fromByteOffset: 28, as: UInt32.self))
    }
  }

  private static func options(_ socket: borrowing Descriptor) throws(Errno) -> SkOptsEntry {
    var entry = SkOptsEntry()
    entry.soSndbuf = UInt32(try socket.option(SOL_SOCKET, Int32(SO_SNDBUF)))
    entry.soRcvbuf = UInt32(try socket.option(SOL_SOCKET, Int32(SO_RCVBUF)))
    (entry.soSndTmoSec, entry.soSndTmoUsec, entry.soRcvTmoSec, entry.soRcvTmoUsec) = (0, 0, 0, 0)
    entry.reuseaddr = try socket.option(SOL_SOCKET, Int32(SO_REUSEADDR)) == 1
    entry.soReuseport = try socket.option(SOL_SOCKET, 15 /* SO_REUSEPORT */) == 1
    entry.soKeepalive = try socket.option(SOL_SOCKET, Int32(SO_KEEPALIVE)) == 1
    entry.soBufLock = UInt32(try socket.option(SOL_SOCKET, 72 /* SO_BUF_LOCK */))
    return entry
  }

  // MARK: Restore

  static func check(_ entry: FileEntry, _ files: RestoredFiles) throws(Failure) {
    let socket = entry.isk
    let words = socket.family == UInt32(AF_INET) ? 1 : 4
    guard socket.state == listenState, socket.proto == UInt32(tcp), socket.srcAddr.count == words, socket.srcPort < 65536,
      socket.family == UInt32(AF_INET) || socket.family == UInt32(AF_INET6)
    else {
      throw Failure(
        .cannotRestore, "Cannot restore \(files.imagePath)",
        why: "it has a network socket that does not listen for TCP (port \(socket.srcPort)), which is not supported yet",
        advice: "use criu restore for this image")
    }
  }

  static func open(_ entry: FileEntry, _ files: RestoredFiles) throws(Failure) -> Descriptor {
    let socket = entry.isk
    let advice = "end the program that has it (see ss -ltnp), or bring the address back"
    return try attempt("Cannot listen on port \(socket.srcPort) for the job", advice: advice) { () throws(Errno) in
      let type = Int(socket.type) | Int(O_CLOEXEC)
      let file = Descriptor(owning: Int32(try systemCall(Int32(SYS_socket), Int(socket.family), type, Int(tcp))))
      // The order of the kernel's checks: an address in use can only be shared if both say so before bind.
      try file.setOption(SOL_SOCKET, Int32(SO_REUSEADDR), 1)
      if socket.opts.soReuseport { try file.setOption(SOL_SOCKET, 15 /* SO_REUSEPORT */, 1) }
      if socket.hasV6Only { try file.setOption(41 /* IPPROTO_IPV6 */, 26 /* IPV6_V6ONLY */, socket.v6Only ? 1 : 0) }
      try bind(file, socket)
      try systemCall(Int32(SYS_listen), Int(file.number), Int(socket.backlog))
      if !socket.opts.reuseaddr { try file.setOption(SOL_SOCKET, Int32(SO_REUSEADDR), 0) }
      if socket.opts.soKeepalive { try file.setOption(SOL_SOCKET, Int32(SO_KEEPALIVE), 1) }
      // Locked sizes were chosen by the program: 1 for sending, 2 for receiving. Setting one doubles it.
      if socket.opts.soBufLock & 1 != 0 { try file.setOption(SOL_SOCKET, Int32(SO_SNDBUF), Int32(socket.opts.soSndbuf / 2)) }
      if socket.opts.soBufLock & 2 != 0 { try file.setOption(SOL_SOCKET, Int32(SO_RCVBUF), Int32(socket.opts.soRcvbuf / 2)) }
      try systemCall(
        Int32(SYS_fcntl), Int(file.number), Int(F_SETFL), Int(Int32(bitPattern: socket.flags) & (O_NONBLOCK | O_ASYNC)))
      try file.setOwner(socket.fown)
      return file
    }
  }

  private static func bind(_ file: borrowing Descriptor, _ socket: InetSkEntry) throws(Errno) {
    var address = [UInt8](repeating: 0, count: socket.family == UInt32(AF_INET) ? 16 : 28)
    let length = address.count
    let number = file.number
    address.withUnsafeMutableBytes { bytes in
      bytes.storeBytes(of: UInt16(socket.family), toByteOffset: 0, as: UInt16.self)
      bytes.storeBytes(of: UInt16(socket.srcPort).bigEndian, toByteOffset: 2, as: UInt16.self)
      let start = socket.family == UInt32(AF_INET) ? 4 : 8
      for (index, word) in socket.srcAddr.enumerated() {
        bytes.storeBytes(of: word, toByteOffset: start + 4 * index, as: UInt32.self)
      }
    }
    try address.withBytes { bytes throws(Errno) in
      _ = try systemCall(Int32(SYS_bind), Int(number), Int(bitPattern: bytes.baseAddress), length)
    }
  }
}

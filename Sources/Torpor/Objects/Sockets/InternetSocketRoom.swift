import CLinux
import Images
import Linux
import SystemPackage

/// Sockets over IPv4 and IPv6: those of UDP, and those of TCP that have no connection: they listen, or have not been used
/// yet.
enum InternetSocketRoom: FileRoom {
  static let type = FdTypes.inetsk

  /// TCP_ESTABLISHED, TCP_CLOSE and TCP_LISTEN of the kernel.
  private static let connected: UInt32 = 1
  private static let closed: UInt32 = 7
  private static let listening: UInt32 = 10

  static func recognises(_ facts: DescriptorFacts) -> Bool { facts.family == AF_INET || facts.family == AF_INET6 }

  // MARK: Save

  static func save(_ facts: DescriptorFacts, id: UInt32, _ saving: Saving) throws(Failure) -> FileEntry? {
    let socket = try facts.duplicate()
    let refusal: (why: String, advice: String)?
    var entry = InetSkEntry()
    do throws(Errno) {
      entry.family = UInt32(try socket.option(SOL_SOCKET, SO_DOMAIN))
      entry.type = UInt32(try socket.option(SOL_SOCKET, SO_TYPE))
      entry.proto = UInt32(try socket.option(SOL_SOCKET, SO_PROTOCOL))
      let isUDP = isUDP(entry)
      refusal = try isUDP ? obstacleOfUDP(socket, &entry) : obstacle(socket, &entry)
      if refusal == nil {
        try fill(&entry, socket)
        try saving.files.datagrams.noteOptions(socket, id: id)
        if isUDP { try noteDatagrams(facts, socket, &entry, id: id, saving) }
      }
    } catch { throw Failure("Cannot look at \(facts.label) of \(facts.process.label)", error) }
    if let refusal {
      saving.refuse(facts.process, "\(facts.label) is \(refusal.why)", advice: refusal.advice)
      return nil
    }
    entry.id = id
    entry.ino = facts.inode
    // The network namespace, as `IdentityRoom` numbers it.
    entry.nsID = IdentityRoom.own.netNsID
    entry.flags = UInt32(bitPattern: facts.flags)
    entry.fown = try facts.owner(socket)
    return .with {
      $0.type = type
      $0.id = id
      $0.isk = entry
    }
  }

  private static func isUDP(_ entry: InetSkEntry) -> Bool {
    let isKnown = entry.proto == UInt32(UDP.level) || entry.proto == UInt32(UDP.liteLevel)
    return isKnown && entry.type == UInt32(SOCK_DGRAM.rawValue)
  }

  /// The same for UDP.
  private static func obstacleOfUDP(
    _ socket: borrowing Descriptor, _ entry: inout InetSkEntry
  ) throws(Errno) -> (why: String, advice: String)? {
    let place = try socket.localAddress().map { " at \($0.text)" } ?? ""
    entry.state = (try? socket.peerAddress()) == nil ? closed : connected
    entry.backlog = 0
    var unsent: Int32 = 0
    if try socket.option(UDP.level, UDP.cork) != 0 { try socket.control(0x5411 /* SIOCOUTQ */, &unsent) }
    if unsent > 0 { return ("a UDP socket\(place) with corked data", "try again when the job has sent it") }
    if try socket.option(UDP.level, UDP.encapsulation) != 0 {
      return ("a UDP socket\(place) that encapsulates other protocols (UDP_ENCAP)", "close it before the checkpoint")
    }
    do throws(Errno) { _ = try socket.packetFilter() } catch .permissionDenied {
      return (
        "a UDP socket\(place) with a BPF program as its filter",
        "detach it before the checkpoint, or wait for a version of torpor that saves it"
      )
    }
    return nil
  }

  private static func noteDatagrams(
    _ facts: DescriptorFacts, _ socket: borrowing Descriptor, _ entry: inout InetSkEntry, id: UInt32, _ saving: Saving
  ) throws(Errno) {
    let isV6 = entry.family == UInt32(AF_INET6)
    if let peer = try? socket.peerAddress() {
      entry.dstAddr = peer.words
      entry.dstPort = UInt32(peer.port)
      if peer.isLinkLocal, let name = interfaceName(peer.scope) { entry.ifname = name }
    }
    let halves = try saving.files.datagrams.shutdown(facts.inode, Int32(entry.family), Int32(entry.proto))
    if let how = SkShutdown(rawValue: Int(halves)), how != .none { entry.shutdown = how }
    for level in isV6 ? [false, true] : [false] {
      guard let groups = MulticastGroups.read(socket, id: id, isV6: level) else {
        saving.refuse(
          facts.process, "\(facts.label) is a UDP socket that listens to some senders of a multicast group only",
          advice: "leave the group before the checkpoint")
        continue
      }
      saving.files.datagrams.note(groups)
    }
    try saving.files.datagrams.noteQueue(socket, facts, id: id)
  }

  /// Why the socket cannot be saved; also finds its state.
  private static func obstacle(
    _ socket: borrowing Descriptor, _ entry: inout InetSkEntry
  ) throws(Errno) -> (why: String, advice: String)? {
    let advice = "end it before the checkpoint, or wait for a version of torpor that saves it"
    let place = try socket.localAddress().map { " at \($0.text)" } ?? ""
    guard entry.type == UInt32(SOCK_STREAM.rawValue), entry.proto == UInt32(TCP.level) else {
      return ("an internet socket of protocol \(entry.proto)" + place, advice)
    }
    let information = try socket.optionBytes(TCP.level, TCP.information, room: 256)
    guard information.count >= 32 else { return ("a TCP socket that the kernel does not describe", advice) }
    entry.state = UInt32(information[0])
    // For a listening socket: connections that wait for accept(2), and how many may.
    let (waiting, backlog) = information.withUnsafeBytes {
      ($0.loadUnaligned(fromByteOffset: 24, as: UInt32.self), $0.loadUnaligned(fromByteOffset: 28, as: UInt32.self))
    }
    switch entry.state {
    case closed: entry.backlog = 0
    case listening where waiting > 0:
      return (
        "a listening TCP socket\(place) with \(waiting) connections that wait to be accepted",
        "try again when the job has accepted them"
      )
    case listening: entry.backlog = backlog
    default: return ("a TCP connection\(place)", advice)
    }
    do throws(Errno) { _ = try socket.packetFilter() } catch .permissionDenied {
      return (
        "a TCP socket\(place) with a BPF program as its filter",
        "detach it before the checkpoint, or wait for a version of torpor that saves it"
      )
    }
    return nil
  }

  private static func fill(_ entry: inout InetSkEntry, _ socket: borrowing Descriptor) throws(Errno) {
    let isV6 = entry.family == UInt32(AF_INET6)
    let address = try socket.localAddress() ?? InternetAddress(words: isV6 ? [0, 0, 0, 0] : [0], port: 0)
    entry.srcAddr = address.words
    entry.dstAddr = [UInt32](repeating: 0, count: address.words.count)
    entry.srcPort = UInt32(address.port)
    entry.dstPort = 0
    if isV6 { entry.v6Only = try socket.option(IP.v6Level, IP.v6Only) != 0 }
    if address.isLinkLocal, let name = interfaceName(address.scope) { entry.ifname = name }
    entry.opts = try SocketOptions.read(socket)
    entry.ipOpts = try SocketOptions.readIP(socket, isV6: isV6)
    if entry.proto == UInt32(TCP.level) { entry.tcpOpts = try SocketOptions.readTCP(socket) }
  }

  private static func interfaceName(_ index: UInt32) -> String? {
    var bytes = [CChar](repeating: 0, count: 16 + 1)
    guard index != 0, if_indextoname(index, &bytes) != nil else { return nil }
    return String(decoding: bytes.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
  }

  // MARK: Restore

  static func settings(_ entry: FileEntry) -> (flags: Int32, owner: FownEntry) {
    (Int32(bitPattern: entry.isk.flags), entry.isk.fown)
  }

  static func check(_ entry: FileEntry, _ files: RestoredFiles) throws(Failure) {
    let socket = entry.isk
    let isTCP = socket.proto == UInt32(TCP.level) && socket.type == UInt32(SOCK_STREAM.rawValue)
    guard isUDP(socket) || (isTCP && (socket.state == closed || socket.state == listening)) else {
      throw Failure(
        .cannotRestore, files.what,
        why: isTCP ? "the job has a TCP connection" : "the job has an internet socket of protocol \(socket.proto)",
        advice: "a later version of torpor will be able to restore it")
    }
    let words = socket.family == UInt32(AF_INET6) ? 4 : 1
    guard socket.srcAddr.count == words, socket.srcPort < 65536,
      !isConnectedUDP(socket) || socket.dstAddr.count == words
    else {
      throw files.damaged("a socket has an address that is none")
    }
    // Whether its address can be had is found out by taking it for a moment.
    if socket.srcPort != 0 { _ = try make(socket, files) }
  }

  private static func isConnectedUDP(_ entry: InetSkEntry) -> Bool { isUDP(entry) && entry.state == connected }

  static func open(_ entry: FileEntry, _ files: RestoredFiles) throws(Failure) -> Descriptor {
    let socket = try make(entry.isk, files)
    do throws(Errno) {
      if entry.isk.state == listening { try socket.listen(backlog: Int32(truncatingIfNeeded: entry.isk.backlog)) }
      if isConnectedUDP(entry.isk) {
        let peer = InternetAddress(
          words: entry.isk.dstAddr, port: UInt16(truncatingIfNeeded: entry.isk.dstPort), scope: scope(entry.isk))
        try socket.connect(to: peer.bytes)
      }
      try SocketOptions.apply(entry.isk, to: socket)
      switch entry.isk.shutdown {
      case .read where isUDP(entry.isk): try socket.shutdown(Int32(SHUT_RD))
      case .write where isUDP(entry.isk): try socket.shutdown(Int32(SHUT_WR))
      case .both where isUDP(entry.isk): try socket.shutdown(Int32(SHUT_RDWR))
      default: break
      }
    } catch { throw Failure("\(files.what): a socket at \(address(entry.isk).text)", error) }
    let lost = files.datagrams.refill(entry.id, socket, entry.isk)
    if lost > 0 {
      files.log?.warning(
        "\(lost) datagrams that waited in the UDP socket at \(address(entry.isk).text) are lost: sending them again takes CAP_NET_RAW"
      )
    }
    return socket
  }

  /// A socket at the address.
  private static func make(_ entry: InetSkEntry, _ files: RestoredFiles) throws(Failure) -> Descriptor {
    let address = address(entry)
    do throws(Errno) {
      let socket = try Descriptor.socket(Int32(entry.family), Int32(entry.type), Int32(entry.proto))
      if entry.hasV6Only { try socket.setOption(IP.v6Level, IP.v6Only, entry.v6Only ? 1 : 0) }
      if entry.ipOpts.freebind { try socket.setOption(IP.level, IP.freeBind, 1) }
      if entry.opts.soReuseport { try socket.setOption(SOL_SOCKET, SO_REUSEPORT, 1) }
      if !entry.opts.soBoundDev.isEmpty {
        try socket.setOption(SOL_SOCKET, SO_BINDTODEVICE, bytes: Array(entry.opts.soBoundDev.utf8) + [0])
      }
      try files.datagrams.applyOptions(entry.id, to: socket)
      // Connections of the job's that have ended keep its port busy for a while, but for those who say this.
      if !isUDP(entry) || entry.opts.reuseaddr { try socket.setOption(SOL_SOCKET, SO_REUSEADDR, 1) }
      if entry.srcPort != 0 || !address.isAny { try socket.bind(to: address) }
      return socket
    } catch {
      var why = "the socket at \(address.text) cannot be opened: \(error.words)"
      var advice = "make the address available here"
      if error == .addressInUse {
        let name = isUDP(entry) ? "UDP" : "TCP"
        let holder = PortHolder.find(address.port, isUDP: isUDP(entry)).map { " by \($0)" } ?? ""
        why = "\(name) port \(address.port) is in use\(holder)"
        advice = "end that program, or restore in another network namespace"
      }
      throw Failure(.cannotRestore, files.what, why: why, advice: advice)
    }
  }

  private static func address(_ entry: InetSkEntry) -> InternetAddress {
    InternetAddress(words: entry.srcAddr, port: UInt16(truncatingIfNeeded: entry.srcPort), scope: scope(entry))
  }

  private static func scope(_ entry: InetSkEntry) -> UInt32 { entry.ifname.isEmpty ? 0 : if_nametoindex(entry.ifname) }
}

/// Options of IPPROTO_TCP. tcp(7)
enum TCP {
  static let level: Int32 = 6
  static let noDelay: Int32 = 1
  static let cork: Int32 = 3
  static let keepIdle: Int32 = 4
  static let keepInterval: Int32 = 5
  static let keepCount: Int32 = 6
  static let information: Int32 = 11
}

/// Options of IPPROTO_IP and IPPROTO_IPV6. ip(7), ipv6(7)
enum IP {
  static let level: Int32 = 0
  static let v6Level: Int32 = 41
  static let typeOfService: Int32 = 1
  static let timeToLive: Int32 = 2
  static let packetInformation: Int32 = 8
  static let freeBind: Int32 = 15
  static let v6Only: Int32 = 26
  static let v6PacketInformation: Int32 = 49
}

/// Who listens at a port.
enum PortHolder {
  /// The PID and name of the process; nil where it cannot be found.
  static func find(_ port: UInt16, isUDP: Bool = false) -> String? {
    let name = "/proc/net/\(isUDP ? "udp" : "tcp")"
    guard let inode = inode(of: port, name, isUDP) ?? inode(of: port, name + "6", isUDP) else { return nil }
    return FileHolders.find(["socket:[\(inode)]"], except: []).values.first
  }

  private static func inode(of port: UInt16, _ table: String, _ isUDP: Bool) -> UInt64? {
    guard let text = try? readWholeFile(table) else { return nil }
    for line in String(decoding: text, as: UTF8.self).split(separator: "\n").dropFirst() {
      // sl, local address, remote address, state, queues, timer, retransmits, uid, timeout, inode.
      let words = line.split(separator: " ")
      guard words.count > 9, isUDP || words[3] == "0A", let text = words[1].split(separator: ":").last else { continue }
      if UInt16(text, radix: 16) == port { return UInt64(words[9]) }
    }
    return nil
  }
}

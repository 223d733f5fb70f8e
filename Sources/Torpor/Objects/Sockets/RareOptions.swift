import CLinux
import FoundationEssentials
import Images
import Linux
import SystemPackage

/// Socket options that CRIU's messages have no fields for: those are kept that a new socket has otherwise.
struct RareOptions {
  private struct Kind: Hashable {
    let family, type, protocolNumber: Int32
  }

  private struct Option {
    let level, name: Int32
  }

  private static func options(_ level: Int32, _ names: [Int32]) -> [Option] {
    names.map { Option(level: level, name: $0) }
  }

  /// SO_TIMESTAMP, SO_TIMESTAMPNS, SO_TIMESTAMPING, SO_RXQ_OVFL, SO_NOFCS, SO_SELECT_ERR_QUEUE, SO_BUSY_POLL,
  /// SO_MAX_PACING_RATE, SO_ZEROCOPY.
  private static let general = options(SOL_SOCKET, [29, 35, 37, 40, 43, 45, 46, 47, 60])
  /// From IP_RECVOPTS to IP_LOCAL_PORT_RANGE of linux/in.h.
  private static let ip = options(
    IP.level, [4, 6, 7, 10, 11, 12, 13, 18, 19, 20, 21, 23, 24, 25, 26, 32, 33, 34, 49, 50, 51])
  /// From IPV6_FLOWINFO to IPV6_FREEBIND of linux/in6.h.
  private static let ipv6 = options(
    IP.v6Level,
    [11, 16, 17, 18, 19, 23, 25, 29, 31, 33, 51, 53, 56, 58, 60, 62, 66, 67, 70, 72, 73, 74, 75, 76, 77, 78])
  /// TCP_MAXSEG, TCP_SYNCNT, TCP_LINGER2, TCP_DEFER_ACCEPT, TCP_WINDOW_CLAMP, TCP_CONGESTION, TCP_THIN_LINEAR_TIMEOUTS,
  /// TCP_USER_TIMEOUT, TCP_FASTOPEN, TCP_NOTSENT_LOWAT, TCP_FASTOPEN_CONNECT, TCP_INQ, TCP_TX_DELAY.
  private static let tcp = options(TCP.level, [2, 7, 8, 9, 10, 13, 16, 18, 23, 25, 30, 36, 37])
  /// UDP_CORK, UDP_NO_CHECK6_TX, UDP_NO_CHECK6_RX, UDP_SEGMENT, UDP_GRO.
  private static let udp = options(UDP.level, [UDP.cork, 101, 102, 103, 104])
  /// UDPLITE_SEND_CSCOV, UDPLITE_RECV_CSCOV.
  private static let udpLite = options(UDP.liteLevel, [10, 11])

  /// NETLINK_PKTINFO, NETLINK_BROADCAST_ERROR, NETLINK_NO_ENOBUFS, NETLINK_LISTEN_ALL_NSID, NETLINK_CAP_ACK,
  /// NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK.
  private static let netlink = options(Netlink.level, [3, 4, 5, 8, 10, 11, 12])

  private static func all(_ kind: Kind) -> [Option] {
    guard kind.family != AF_UNIX else { return general }
    // Its entry has no field for the type of a netlink socket.
    guard kind.family != AF_NETLINK else { return general + netlink + options(SOL_SOCKET, [SO_TYPE]) }
    var result = general + ip
    if kind.family == AF_INET6 { result += ipv6 }
    switch kind.protocolNumber {
    case TCP.level: result += tcp
    case UDP.level: result += udp
    case UDP.liteLevel: result += udp + udpLite
    default: break
    }
    return result
  }

  private var usual: [Kind: [[UInt8]?]] = [:]

  /// What of the socket `id` is to be kept.
  mutating func read(_ socket: borrowing Descriptor, id: UInt32) throws(Errno) -> [SocketOptionEntry] {
    let kind = Kind(
      family: try socket.option(SOL_SOCKET, SO_DOMAIN), type: try socket.option(SOL_SOCKET, SO_TYPE),
      protocolNumber: try socket.option(SOL_SOCKET, SO_PROTOCOL))
    let options = Self.all(kind)
    if usual[kind] == nil {
      let type = kind.family == AF_NETLINK ? Int32(SOCK_RAW.rawValue) : kind.type
      let fresh = try Descriptor.socket(kind.family, type, kind.protocolNumber)
      usual[kind] = options.map { option in try? fresh.optionBytes(option.level, option.name, room: 64) }
    }
    var entries: [SocketOptionEntry] = []
    for (option, usual) in zip(options, usual[kind] ?? []) {
      guard let value = try? socket.optionBytes(option.level, option.name, room: 64), value != usual, !value.isEmpty
      else { continue }
      entries.append(
        .with { ($0.id, $0.level, $0.name, $0.value) = (id, option.level, option.name, Data(value)) })
    }
    return entries
  }

  /// Sets what was kept.
  static func apply(_ entries: [SocketOptionEntry], to socket: borrowing Descriptor) throws(Errno) {
    for entry in entries where !(entry.level == SOL_SOCKET && entry.name == SO_TYPE) {
      try socket.setOption(entry.level, entry.name, bytes: Array(entry.value))
    }
  }
}

/// The multicast groups that a socket has joined: as MCAST_JOIN_GROUP, the option that joins one.
enum MulticastGroups {
  private static let join: Int32 = 42
  private static let filter: Int32 = 48

  /// - Returns: nil where it listens to some senders of a group only.
  static func read(_ socket: borrowing Descriptor, id: UInt32, isV6: Bool) -> [SocketOptionEntry]? {
    var entries: [SocketOptionEntry] = []
    let level = isV6 ? IP.v6Level : IP.level
    for (interface, group) in isV6 ? groupsOfIPv6() : groupsOfIPv4() {
      // struct group_req, and the start of struct group_filter, the same; then mode and number of sources.
      var request = withUnsafeBytes(of: UInt64(interface)) { [UInt8]($0) } + group.bytes
      request += [UInt8](repeating: 0, count: 136 - request.count)
      guard let found = filter(socket, level, request) else { continue }
      guard found.mode == 0 /* MCAST_EXCLUDE */, found.sources == 0 else { return nil }
      entries.append(.with { ($0.id, $0.level, $0.name, $0.value) = (id, level, join, Data(request)) })
    }
    return entries
  }

  /// What the socket takes of the group; nil where it is no member.
  private static func filter(_ socket: borrowing Descriptor, _ level: Int32, _ request: [UInt8]) -> (
    mode: UInt32, sources: UInt32
  )? {
    var bytes = request + [UInt8](repeating: 0, count: 8)
    var length = UInt32(bytes.count)
    let number = socket.number
    let result = bytes.withUnsafeMutableBytes { bytes in
      withUnsafeMutablePointer(to: &length) { length in
        clinux_syscall(
          Int(SYS_getsockopt), Int(number), Int(level), Int(filter), Int(bitPattern: bytes.baseAddress),
          Int(bitPattern: length), 0)
      }
    }
    guard result == 0 else { return nil }
    return bytes.withUnsafeBytes { $0.loadUnaligned(fromByteOffset: 136, as: (UInt32, UInt32).self) }
  }

  /// All groups that anybody on this machine is in.
  private static func groupsOfIPv4() -> [(UInt32, InternetAddress)] {
    var interface: UInt32 = 0
    var result: [(UInt32, InternetAddress)] = []
    for line in lines("/proc/self/net/igmp") {
      let words = line.split { $0 == " " || $0 == "\t" }
      guard let first = words.first else { continue }
      if line.first?.isNumber == true {
        interface = UInt32(first) ?? 0
      } else if let group = UInt32(first, radix: 16) {
        result.append((interface, InternetAddress(words: [group], port: 0)))
      }
    }
    return result
  }

  private static func groupsOfIPv6() -> [(UInt32, InternetAddress)] {
    lines("/proc/self/net/igmp6").compactMap { line in
      let words = line.split(separator: " ")
      guard words.count > 2, let interface = UInt32(words[0]), words[2].count == 32 else { return nil }
      let digits = Array(words[2])
      let parts = stride(from: 0, to: 32, by: 8).compactMap {
        UInt32(String(digits[$0..<($0 + 8)]), radix: 16)?.bigEndian
      }
      return parts.count == 4 ? (interface, InternetAddress(words: parts, port: 0)) : nil
    }
  }

  private static func lines(_ path: String) -> [Substring] {
    (try? readWholeFile(path)).map { String(decoding: $0, as: UTF8.self).split(separator: "\n") } ?? []
  }
}

/// udp(7), and UDP-Lite.
enum UDP {
  static let level: Int32 = 17
  static let liteLevel: Int32 = 136
  static let cork: Int32 = 1
  static let encapsulation: Int32 = 100
}

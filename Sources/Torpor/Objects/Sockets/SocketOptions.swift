import CLinux
import Images
import Linux
import SystemPackage

/// What setsockopt(2) sets: read for the image, and set again where a new socket differs.
enum SocketOptions {
  // MARK: Read

  /// - Throws: `.permissionDenied` where a BPF program filters its packets: only classic filters can be read.
  static func read(_ socket: borrowing Descriptor) throws(Errno) -> SkOptsEntry {
    var entry = SkOptsEntry()
    func number(_ name: Int32) throws(Errno) -> UInt32 { UInt32(bitPattern: try socket.option(SOL_SOCKET, name)) }
    func flag(_ name: Int32) throws(Errno) -> Bool { try number(name) != 0 }
    entry.soSndbuf = try number(SO_SNDBUF)
    entry.soRcvbuf = try number(SO_RCVBUF)
    entry.soBufLock = try number(SO_BUF_LOCK)
    (entry.soSndTmoSec, entry.soSndTmoUsec) = try time(socket, SO_SNDTIMEO)
    (entry.soRcvTmoSec, entry.soRcvTmoUsec) = try time(socket, SO_RCVTIMEO)
    entry.reuseaddr = try flag(SO_REUSEADDR)
    entry.soReuseport = try flag(SO_REUSEPORT)
    entry.soPriority = try number(SO_PRIORITY)
    entry.soRcvlowat = try number(SO_RCVLOWAT)
    let mark = try number(SO_MARK)
    if mark != 0 { entry.soMark = mark }
    entry.soDontroute = try flag(SO_DONTROUTE)
    entry.soNoCheck = try flag(SO_NO_CHECK)
    entry.soBroadcast = try flag(SO_BROADCAST)
    entry.soKeepalive = try flag(SO_KEEPALIVE)
    entry.soOobinline = try number(SO_OOBINLINE)
    let linger = try socket.optionBytes(SOL_SOCKET, SO_LINGER, room: 8)
    if linger.count == 8, linger[0] != 0 {
      entry.soLinger = linger.withUnsafeBytes { $0.loadUnaligned(fromByteOffset: 4, as: UInt32.self) }
    }
    let device = try socket.optionBytes(SOL_SOCKET, SO_BINDTODEVICE, room: 16).prefix { $0 != 0 }
    if !device.isEmpty { entry.soBoundDev = String(decoding: device, as: UTF8.self) }
    entry.soFilter = try socket.packetFilter()
    return entry
  }

  private static func time(_ socket: borrowing Descriptor, _ name: Int32) throws(Errno) -> (UInt64, UInt64) {
    let bytes = try socket.optionBytes(SOL_SOCKET, name, room: 16)
    guard bytes.count == 16 else { throw .invalidArgument }
    return bytes.withUnsafeBytes { $0.loadUnaligned(as: (UInt64, UInt64).self) }
  }

  static func readIP(_ socket: borrowing Descriptor, isV6: Bool) throws(Errno) -> IpOptsEntry {
    var entry = IpOptsEntry()
    let level = IP.level
    // Both families keep this one in the same place.
    if try socket.option(level, IP.freeBind) != 0 { entry.freebind = true }
    if isV6 {
      if try socket.option(IP.v6Level, IP.v6PacketInformation) != 0 { entry.pktinfo = true }
      return entry
    }
    if try socket.option(level, IP.packetInformation) != 0 { entry.pktinfo = true }
    let service = UInt32(bitPattern: try socket.option(level, IP.typeOfService))
    if service != 0 { entry.tos = service }
    let hops = UInt32(bitPattern: try socket.option(level, IP.timeToLive))
    if hops != 0 { entry.ttl = hops }
    return entry
  }

  static func readTCP(_ socket: borrowing Descriptor) throws(Errno) -> TcpOptsEntry {
    var entry = TcpOptsEntry()
    func number(_ name: Int32) throws(Errno) -> UInt32 { UInt32(bitPattern: try socket.option(TCP.level, name)) }
    entry.cork = try number(TCP.cork) != 0
    entry.nodelay = try number(TCP.noDelay) != 0
    entry.keepcnt = try number(TCP.keepCount)
    entry.keepidle = try number(TCP.keepIdle)
    entry.keepintvl = try number(TCP.keepInterval)
    return entry
  }

  // MARK: Set

  /// Sets every option that the new socket does not have yet.
  static func apply(_ entry: InetSkEntry, to socket: borrowing Descriptor) throws(Errno) {
    try applyGeneral(entry.opts, to: socket)
    let isV6 = entry.family == UInt32(AF_INET6)
    let ip = entry.ipOpts
    let level = isV6 ? IP.v6Level : IP.level
    if ip.pktinfo { try set(socket, level, isV6 ? IP.v6PacketInformation : IP.packetInformation, 1) }
    if ip.hasTos, !isV6 { try set(socket, level, IP.typeOfService, ip.tos) }
    if ip.hasTtl, !isV6 { try set(socket, level, IP.timeToLive, ip.ttl) }
    guard entry.proto == UInt32(TCP.level) else { return }
    let tcp = entry.tcpOpts
    if tcp.hasKeepcnt { try set(socket, TCP.level, TCP.keepCount, tcp.keepcnt) }
    if tcp.hasKeepidle { try set(socket, TCP.level, TCP.keepIdle, tcp.keepidle) }
    if tcp.hasKeepintvl { try set(socket, TCP.level, TCP.keepInterval, tcp.keepintvl) }
    if tcp.hasNodelay { try set(socket, TCP.level, TCP.noDelay, tcp.nodelay ? 1 : 0) }
    if tcp.hasCork { try set(socket, TCP.level, TCP.cork, tcp.cork ? 1 : 0) }
  }

  static func applyGeneral(_ entry: SkOptsEntry, to socket: borrowing Descriptor) throws(Errno) {
    func set(_ name: Int32, _ value: UInt32) throws(Errno) { try self.set(socket, SOL_SOCKET, name, value) }
    func set(_ name: Int32, _ value: Bool) throws(Errno) { try self.set(socket, SOL_SOCKET, name, value ? 1 : 0) }
    try setBuffer(socket, SO_SNDBUF, force: SO_SNDBUFFORCE, entry.soSndbuf)
    try setBuffer(socket, SO_RCVBUF, force: SO_RCVBUFFORCE, entry.soRcvbuf)
    if entry.hasSoBufLock { try set(SO_BUF_LOCK, entry.soBufLock) }
    try setTime(socket, SO_SNDTIMEO, entry.soSndTmoSec, entry.soSndTmoUsec)
    try setTime(socket, SO_RCVTIMEO, entry.soRcvTmoSec, entry.soRcvTmoUsec)
    if entry.hasSoPriority { try set(SO_PRIORITY, entry.soPriority) }
    if entry.hasSoRcvlowat { try set(SO_RCVLOWAT, entry.soRcvlowat) }
    if entry.hasSoMark { try set(SO_MARK, entry.soMark) }
    if entry.hasSoDontroute { try set(SO_DONTROUTE, entry.soDontroute) }
    if entry.hasSoNoCheck { try set(SO_NO_CHECK, entry.soNoCheck) }
    if entry.hasSoBroadcast { try set(SO_BROADCAST, entry.soBroadcast) }
    if entry.hasSoKeepalive { try set(SO_KEEPALIVE, entry.soKeepalive) }
    if entry.hasSoOobinline { try set(SO_OOBINLINE, entry.soOobinline) }
    if entry.hasSoLinger {
      let value: (Int32, UInt32) = (1, entry.soLinger)
      try socket.setOption(SOL_SOCKET, SO_LINGER, bytes: withUnsafeBytes(of: value) { [UInt8]($0) })
    }
    if !entry.soFilter.isEmpty { try socket.attach(entry.soFilter) }
    // These two were set to be able to bind.
    try set(SO_REUSEADDR, entry.reuseaddr)
    try set(SO_REUSEPORT, entry.soReuseport)
  }

  private static func set(
    _ socket: borrowing Descriptor, _ level: Int32, _ name: Int32, _ value: UInt32
  ) throws(Errno) {
    let value = Int32(bitPattern: value)
    if let current = try? socket.option(level, name), current == value { return }
    try socket.setOption(level, name, value)
  }

  /// The kernel tells twice what was asked for. Going beyond its limit takes CAP_NET_ADMIN.
  private static func setBuffer(
    _ socket: borrowing Descriptor, _ name: Int32, force: Int32, _ value: UInt32
  ) throws(Errno) {
    guard try socket.option(SOL_SOCKET, name) != Int32(bitPattern: value) else { return }
    let half = Int32(bitPattern: value / 2)
    do { try socket.setOption(SOL_SOCKET, force, half) } catch .notPermitted {
      try socket.setOption(SOL_SOCKET, name, half)
    }
  }

  private static func setTime(
    _ socket: borrowing Descriptor, _ name: Int32, _ seconds: UInt64, _ microseconds: UInt64
  ) throws(Errno) {
    guard seconds != 0 || microseconds != 0 else { return }
    let value = (seconds, microseconds)
    try socket.setOption(SOL_SOCKET, name, bytes: withUnsafeBytes(of: value) { [UInt8]($0) })
  }
}

/// SO_BUF_LOCK of asm/socket.h (Linux 5.14).
private let SO_BUF_LOCK: Int32 = 72

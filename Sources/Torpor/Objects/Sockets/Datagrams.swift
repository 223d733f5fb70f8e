import CLinux
import FoundationEssentials
import Images
import Linux
import Logging
import SystemPackage

/// Options and waiting datagrams of the internet sockets of a frozen job.
struct SavedDatagrams {
  private var sockets: [(id: UInt32, facts: DescriptorFacts, peekOffset: Int32)] = []
  private var entries: [DatagramEntry] = []
  private var options: [SocketOptionEntry] = []
  private var rare = RareOptions()
  private var shut: [Int32: [UInt32: InternetSocketFacts]] = [:]

  /// Notes what of the socket has no field in its entry.
  mutating func noteOptions(_ socket: borrowing Descriptor, id: UInt32) throws(Errno) {
    options += try rare.read(socket, id: id)
  }

  mutating func note(_ groups: [SocketOptionEntry]) { options += groups }

  mutating func noteQueue(_ socket: borrowing Descriptor, _ facts: DescriptorFacts, id: UInt32) throws(Errno) {
    let offset = try socket.option(SOL_SOCKET, SO_PEEK_OFF)
    if offset >= 0 {
      let value = withUnsafeBytes(of: offset) { Data($0) }
      options.append(.with { ($0.id, $0.level, $0.name, $0.value) = (id, SOL_SOCKET, SO_PEEK_OFF, value) })
    }
    if socket.readiness() & POLLIN != 0 { sockets.append((id, facts, offset)) }
  }

  /// Which halves of the socket are shut.
  mutating func shutdown(_ inode: UInt32, _ family: Int32, _ protocolNumber: Int32) throws(Errno) -> UInt8 {
    let key = family << 16 | protocolNumber
    if shut[key] == nil { shut[key] = try readInternetSockets(family, protocolNumber) }
    return shut[key]?[inode]?.shutdown ?? 0
  }

  mutating func finish() throws(Failure) {
    guard !sockets.isEmpty else { return }
    let found = try SocketQueue.readAll(sockets.map { ($0.facts, $0.peekOffset) })
    for (socket, messages) in zip(sockets, found) {
      for message in messages {
        entries.append(
          .with { ($0.id, $0.sender, $0.data) = (socket.id, Data(message.address), Data(message.data)) })
      }
    }
  }

  func write(to image: ImageWriter) throws(Failure) {
    if !options.isEmpty { try image.write(.socketOptions, all: options) }
    if !entries.isEmpty { try image.write(.datagrams, all: entries) }
  }
}

/// The same of a job that is being built.
struct RestoredDatagrams {
  private var options: [UInt32: [SocketOptionEntry]] = [:]
  private var entries: [UInt32: [DatagramEntry]] = [:]

  init(_ image: ImageReader) throws(Failure) {
    for entry in try image.readAll(.socketOptions, as: SocketOptionEntry.self) {
      options[entry.id, default: []].append(entry)
    }
    for entry in try image.readAll(.datagrams, as: DatagramEntry.self) { entries[entry.id, default: []].append(entry) }
  }

  func applyOptions(_ id: UInt32, to socket: borrowing Descriptor) throws(Errno) {
    try RareOptions.apply(options[id] ?? [], to: socket)
  }

  /// Its type, where that is not the usual one of its kind.
  func type(of id: UInt32) -> Int32? {
    guard let entry = options[id]?.first(where: { $0.level == SOL_SOCKET && $0.name == SO_TYPE }),
      entry.value.count == 4
    else { return nil }
    return Array(entry.value).withUnsafeBytes { $0.loadUnaligned(as: Int32.self) }
  }

  /// Sends to `socket`, over the loopback interface, the datagrams that waited in it, under their senders' names.
  ///
  /// - Returns: how many did not arrive: as on any network, they are lost then.
  func refill(_ id: UInt32, _ socket: borrowing Descriptor, _ entry: InetSkEntry) -> Int {
    guard let waiting = entries[id] else { return 0 }
    var lost = 0
    for datagram in waiting {
      let before = memory(socket)
      let sent = (try? send(datagram, entry)) != nil
      var naps = 0
      while sent, memory(socket) == before, naps < 200 {
        usleep(naps < 20 ? 50 : 1000)
        naps += 1
      }
      if !sent || memory(socket) == before { lost += 1 }
    }
    return lost
  }

  /// What the receive queue takes: the first word of SO_MEMINFO.
  private func memory(_ socket: borrowing Descriptor) -> UInt32 {
    let words = (try? socket.optionBytes(SOL_SOCKET, 55, room: 64)) ?? []
    return words.count < 4 ? 0 : words.withUnsafeBytes { $0.loadUnaligned(as: UInt32.self) }
  }

  private func send(_ datagram: DatagramEntry, _ entry: InetSkEntry) throws(Errno) {
    guard let sender = InternetAddress(bytes: Array(datagram.sender)[...]) else { throw .invalidArgument }
    let data = Array(datagram.data)
    let port = UInt16(truncatingIfNeeded: entry.srcPort)
    let number = UInt8(truncatingIfNeeded: entry.proto)
    if let (from, to) = Self.addressesOfIPv4(sender, entry) {
      let udp = Packet.udp(from: from, to: to, sender.port, port, number, data)
      let raw = try Descriptor.socket(AF_INET, Int32(SOCK_RAW.rawValue), 255 /* IPPROTO_RAW */)
      let packet = Packet.ipv4(from: from, to: to, number, udp)
      _ = try raw.send(packet[...], to: InternetAddress(words: to, port: 0).bytes)
    } else {
      let to = entry.srcAddr.allSatisfy { $0 == 0 } ? [0, 0, 0, UInt32(1).bigEndian] : entry.srcAddr
      let udp = Packet.udp(from: sender.words, to: to, sender.port, port, number, data)
      let raw = try Descriptor.socket(AF_INET6, Int32(SOCK_RAW.rawValue), 255)
      let packet = Packet.ipv6(from: sender.words, to: to, number, udp)
      _ = try raw.send(packet[...], to: InternetAddress(words: to, port: 0, scope: sender.scope).bytes)
    }
  }

  /// Where an IPv4 datagram comes from and goes to, also one that an IPv6 socket has received.
  private static func addressesOfIPv4(_ sender: InternetAddress, _ entry: InetSkEntry) -> ([UInt32], [UInt32])? {
    let loopback = UInt32(0x7f00_0001).bigEndian
    let own = entry.srcAddr.last.flatMap { $0 == 0 ? nil : $0 } ?? loopback
    if sender.words.count == 1 { return (sender.words, [own]) }
    guard sender.words[0] == 0, sender.words[1] == 0, sender.words[2] == UInt32(0xffff).bigEndian else { return nil }
    return ([sender.words[3]], [entry.srcAddr.allSatisfy { $0 == 0 } ? loopback : own])
  }
}

/// Packets byte by byte.
private enum Packet {
  private static func bytes(_ value: some FixedWidthInteger) -> [UInt8] {
    withUnsafeBytes(of: value.bigEndian) { [UInt8]($0) }
  }
  private static func raw(_ words: [UInt32]) -> [UInt8] { words.withUnsafeBytes { [UInt8]($0) } }

  /// The Internet checksum.
  private static func sum(_ bytes: [UInt8]) -> UInt16 {
    var total: UInt32 = 0
    for index in stride(from: 0, to: bytes.count, by: 2) {
      total += UInt32(bytes[index]) << 8 | (index + 1 < bytes.count ? UInt32(bytes[index + 1]) : 0)
      total = total & 0xffff + total >> 16
    }
    return ~UInt16(truncatingIfNeeded: total)
  }

  static func udp(
    from: [UInt32], to: [UInt32], _ sourcePort: UInt16, _ port: UInt16, _ protocolNumber: UInt8, _ data: [UInt8]
  ) -> [UInt8] {
    let length = UInt16(truncatingIfNeeded: data.count + 8)
    let header = bytes(sourcePort) + bytes(port) + bytes(length)
    let pseudo = raw(from) + raw(to) + bytes(UInt32(length)) + bytes(UInt32(protocolNumber))
    let checksum = sum(pseudo + header + [0, 0] + data)
    return header + bytes(checksum == 0 ? 0xffff : checksum) + data
  }

  static func ipv4(from: [UInt32], to: [UInt32], _ protocolNumber: UInt8, _ body: [UInt8]) -> [UInt8] {
    // Version and length, type of service; total length; no ID, no fragments; lifetime, protocol, checksum, addresses.
    let start = [0x45, 0] + bytes(UInt16(truncatingIfNeeded: body.count + 20)) + [0, 0, 0, 0, 64, protocolNumber]
    let addresses = raw(from) + raw(to)
    return start + bytes(sum(start + [0, 0] + addresses)) + addresses + body
  }

  static func ipv6(from: [UInt32], to: [UInt32], _ protocolNumber: UInt8, _ body: [UInt8]) -> [UInt8] {
    [0x60, 0, 0, 0] + bytes(UInt16(truncatingIfNeeded: body.count)) + [protocolNumber, 64] + raw(from) + raw(to) + body
  }
}

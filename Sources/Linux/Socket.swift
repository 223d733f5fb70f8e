import CLinux
import SystemPackage

/// An IPv4 or IPv6 address with a port.
public struct InternetAddress: Sendable, Hashable {
  /// In network order: one word, or four.
  public var words: [UInt32]
  public var port: UInt16
  /// The interface of a link-local address.
  public var scope: UInt32 = 0

  public init(words: [UInt32], port: UInt16, scope: UInt32 = 0) {
    self.words = words
    self.port = port
    self.scope = scope
  }

  public var isAny: Bool { words.allSatisfy { $0 == 0 } }
  /// fe80::/10.
  public var isLinkLocal: Bool { words.count == 4 && UInt32(bigEndian: words[0]) & 0xffc0_0000 == 0xfe80_0000 }

  /// `struct sockaddr_in` or `struct sockaddr_in6`.
  public var bytes: [UInt8] {
    var result: [UInt8] = []
    func add(_ value: some FixedWidthInteger) { Swift.withUnsafeBytes(of: value) { result.append(contentsOf: $0) } }
    add(UInt16(words.count == 4 ? AF_INET6 : AF_INET))
    add(port.bigEndian)
    if words.count == 4 { add(UInt32(0)) }
    for word in words { add(word) }
    if words.count == 4 { add(scope) } else { add(UInt64(0)) }
    return result
  }

  /// From the form that `bytes` has; nil for another family.
  public init?(bytes: ArraySlice<UInt8>) {
    let bytes = Array(bytes)
    func load<Value: FixedWidthInteger>(_ offset: Int, _: Value.Type) -> Value {
      bytes.withUnsafeBytes { $0.loadUnaligned(fromByteOffset: offset, as: Value.self) }
    }
    guard bytes.count >= 8 else { return nil }
    switch Int32(load(0, UInt16.self)) {
    case AF_INET: words = [load(4, UInt32.self)]
    case AF_INET6 where bytes.count >= 28:
      words = [8, 12, 16, 20].map { load($0, UInt32.self) }
      scope = load(24, UInt32.self)
    default: return nil
    }
    port = UInt16(bigEndian: load(2, UInt16.self))
  }

  /// For messages: `127.0.0.1 port 80`.
  public var text: String {
    let bytes = words.flatMap { word in Swift.withUnsafeBytes(of: word) { [UInt8]($0) } }
    if words.count == 1 { return bytes.map(String.init).joined(separator: ".") + " port \(port)" }
    if isAny { return "any address, port \(port)" }
    let groups = stride(from: 0, to: bytes.count, by: 2).map {
      String(Int(bytes[$0]) << 8 | Int(bytes[$0 + 1]), radix: 16)
    }
    return groups.joined(separator: ":") + " port \(port)"
  }
}

/// Sockets: one system call each.
extension Descriptor {
  public static func socket(_ family: Int32, _ type: Int32, _ protocolNumber: Int32) throws(Errno) -> Descriptor {
    Descriptor(
      owning: Int32(
        try systemCall(
          SYS_socket, Int(family), Int(type | Int32(SOCK_CLOEXEC.rawValue)), Int(protocolNumber))))
  }

  /// getsockopt(2): the bytes of an option, `room` of them at most.
  public func optionBytes(_ level: Int32, _ name: Int32, room: Int) throws(Errno) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: room)
    var length = UInt32(room)
    try bytes.withMutableBytes { buffer throws(Errno) in
      try withUnsafeMutablePointer(to: &length) { length throws(Errno) in
        _ = try systemCall(
          SYS_getsockopt, Int(number), Int(level), Int(name), Int(bitPattern: buffer.baseAddress),
          Int(bitPattern: length))
      }
    }
    return Array(bytes.prefix(Int(length)))
  }

  /// getsockopt(2) for an option that is an int.
  public func option(_ level: Int32, _ name: Int32) throws(Errno) -> Int32 {
    let bytes = try optionBytes(level, name, room: 4)
    if bytes.count == 1 { return Int32(bytes[0]) }
    guard bytes.count == 4 else { throw .invalidArgument }
    return bytes.withUnsafeBytes { $0.loadUnaligned(as: Int32.self) }
  }

  /// setsockopt(2).
  public func setOption(_ level: Int32, _ name: Int32, bytes: [UInt8]) throws(Errno) {
    try bytes.withBytes { buffer throws(Errno) in
      _ = try systemCall(
        SYS_setsockopt, Int(number), Int(level), Int(name), Int(bitPattern: buffer.baseAddress), buffer.count)
    }
  }

  public func setOption(_ level: Int32, _ name: Int32, _ value: Int32) throws(Errno) {
    try setOption(level, name, bytes: Swift.withUnsafeBytes(of: value) { [UInt8]($0) })
  }

  /// getsockname(2) or getpeername(2): the address with its family.
  public func addressBytes(ofPeer: Bool) throws(Errno) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: 128)
    var length = UInt32(bytes.count)
    try bytes.withMutableBytes { buffer throws(Errno) in
      try withUnsafeMutablePointer(to: &length) { length throws(Errno) in
        _ = try systemCall(
          ofPeer ? SYS_getpeername : SYS_getsockname, Int(number), Int(bitPattern: buffer.baseAddress),
          Int(bitPattern: length))
      }
    }
    return Array(bytes.prefix(Int(length)))
  }

  /// getsockname(2); nil for a family other than IP's.
  public func localAddress() throws(Errno) -> InternetAddress? {
    InternetAddress(bytes: try addressBytes(ofPeer: false)[...])
  }

  /// getpeername(2); nil for a family other than IP's.
  public func peerAddress() throws(Errno) -> InternetAddress? {
    InternetAddress(bytes: try addressBytes(ofPeer: true)[...])
  }

  /// The classic packet filter of the socket, one instruction a word. SO_GET_FILTER in socket(7)
  ///
  /// - Throws: `.permissionDenied` where it is another BPF program, which cannot be read.
  public func packetFilter() throws(Errno) -> [UInt64] {
    var count: UInt32 = 0
    let number = number
    func ask(_ buffer: Int) throws(Errno) {
      try withUnsafeMutablePointer(to: &count) { count throws(Errno) in
        _ = try systemCall(
          SYS_getsockopt, Int(number), Int(SOL_SOCKET), Int(SO_ATTACH_FILTER), buffer, Int(bitPattern: count))
      }
    }
    try ask(0)
    guard count > 0 else { return [] }
    var instructions = [UInt64](repeating: 0, count: Int(count))
    try instructions.withMutableBytes { bytes throws(Errno) in try ask(Int(bitPattern: bytes.baseAddress)) }
    return instructions
  }

  /// SO_ATTACH_FILTER in socket(7).
  public func attach(_ filter: [UInt64]) throws(Errno) {
    try filter.withBytes { bytes throws(Errno) in
      // struct sock_fprog: the number of instructions, where they are.
      let program = (UInt64(filter.count), UInt64(UInt(bitPattern: bytes.baseAddress)))
      try setOption(SOL_SOCKET, SO_ATTACH_FILTER, bytes: Swift.withUnsafeBytes(of: program) { [UInt8]($0) })
    }
  }

  public func bind(to address: InternetAddress) throws(Errno) {
    try address.bytes.withBytes { bytes throws(Errno) in
      _ = try systemCall(SYS_bind, Int(number), Int(bitPattern: bytes.baseAddress), bytes.count)
    }
  }

  public func listen(backlog: Int32) throws(Errno) { try systemCall(SYS_listen, Int(number), Int(backlog)) }

  /// bind(2) to an address given with its family.
  public func bind(to address: [UInt8]) throws(Errno) {
    try address.withBytes { bytes throws(Errno) in
      _ = try systemCall(SYS_bind, Int(number), Int(bitPattern: bytes.baseAddress), bytes.count)
    }
  }

  /// connect(2) to an address given with its family.
  public func connect(to address: [UInt8]) throws(Errno) {
    try address.withBytes { bytes throws(Errno) in
      _ = try systemCall(SYS_connect, Int(number), Int(bitPattern: bytes.baseAddress), bytes.count)
    }
  }

  /// accept4(2).
  public func accept() throws(Errno) -> Descriptor {
    Descriptor(owning: Int32(try systemCall(SYS_accept4, Int(number), 0, 0, Int(SOCK_CLOEXEC.rawValue))))
  }

  /// shutdown(2): SHUT_RD, SHUT_WR or SHUT_RDWR.
  public func shutdown(_ how: Int32) throws(Errno) { try systemCall(SYS_shutdown, Int(number), Int(how)) }

  /// How many bytes can be read. FIONREAD
  public func readableCount() throws(Errno) -> Int {
    var count: Int32 = 0
    try control(0x541b, &count)
    return Int(count)
  }

  /// poll(2) without waiting.
  public func readiness() -> Int32 {
    var request = pollfd(fd: number, events: Int16(POLLIN) | 0x2000 /* POLLRDHUP */, revents: 0)
    return poll(&request, 1, 0) > 0 ? Int32(request.revents) : 0
  }
}

/// The two ends of a socketpair(2).
public struct SocketPair: ~Copyable {
  public let first: Descriptor
  public let second: Descriptor

  public init(_ family: Int32, _ type: Int32) throws(Errno) {
    var ends: (Int32, Int32) = (-1, -1)
    try withUnsafeMutableBytes(of: &ends) { ends throws(Errno) in
      _ = try systemCall(
        SYS_socketpair, Int(family), Int(type | Int32(SOCK_CLOEXEC.rawValue)), 0, Int(bitPattern: ends.baseAddress))
    }
    first = Descriptor(owning: ends.0)
    second = Descriptor(owning: ends.1)
  }

  public init(first: consuming Descriptor, second: consuming Descriptor) {
    self.first = first
    self.second = second
  }
}

/// struct sockaddr_un with this name: a path, or bytes after a zero byte.
public func unixAddress(_ name: [UInt8]) -> [UInt8] {
  withUnsafeBytes(of: UInt16(AF_UNIX)) { [UInt8]($0) } + name
}

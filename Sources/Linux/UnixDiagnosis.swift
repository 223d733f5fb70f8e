import CLinux
import SystemPackage

/// What the kernel tells of one unix socket. sock_diag(7)
public struct UnixSocketFacts: Sendable {
  public var inode: UInt32
  /// SOCK_STREAM, SOCK_DGRAM or SOCK_SEQPACKET.
  public var type: UInt8
  /// The kernel's TCP state numbers.
  public var state: UInt8
  /// As it was bound: abstract ones start with a zero byte, paths end with one. Empty where there is none.
  public var name: [UInt8] = []
  /// The inode of the other end: 0 where that has been closed or not been accepted yet, nil where there is none.
  public var peer: UInt32?
  /// Of a listening socket: the sockets whose connections wait to be accepted, in order; 0 for closed ones.
  public var waiting: [UInt32] = []
  /// The number of bytes, or of waiting connections.
  public var receiveQueue: UInt32 = 0
  /// Memory taken by what has been sent and not been read; of a listening socket, its backlog.
  public var sendQueue: UInt32 = 0
  /// Bit 0: receiving is over; bit 1: sending is.
  public var shutdown: UInt8 = 0

  public static let connected: UInt8 = 1
  public static let unconnected: UInt8 = 7
  public static let listening: UInt8 = 10
}

/// All unix sockets of the network namespace that we are in, by inode.
public func readUnixSockets() throws(Errno) -> [UInt32: UnixSocketFacts] {
  let socket = try Descriptor.socket(AF_NETLINK, Int32(SOCK_RAW.rawValue), 4 /* NETLINK_SOCK_DIAG */)
  try sendRequest(socket)
  var result: [UInt32: UnixSocketFacts] = [:]
  var buffer = [UInt8](repeating: 0, count: 1 << 18)
  while true {
    let count = try buffer.withMutableBytes { bytes throws(Errno) in try socket.read(into: bytes) }
    let isLast = try buffer.withBytes { bytes throws(Errno) in
      try parse(UnsafeRawBufferPointer(rebasing: bytes[0..<count]), into: &result)
    }
    if isLast { return result }
  }
}

private func sendRequest(_ socket: borrowing Descriptor) throws(Errno) {
  // struct nlmsghdr: length, SOCK_DIAG_BY_FAMILY with NLM_F_REQUEST | NLM_F_DUMP, sequence, port.
  // struct unix_diag_req: family, protocol, padding; states; inode; what to show; cookie.
  let everything: UInt32 = 1 /* NAME */ | 4 /* PEER */ | 8 /* ICONS */ | 0x10 /* RQLEN */
  let words: [UInt32] = [
    16 + 24, 20 | 0x301 << 16, 1, 0, UInt32(AF_UNIX), .max, 0, everything, .max, .max,
  ]
  try words.withBytes { bytes throws(Errno) in try socket.write(bytes) }
}

/// - Returns: whether the dump ends here.
private func parse(_ bytes: UnsafeRawBufferPointer, into result: inout [UInt32: UnixSocketFacts]) throws(Errno) -> Bool {
  var offset = 0
  while offset + 16 <= bytes.count {
    let length = Int(bytes.loadUnaligned(fromByteOffset: offset, as: UInt32.self))
    let type = bytes.loadUnaligned(fromByteOffset: offset + 4, as: UInt16.self)
    guard length >= 16, offset + length <= bytes.count else { throw .ioError }
    switch type {
    case 3 /* NLMSG_DONE */: return true
    case 2 /* NLMSG_ERROR */:
      let error = length >= 20 ? bytes.loadUnaligned(fromByteOffset: offset + 16, as: Int32.self) : 0
      throw error == 0 ? .ioError : Errno(rawValue: -error)
    case 20:
      if let facts = socketFacts(UnsafeRawBufferPointer(rebasing: bytes[(offset + 16)..<(offset + length)])) {
        result[facts.inode] = facts
      }
    default: break
    }
    offset += (length + 3) & ~3
  }
  return false
}

private func socketFacts(_ bytes: UnsafeRawBufferPointer) -> UnixSocketFacts? {
  // struct unix_diag_msg: family, type, state, padding; inode; cookie. Then attributes.
  guard bytes.count >= 16 else { return nil }
  func word(_ offset: Int) -> UInt32 { bytes.loadUnaligned(fromByteOffset: offset, as: UInt32.self) }
  var facts = UnixSocketFacts(inode: word(4), type: bytes[1], state: bytes[2])
  var offset = 16
  while offset + 4 <= bytes.count {
    let length = Int(bytes.loadUnaligned(fromByteOffset: offset, as: UInt16.self))
    let type = bytes.loadUnaligned(fromByteOffset: offset + 2, as: UInt16.self)
    guard length >= 4, offset + length <= bytes.count else { return nil }
    let start = offset + 4
    let size = length - 4
    switch type {
    case 0: facts.name = Array(bytes[start..<(start + size)])
    case 2 where size >= 4: facts.peer = word(start)
    case 3: facts.waiting = (0..<(size / 4)).map { word(start + $0 * 4) }
    case 4 where size >= 8: (facts.receiveQueue, facts.sendQueue) = (word(start), word(start + 4))
    case 6 where size >= 1: facts.shutdown = bytes[start]
    default: break
    }
    offset += (length + 3) & ~3
  }
  return facts
}

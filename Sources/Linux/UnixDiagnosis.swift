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
  // struct unix_diag_req: family, protocol, padding; states; inode; what to show; cookie.
  let everything: UInt32 = 1 /* NAME */ | 4 /* PEER */ | 8 /* ICONS */ | 0x10 /* RQLEN */
  var result: [UInt32: UnixSocketFacts] = [:]
  try dumpSockets([UInt32(AF_UNIX), .max, 0, everything, .max, .max]) { entry in
    if let facts = socketFacts(entry) { result[facts.inode] = facts }
  }
  return result
}

private func socketFacts(_ bytes: UnsafeRawBufferPointer) -> UnixSocketFacts? {
  // struct unix_diag_msg: family, type, state, padding; inode; cookie. Then attributes.
  guard bytes.count >= 16 else { return nil }
  func word(_ offset: Int) -> UInt32 { bytes.loadUnaligned(fromByteOffset: offset, as: UInt32.self) }
  var facts = UnixSocketFacts(inode: word(4), type: bytes[1], state: bytes[2])
  forEachAttribute(of: bytes, from: 16) { type, value in
    func word(_ offset: Int) -> UInt32 { value.loadUnaligned(fromByteOffset: offset, as: UInt32.self) }
    switch type {
    case 0: facts.name = Array(value)
    case 2 where value.count >= 4: facts.peer = word(0)
    case 3: facts.waiting = (0..<(value.count / 4)).map { word($0 * 4) }
    case 4 where value.count >= 8: (facts.receiveQueue, facts.sendQueue) = (word(0), word(4))
    case 6 where !value.isEmpty: facts.shutdown = value[0]
    default: break
    }
  }
  return facts
}

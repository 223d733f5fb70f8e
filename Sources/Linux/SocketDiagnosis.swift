import CLinux
import SystemPackage

/// Asks the kernel for all sockets of a family. sock_diag(7)
///
/// - Parameters:
///   - request: the family's own request.
///   - body: called with the family's own answer for each socket.
func dumpSockets(_ request: [UInt32], _ body: (UnsafeRawBufferPointer) -> Void) throws(Errno) {
  let socket = try Descriptor.socket(AF_NETLINK, Int32(SOCK_RAW.rawValue), 4 /* NETLINK_SOCK_DIAG */)
  // struct nlmsghdr: length, SOCK_DIAG_BY_FAMILY with NLM_F_REQUEST | NLM_F_DUMP, sequence, port.
  let words = [UInt32(16 + request.count * 4), 20 | 0x301 << 16, 1, 0] + request
  try words.withBytes { bytes throws(Errno) in try socket.write(bytes) }
  var buffer = [UInt8](repeating: 0, count: 1 << 18)
  var isDone = false
  while !isDone {
    let count = try buffer.withMutableBytes { bytes throws(Errno) in try socket.read(into: bytes) }
    isDone = try buffer.withBytes { bytes throws(Errno) in
      try parse(UnsafeRawBufferPointer(rebasing: bytes[0..<count]), body)
    }
  }
}

/// - Returns: whether the dump ends here.
private func parse(_ bytes: UnsafeRawBufferPointer, _ body: (UnsafeRawBufferPointer) -> Void) throws(Errno) -> Bool {
  var offset = 0
  while offset + 16 <= bytes.count {
    let length = Int(bytes.loadUnaligned(fromByteOffset: offset, as: UInt32.self))
    guard length >= 16, offset + length <= bytes.count else { throw .ioError }
    switch bytes.loadUnaligned(fromByteOffset: offset + 4, as: UInt16.self) {
    case 3 /* NLMSG_DONE */: return true
    case 2 /* NLMSG_ERROR */:
      let error = length >= 20 ? bytes.loadUnaligned(fromByteOffset: offset + 16, as: Int32.self) : 0
      throw error == 0 ? .ioError : Errno(rawValue: -error)
    case 20: body(UnsafeRawBufferPointer(rebasing: bytes[(offset + 16)..<(offset + length)]))
    default: break
    }
    offset += (length + 3) & ~3
  }
  return false
}

/// The attributes of a netlink message from `start` on: their types and contents.
func forEachAttribute(
  of bytes: UnsafeRawBufferPointer, from start: Int, _ body: (UInt16, UnsafeRawBufferPointer) -> Void
) {
  var offset = start
  while offset + 4 <= bytes.count {
    let length = Int(bytes.loadUnaligned(fromByteOffset: offset, as: UInt16.self))
    guard length >= 4, offset + length <= bytes.count else { return }
    body(
      bytes.loadUnaligned(fromByteOffset: offset + 2, as: UInt16.self),
      UnsafeRawBufferPointer(rebasing: bytes[(offset + 4)..<(offset + length)]))
    offset += (length + 3) & ~3
  }
}

/// What the kernel tells of one internet socket.
public struct InternetSocketFacts: Sendable {
  public var inode: UInt32
  /// The kernel's TCP state numbers.
  public var state: UInt8
  /// Bit 0: receiving is over; bit 1: sending is.
  public var shutdown: UInt8 = 0
}

/// All bound internet sockets of a family and protocol in the network namespace that we are in, by inode.
public func readInternetSockets(_ family: Int32, _ protocolNumber: Int32) throws(Errno) -> [UInt32: InternetSocketFacts]
{
  // struct inet_diag_req_v2: family, protocol, extensions, padding; states; the ID of one socket.
  var request: [UInt32] = [UInt32(family) | UInt32(protocolNumber) << 8, .max]
  request += [UInt32](repeating: 0, count: 12)
  var result: [UInt32: InternetSocketFacts] = [:]
  try dumpSockets(request) { entry in
    // struct inet_diag_msg: family, state, timer, retransmits; ID; expiry, queues, user, inode. Then attributes.
    guard entry.count >= 72 else { return }
    var facts = InternetSocketFacts(
      inode: entry.loadUnaligned(fromByteOffset: 68, as: UInt32.self), state: entry[1])
    forEachAttribute(of: entry, from: 72) { type, value in
      if type == 8 /* INET_DIAG_SHUTDOWN */, let how = value.first { facts.shutdown = how }
    }
    result[facts.inode] = facts
  }
  return result
}

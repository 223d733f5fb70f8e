import CLinux
import SystemPackage

/// What travels with a message between unix sockets. unix(7)
public struct SocketCredentials: Sendable, Hashable {
  public var pid: ProcessID
  public var user: UInt32
  public var group: UInt32
  public init(pid: ProcessID, user: UInt32, group: UInt32) {
    self.pid = pid
    self.user = user
    self.group = group
  }

  /// struct ucred
  public init?(bytes: ArraySlice<UInt8>) {
    guard bytes.count >= 12 else { return nil }
    (pid, user, group) = Array(bytes).withUnsafeBytes { $0.loadUnaligned(as: (Int32, UInt32, UInt32).self) }
  }
  public var bytes: [UInt8] { Swift.withUnsafeBytes(of: (pid, user, group)) { [UInt8]($0) } }
}

/// One message as recvmsg(2) gives it.
public struct ReceivedMessage: Sendable {
  public var data: [UInt8]
  /// The sender's address with its family; empty where it has none.
  public var address: [UInt8]
  /// Descriptors that came with it, now ours; whoever takes the message closes them.
  public var descriptors: [Int32] = []
  public var credentials: SocketCredentials?
  /// The data did not fit.
  public var isCut = false

  public init(data: [UInt8], address: [UInt8]) {
    self.data = data
    self.address = address
  }
}

extension Descriptor {
  /// recvmsg(2) with MSG_DONTWAIT.
  ///
  /// - Throws: `.resourceTemporarilyUnavailable` where nothing is there.
  public func receive(upTo room: Int, flags: Int32) throws(Errno) -> ReceivedMessage {
    var data = [UInt8](repeating: 0, count: room)
    var address = [UInt8](repeating: 0, count: 128)
    var control = [UInt8](repeating: 0, count: 4096)
    var header = msghdr()
    let socket = number
    let count = try data.withMutableBytes { data throws(Errno) in
      try address.withMutableBytes { address throws(Errno) in
        try control.withMutableBytes { control throws(Errno) in
          var vector = iovec(iov_base: data.baseAddress, iov_len: data.count)
          return try withUnsafeMutablePointer(to: &vector) { vector throws(Errno) in
            (header.msg_iov, header.msg_iovlen) = (vector, 1)
            (header.msg_name, header.msg_namelen) = (address.baseAddress, UInt32(address.count))
            (header.msg_control, header.msg_controllen) = (control.baseAddress, control.count)
            return try withUnsafeMutableBytes(of: &header) { header throws(Errno) in
              try retrying { () throws(Errno) in
                try systemCall(
                  SYS_recvmsg, Int(socket), Int(bitPattern: header.baseAddress),
                  Int(flags | Int32(MSG_DONTWAIT) | Int32(MSG_CMSG_CLOEXEC)))
              }
            }
          }
        }
      }
    }
    var message = ReceivedMessage(
      data: Array(data.prefix(count)), address: Array(address.prefix(Int(header.msg_namelen))))
    message.isCut = header.msg_flags & Int32(MSG_TRUNC) != 0
    message.take(control.prefix(header.msg_controllen))
    guard header.msg_flags & Int32(MSG_CTRUNC) == 0 else {
      for descriptor in message.descriptors { close(descriptor) }
      throw .tooManyOpenFiles
    }
    return message
  }

  /// sendmsg(2) with MSG_DONTWAIT and MSG_NOSIGNAL.
  ///
  /// - Parameter address: where to, with its family; empty for the peer.
  public func send(
    _ data: ArraySlice<UInt8>, to address: [UInt8] = [], descriptors: [Int32] = [],
    credentials: SocketCredentials? = nil
  ) throws(Errno) -> Int {
    var control: [UInt8] = []
    if !descriptors.isEmpty {
      control += controlMessage(SOL_SOCKET, Int32(SCM_RIGHTS), descriptors.withUnsafeBytes { [UInt8]($0) })
    }
    if let credentials { control += controlMessage(SOL_SOCKET, 2 /* SCM_CREDENTIALS */, credentials.bytes) }
    var data = Array(data)
    var address = address
    let socket = number
    return try data.withMutableBytes { data throws(Errno) in
      try address.withMutableBytes { address throws(Errno) in
        try control.withMutableBytes { control throws(Errno) in
          var vector = iovec(iov_base: data.baseAddress, iov_len: data.count)
          return try withUnsafeMutablePointer(to: &vector) { vector throws(Errno) in
            var header = msghdr()
            (header.msg_iov, header.msg_iovlen) = (vector, 1)
            if !address.isEmpty { (header.msg_name, header.msg_namelen) = (address.baseAddress, UInt32(address.count)) }
            if !control.isEmpty { (header.msg_control, header.msg_controllen) = (control.baseAddress, control.count) }
            return try withUnsafeMutableBytes(of: &header) { header throws(Errno) in
              try retrying { () throws(Errno) in
                try systemCall(
                  SYS_sendmsg, Int(socket), Int(bitPattern: header.baseAddress),
                  Int(Int32(MSG_DONTWAIT) | Int32(MSG_NOSIGNAL)))
              }
            }
          }
        }
      }
    }
  }
}

/// A control message with its padding. cmsg(3)
private func controlMessage(_ level: Int32, _ type: Int32, _ data: [UInt8]) -> [UInt8] {
  var bytes: [UInt8] = []
  withUnsafeBytes(of: Int(clinux_cmsg_len(UInt(data.count)))) { bytes.append(contentsOf: $0) }
  withUnsafeBytes(of: (level, type)) { bytes.append(contentsOf: $0) }
  bytes += data
  while bytes.count < Int(clinux_cmsg_space(UInt(data.count))) { bytes.append(0) }
  return bytes
}

extension ReceivedMessage {
  fileprivate mutating func take(_ control: ArraySlice<UInt8>) {
    let bytes = Array(control)
    func load<Value: FixedWidthInteger>(_ offset: Int, _: Value.Type) -> Value {
      bytes.withUnsafeBytes { $0.loadUnaligned(fromByteOffset: offset, as: Value.self) }
    }
    var offset = 0
    while offset + 16 <= bytes.count {
      let length = load(offset, Int.self)
      guard length >= 16, offset + length <= bytes.count else { return }
      let body = bytes[(offset + 16)..<(offset + length)]
      switch (load(offset + 8, Int32.self), load(offset + 12, Int32.self)) {
      case (SOL_SOCKET, Int32(SCM_RIGHTS)):
        for index in 0..<(body.count / 4) { descriptors.append(load(body.startIndex + index * 4, Int32.self)) }
      case (SOL_SOCKET, 2): credentials = SocketCredentials(bytes: body)
      // SCM_PIDFD: a descriptor that is made for whoever reads.
      case (SOL_SOCKET, 4) where body.count >= 4: close(load(body.startIndex, Int32.self))
      default: break
      }
      offset += (length + 7) & ~7
    }
  }
}

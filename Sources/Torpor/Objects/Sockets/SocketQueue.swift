import CLinux
import Linux
import SystemPackage

/// What waits in a socket, looked at without taking it out.
struct SocketQueue: ~Copyable {
  let socket: Descriptor
  private let isStream: Bool
  private let isSeqpacket: Bool
  /// SO_PEEK_OFF of the owner's.
  let peekOffset: Int32

  init(_ socket: consuming Descriptor) throws(Errno) {
    let type = try socket.option(SOL_SOCKET, SO_TYPE)
    let offset = try socket.option(SOL_SOCKET, SO_PEEK_OFF)
    isStream = type == Int32(SOCK_STREAM.rawValue)
    isSeqpacket = type == Int32(SOCK_SEQPACKET.rawValue)
    peekOffset = offset
    self.socket = socket
  }

  /// What can be seen without touching SO_PEEK_OFF; nil where there is more to it.
  func glance() throws(Errno) -> [ReceivedMessage]? {
    guard isStream else {
      // Once looked at, a message of length 0 cannot be seen again: no glance at those that keep messages apart.
      return socket.readiness() & POLLIN == 0 ? [] : nil
    }
    let total = try socket.readableCount()
    if total == 0 { return [] }
    guard peekOffset < 0 else { return nil }
    let message = try socket.receive(upTo: total, flags: Int32(MSG_PEEK))
    guard message.data.count == total, message.descriptors.isEmpty else {
      for descriptor in message.descriptors { close(descriptor) }
      return nil
    }
    return [message]
  }

  /// Everything. SO_PEEK_OFF is somewhere else afterwards.
  func messages() throws(Errno) -> [ReceivedMessage] {
    var messages: [ReceivedMessage] = []
    do throws(Errno) {
      if isStream { try readStream(&messages) } else { try readMessages(&messages) }
    } catch {
      for message in messages { message.closeAll() }
      throw error
    }
    return messages
  }

  private func peek(at offset: Int, upTo room: Int) throws(Errno) -> ReceivedMessage {
    try socket.setOption(SOL_SOCKET, SO_PEEK_OFF, Int32(clamping: offset))
    return try socket.receive(upTo: room, flags: Int32(MSG_PEEK))
  }

  private func readMessages(_ messages: inout [ReceivedMessage]) throws(Errno) {
    // Nothing distinguishes the end of a connection from a message of length 0, but that it is after all bytes.
    let mayEnd = isSeqpacket && socket.readiness() & 0x2000 /* POLLRDHUP */ != 0
    let total = mayEnd ? try socket.readableCount() : .max
    var offset = 0
    var room = 1 << 16
    while true {
      let message: ReceivedMessage
      do throws(Errno) { message = try peek(at: offset, upTo: room) } catch .resourceTemporarilyUnavailable { return }
      if message.isCut {
        message.closeAll()
        room *= 4
        continue
      }
      if message.data.isEmpty, offset >= total { return message.closeAll() }
      offset += message.data.count
      messages.append(message)
    }
  }

  /// Descriptors come with the first byte of the piece that they were sent with: each such piece is kept apart.
  private func readStream(_ messages: inout [ReceivedMessage]) throws(Errno) {
    let total = try socket.readableCount()
    var offset = 0
    while offset < total {
      var message = try peek(at: offset, upTo: total - offset)
      guard !message.data.isEmpty else { throw .ioError }
      let count = message.data.count
      if !message.descriptors.isEmpty {
        let start = try startOfLastPiece(at: offset, count: count)
        if start > 0 {
          var before = message
          before.descriptors = []
          before.data = Array(message.data.prefix(start))
          messages.append(before)
          message.data.removeFirst(start)
        }
      }
      messages.append(message)
      offset += count
    }
  }

  /// Where the last piece starts of those that lie in `count` bytes at `offset`.
  ///
  /// The kernel copies pieces one by one and counts whole ones only: with one byte of room less than it is told, it
  /// stops before the last.
  private func startOfLastPiece(at offset: Int, count: Int) throws(Errno) -> Int {
    let size = Int(UInt64(count).pageCeiling)
    let whole = size + Int(pageSize)
    let room = try systemCall(
      Int32(SYS_mmap), 0, whole, Int(PROT_READ | PROT_WRITE), Int(MAP_PRIVATE | MAP_ANONYMOUS), -1)
    defer { _ = try? systemCall(Int32(SYS_munmap), room, whole) }
    try systemCall(Int32(SYS_mprotect), room + size, Int(pageSize), Int(PROT_NONE))
    try socket.setOption(SOL_SOCKET, SO_PEEK_OFF, Int32(clamping: offset))
    do throws(Errno) {
      return try systemCall(
        Int32(SYS_recvfrom), Int(socket.number), room + size - (count - 1), count,
        Int(Int32(MSG_PEEK) | Int32(MSG_DONTWAIT)))
    } catch .badAddress { return 0 }
  }
}

extension SocketQueue {
  /// Everything that waits in the sockets, each with its SO_PEEK_OFF, which is put back whatever happens.
  static func readAll(_ sockets: [(facts: DescriptorFacts, offset: Int32)]) throws(Failure) -> [[ReceivedMessage]] {
    var duplicates: [(number: Int32, offset: Int32)] = []
    defer { for duplicate in duplicates { close(duplicate.number) } }
    for socket in sockets { duplicates.append((try socket.facts.duplicate().release(), socket.offset)) }
    let keeper = try attempt("Cannot start a helper for sockets") { () throws(Errno) in try PeekKeeper(duplicates) }
    defer { withExtendedLifetime(keeper) {} }
    var found: [[ReceivedMessage]] = []
    for socket in sockets {
      let duplicate = try socket.facts.duplicate()
      do throws(Errno) {
        let queue = try SocketQueue(duplicate)
        // One at a time is out of place, and no longer than needed.
        defer { try? queue.socket.setOption(SOL_SOCKET, SO_PEEK_OFF, socket.offset) }
        found.append(try queue.messages())
      } catch {
        for message in found.joined() { message.closeAll() }
        throw Failure("Cannot read what waits in \(socket.facts.label) of \(socket.facts.process.label)", error)
      }
    }
    return found
  }
}

/// What messages cost their sender.
enum QueueMemory {
  /// What the same messages take when they are sent again.
  static func needed(for messages: [ReceivedMessage], _ type: Int32) throws(Errno) -> Int {
    let pair = try SocketPair(AF_UNIX, type)
    do { try pair.first.setOption(SOL_SOCKET, SO_SNDBUFFORCE, 1 << 29) } catch {
      try pair.first.setOption(SOL_SOCKET, SO_SNDBUF, 1 << 29)
    }
    for message in messages { _ = try pair.first.send(message.data[...]) }
    var count: Int32 = 0
    try pair.first.control(0x5411 /* SIOCOUTQ */, &count)
    return Int(count)
  }
}

extension ReceivedMessage {
  /// Closes the descriptors that came with it.
  func closeAll() { for descriptor in descriptors { close(descriptor) } }
}

/// SO_PEEK_OFF of asm-generic/socket.h.
let SO_PEEK_OFF: Int32 = 42

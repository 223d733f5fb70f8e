import CLinux
import FoundationEssentials
import Images
import Linux
import Logging
import SystemPackage

/// What waited in the unix sockets of a job.
struct RestoredPackets {
  struct Packet {
    var data: [UInt8]
    var rights: [UInt32]
    var sender: [UInt8] = []
    var user: SocketCredentials?
  }

  /// By the ID of the socket that shall receive them, in the order of their arrival.
  private(set) var byReceiver: [(id: UInt32, packets: [Packet])] = []

  init(_ image: ImageReader) throws(Failure) {
    guard image.has(.socketQueues) else { return }
    var extras: [UInt32: PacketExtras] = [:]
    for entry in try image.readAll(.packetExtras, as: PacketExtras.self) { extras[entry.index] = entry }
    var places: [UInt32: Int] = [:]
    var cursor = try image.open(.socketQueues)
    var index: UInt32 = 0
    while let entry = try cursor.next(SkPacketEntry.self) {
      let rights = entry.scm.filter { $0.type == UInt32(SCM_RIGHTS) }.flatMap(\.rights)
      var packet = Packet(data: Array(try cursor.raw(Int(entry.length))), rights: rights)
      if let own = extras[index] {
        packet.sender = Array(own.sender)
        if own.hasUser { packet.user = own.user.credentials }
      }
      index += 1
      if let place = places[entry.idFor] {
        byReceiver[place].packets.append(packet)
      } else {
        places[entry.idFor] = byReceiver.count
        byReceiver.append((entry.idFor, [packet]))
      }
    }
  }

  /// The files that are on their way in them.
  var files: Set<UInt32> { Set(byReceiver.flatMap { $0.packets.flatMap(\.rights) }) }
}

/// Puts packets into the queues of unix sockets: each is sent again by who had sent it, or somebody of that name.
struct PacketFiller {
  struct Route {
    let receiver: Int32
    let type: Int32
    /// Who is connected to the receiver.
    let peer: Int32?
    /// The receiver's address; empty where only its peer can reach it.
    let address: [UInt8]
  }

  private let descriptors: [UInt32: Int32]
  private let actors: SocketActors
  private let log: Logger
  private let files: RestoredFiles

  init(
    _ packets: RestoredPackets, _ descriptors: [UInt32: Int32], _ actors: SocketActors, _ log: Logger,
    _ files: RestoredFiles
  ) {
    self.descriptors = descriptors
    self.actors = actors
    self.log = log
    self.files = files
  }

  /// - Parameters:
  ///   - sender: the socket of the job that has a name.
  ///   - bind: gives a socket the name of a sender that is gone.
  func fill(
    _ route: Route, _ packets: [RestoredPackets.Packet], sender: ([UInt8]) -> Int32?,
    bind: (borrowing Descriptor, [UInt8]) throws(Failure) -> Void
  ) throws(Failure) {
    let isDatagram = route.type == Int32(SOCK_DGRAM.rawValue)
    for packet in packets {
      if !isDatagram || packet.sender.isEmpty || route.address.isEmpty, let peer = route.peer {
        try send(packet, from: peer, to: [], route)
      } else if let known = sender(packet.sender), !packet.sender.isEmpty {
        try send(packet, from: known, to: route.address, route)
      } else {
        let passing = try attempt(files.what) { () throws(Errno) in try Descriptor.socket(AF_UNIX, route.type, 0) }
        if !packet.sender.isEmpty { try bind(passing, packet.sender) }
        try send(packet, from: passing.number, to: route.address, route)
      }
    }
  }

  private func send(
    _ packet: RestoredPackets.Packet, from number: Int32, to address: [UInt8], _ route: Route
  ) throws(Failure) {
    var rights: [Int32] = []
    for id in packet.rights {
      guard let descriptor = descriptors[id] else { throw files.damaged("file \(id) is in flight and is not there") }
      rights.append(descriptor)
    }
    do throws(Errno) {
      try Descriptor.lending(number) { socket throws(Errno) in
        try makeRoom(socket)
        var rest = packet.data[...]
        repeat {
          let count = try send(rest, socket, address, rights, packet.user)
          rest = rest.dropFirst(count)
          rights = []
        } while !rest.isEmpty
      }
    } catch {
      throw Failure(
        .cannotRestore, files.what,
        why: "\(packet.data.count) bytes that wait in a unix socket cannot be put there: \(error.words)")
    }
  }

  private func send(
    _ data: ArraySlice<UInt8>, _ socket: borrowing Descriptor, _ address: [UInt8], _ rights: [Int32],
    _ user: SocketCredentials?
  ) throws(Errno) -> Int {
    guard let user else { return try socket.send(data, to: address, descriptors: rights) }
    do throws(Errno) {
      return try socket.send(data, to: address, descriptors: rights, credentials: user)
    } catch .noSuchProcess {
      try? actors.summon(SocketUser(user))
      do throws(Errno) {
        return try socket.send(data, to: address, descriptors: rights, credentials: user)
      } catch .noSuchProcess {
        log.warning("data in a unix socket has lost the PID \(user.pid) of its sender, which has ended")
        return try socket.send(data, to: address, descriptors: rights)
      }
    } catch .notPermitted {
      log.warning("data in a unix socket has lost the credentials of its sender: only root may give them")
      return try socket.send(data, to: address, descriptors: rights)
    }
  }

  /// Everything has to fit in at once; the size of the buffer is set for good later.
  private func makeRoom(_ socket: borrowing Descriptor) throws(Errno) {
    let much: Int32 = 1 << 29
    guard try socket.option(SOL_SOCKET, SO_SNDBUF) < much else { return }
    do { try socket.setOption(SOL_SOCKET, SO_SNDBUFFORCE, much) } catch {
      try socket.setOption(SOL_SOCKET, SO_SNDBUF, much)
    }
  }
}

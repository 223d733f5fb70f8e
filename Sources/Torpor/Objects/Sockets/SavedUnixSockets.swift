import CLinux
import FoundationEssentials
import Images
import Linux
import SystemPackage

/// The unix sockets of a frozen job: those of its descriptors, and those on their way from one to another.
final class SavedUnixSockets {
  private struct Member {
    let facts: DescriptorFacts
    let kernel: UnixSocketFacts
    var entry: UnixSkEntry
    var extras: UnixSocketExtras
  }

  private var table: [UInt32: UnixSocketFacts]?
  private var members: [UInt32: Member] = [:]
  private var order: [UInt32] = []
  private var unread: [UInt32] = []
  private var external: [UnixSkEntry] = []
  private var packets: [(id: UInt32, message: ReceivedMessage, rights: [UInt32])] = []
  /// Descriptors that came with messages: ours, as long as somebody may want to look at them.
  private var inFlight: [Int32] = []
  /// Which listening socket's queue a connecting socket stands in.
  private var queueOf: [UInt32: UInt32] = [:]
  /// What those who are connected to a socket have sent and nobody has read, in memory.
  private var sentTo: [UInt32: Int] = [:]

  deinit { for descriptor in inFlight { close(descriptor) } }

  // MARK: Collect

  func add(_ facts: DescriptorFacts, id: UInt32, _ saving: Saving) throws(Failure) {
    guard let kernel = try kernelTable()[facts.inode] else {
      return saving.refuse(
        facts.process, "\(facts.label) is a unix socket of another network namespace (\(facts.link))",
        advice: "checkpoint the job from inside of its network namespace")
    }
    let socket = try facts.duplicate()
    var entry = UnixSkEntry()
    entry.id = id
    entry.ino = facts.inode
    entry.type = UInt32(kernel.type)
    // Of datagram sockets the kernel calls the receiving end connected too.
    let isConnectedDatagram = kernel.type == UInt8(SOCK_DGRAM.rawValue) ? kernel.peer != nil : nil
    entry.state = UInt32(
      isConnectedDatagram.map { $0 ? UnixSocketFacts.connected : UnixSocketFacts.unconnected } ?? kernel.state)
    entry.flags = UInt32(bitPattern: facts.flags)
    entry.uflags = 0
    entry.backlog = kernel.state == UnixSocketFacts.listening ? kernel.sendQueue : 0
    entry.peer = 0
    entry.fown = try facts.owner(socket)
    entry.name = Data(kernel.name)
    entry.nsID = IdentityRoom.own.netNsID
    if let how = SkShutdown(rawValue: Int(kernel.shutdown)), how != .none { entry.shutdown = how }
    var extras = UnixSocketExtras()
    extras.id = id
    do throws(Errno) {
      try readOptions(socket, &entry, &extras)
      try saving.files.datagrams.noteOptions(socket, id: id)
    } catch .permissionDenied {
      return saving.refuse(
        facts.process, "\(facts.label) is a unix socket\(entry.place) with a BPF program as its filter",
        advice: "detach it before the checkpoint, or wait for a version of torpor that saves it")
    } catch {
      throw Failure("Cannot look at \(facts.label) of \(facts.process.label)", error)
    }
    try findFile(facts, socket, &entry, &extras, saving)
    if let why = obstacle(socket, entry) {
      saving.refuse(
        facts.process, "\(facts.label) is a unix socket\(entry.place) \(why)",
        advice: "try again when the job has taken it, or wait for a version of torpor that saves it")
    }
    members[facts.inode] = Member(facts: facts, kernel: kernel, entry: entry, extras: extras)
    order.append(facts.inode)
    if kernel.state != UnixSocketFacts.listening { unread.append(facts.inode) }
  }

  private func kernelTable() throws(Failure) -> [UInt32: UnixSocketFacts] {
    if let table { return table }
    let read = try attempt("Cannot ask the kernel about unix sockets", advice: "use a kernel with CONFIG_UNIX_DIAG") {
      () throws(Errno) in try readUnixSockets()
    }
    table = read
    for socket in read.values {
      for client in socket.waiting where client != 0 { queueOf[client] = socket.inode }
      if let peer = socket.peer { sentTo[peer, default: 0] += Int(socket.sendQueue) }
    }
    return read
  }

  private func readOptions(
    _ socket: borrowing Descriptor, _ entry: inout UnixSkEntry, _ extras: inout UnixSocketExtras
  ) throws(Errno) {
    entry.opts = try SocketOptions.read(socket)
    if try socket.option(SOL_SOCKET, UnixOption.passCredentials) != 0 { entry.opts.soPasscred = true }
    if try socket.option(SOL_SOCKET, UnixOption.passSecurity) != 0 { entry.opts.soPasssec = true }
    extras.passesPidfd = (try? socket.option(SOL_SOCKET, UnixOption.passProcess)) ?? 0 != 0
    extras.refusesRights = (try? socket.option(SOL_SOCKET, UnixOption.passRights)) ?? 1 == 0
    let offset = try socket.option(SOL_SOCKET, SO_PEEK_OFF)
    if offset >= 0 { extras.peekOffset = offset }
    let peer = try socket.optionBytes(SOL_SOCKET, UnixOption.peerCredentials, room: 12)
    if let peer = SocketCredentials(bytes: peer[...]), peer.pid != 0 { extras.peer = SocketUser(peer) }
    extras.isReset = entry.isConnected && !entry.isDatagram && socket.readiness() & POLLERR != 0
  }

  /// What of a socket cannot be seen well enough.
  private func obstacle(_ socket: borrowing Descriptor, _ entry: UnixSkEntry) -> String? {
    if entry.isStream, entry.isConnected, (try? socket.receive(upTo: 1, flags: Int32(MSG_PEEK) | Int32(MSG_OOB))) != nil
    {
      return "with urgent data (MSG_OOB) that has not been read"
    }
    return nil
  }

  private func findFile(
    _ facts: DescriptorFacts, _ socket: borrowing Descriptor, _ entry: inout UnixSkEntry,
    _ extras: inout UnixSocketExtras, _ saving: Saving
  ) throws(Failure) {
    guard let path = entry.path else { return }
    let place: UnixSocketName.Place
    do throws(Errno) {
      place = try UnixSocketName.find(path, socket, facts.process, saving.job)
    } catch { throw Failure("Cannot look at \(facts.label) of \(facts.process.label)", error) }
    switch place {
    case .file(let base, let status):
      entry.filePerms = .with { ($0.mode, $0.uid, $0.gid) = (status.st_mode, status.st_uid, status.st_gid) }
      if !path.hasPrefix("/") { entry.nameDir = base } else if base != "/" { extras.base = base }
    case .deleted: entry.deleted = true
    // Nobody can connect to a connection: where its name leads to does not matter.
    case .lost where entry.isConnected && !entry.isDatagram: entry.deleted = true
    case .lost(let link):
      saving.refuse(
        facts.process,
        "\(facts.label) is a unix socket whose name \(path) cannot be found again; its file is now \(link)",
        advice: "give the socket an absolute name")
    }
  }

  // MARK: Queues

  /// Looks into all queues, and into those of sockets that are found in there, and so on.
  func finish(_ saving: Saving) throws(Failure) {
    while !unread.isEmpty {
      let round = unread
      unread = []
      try readQueues(round, saving)
    }
    connect(saving)
  }

  private func readQueues(_ inodes: [UInt32], _ saving: Saving) throws(Failure) {
    var rest: [UInt32] = []
    for inode in inodes {
      guard let member = members[inode] else { continue }
      let messages = try look(at: member) { queue throws(Errno) in try queue.glance() }
      if let messages { try keep(messages, member, saving) } else { rest.append(inode) }
    }
    guard !rest.isEmpty else { return }
    try readThoroughly(rest, saving)
  }

  private func readThoroughly(_ inodes: [UInt32], _ saving: Saving) throws(Failure) {
    let present = inodes.compactMap { members[$0] }
    let found = try SocketQueue.readAll(present.map { ($0.facts, $0.extras.hasPeekOffset ? $0.extras.peekOffset : -1) })
    for (member, messages) in zip(present, found) { try keep(messages, member, saving) }
  }

  private func look<Value>(
    at member: Member, _ body: (borrowing SocketQueue) throws(Errno) -> Value
  ) throws(Failure) -> Value {
    let duplicate = try member.facts.duplicate()
    do throws(Errno) { return try body(SocketQueue(duplicate)) } catch {
      throw Failure("Cannot read what waits in \(member.facts.label) of \(member.facts.process.label)", error)
    }
  }

  private func keep(_ messages: [ReceivedMessage], _ member: Member, _ saving: Saving) throws(Failure) {
    for message in messages { inFlight += message.descriptors }
    try lookForHidden(messages, member, saving)
    for message in messages {
      var rights: [UInt32] = []
      for descriptor in message.descriptors {
        if let id = try saving.files.collectInFlight(descriptor, to: member.facts.process, saving) { rights.append(id) }
      }
      packets.append((member.entry.id, message, rights))
    }
  }

  /// The kernel shows a message of length 0 only once to those who look from a distance. Whether there are more than were
  /// shown can be told by the memory that they take.
  private func lookForHidden(_ messages: [ReceivedMessage], _ member: Member, _ saving: Saving) throws(Failure) {
    guard !member.entry.isStream else { return }
    // A sender that is connected can be asked.
    guard let sent = sentTo[member.facts.inode], sent > 0 else { return }
    let type = Int32(member.entry.type)
    let (needed, least) = try attempt("Cannot measure the queue of a unix socket") { () throws(Errno) in
      (
        try QueueMemory.needed(for: messages, type),
        try QueueMemory.needed(for: [ReceivedMessage(data: [], address: [])], type)
      )
    }
    guard sent >= needed + least else { return }
    saving.refuse(
      member.facts.process,
      "\(member.facts.label) is a unix socket\(member.entry.place) with an empty message that an earlier checkpoint has made invisible",
      advice: "try again when the job has read it")
  }

  // MARK: Connections

  private func connect(_ saving: Saving) {
    var strangers: [(member: UInt32, peer: UInt32, words: String)] = []
    for inode in order {
      guard let member = members[inode] else { continue }
      if member.entry.isListening {
        judgeWaiting(member, &strangers, saving)
      } else if let peer = member.kernel.peer {
        judgePeer(member, peer, &strangers, saving)
      }
    }
    refuse(strangers, saving)
  }

  private func judgeWaiting(
    _ member: Member, _ strangers: inout [(member: UInt32, peer: UInt32, words: String)], _ saving: Saving
  ) {
    let again = "try again when the job has accepted it"
    let what = "\(member.facts.label) is a listening unix socket\(member.entry.place)"
    for client in member.kernel.waiting {
      if client == 0 {
        saving.refuse(
          member.facts.process, "\(what) with a connection that its client has closed before it was accepted",
          advice: again)
      } else if let other = members[client] {
        guard other.kernel.sendQueue > 0 else { continue }
        saving.refuse(
          member.facts.process,
          "\(what) with a connection from \(other.facts.process.label) that has not been accepted and has data in it",
          advice: again)
      } else {
        strangers.append((member.facts.inode, client, "\(what) with a connection that waits to be accepted, from"))
      }
    }
    members[member.facts.inode]?.extras.waiting = member.kernel.waiting
  }

  private func judgePeer(
    _ member: Member, _ peer: UInt32, _ strangers: inout [(member: UInt32, peer: UInt32, words: String)],
    _ saving: Saving
  ) {
    let inode = member.facts.inode
    let what = "\(member.facts.label) is a unix socket\(member.entry.place)"
    if members[peer] != nil {
      members[inode]?.entry.peer = peer
    } else if peer == 0 {
      // Closed, or not accepted yet.
      guard let queue = queueOf[inode] else { return }
      members[inode]?.entry.peer = queue
      if members[queue] == nil { strangers.append((inode, queue, "\(what) that waits to be accepted by")) }
    } else if member.entry.isDatagram, let name = table?[peer]?.name, !name.isEmpty {
      members[inode]?.entry.peer = peer
      addExternal(peer, name, member, saving)
    } else {
      strangers.append((inode, peer, "\(what) connected to"))
    }
  }

  /// The other end of a datagram socket, known by its name: a restore connects to whoever has the name then.
  private func addExternal(_ inode: UInt32, _ name: [UInt8], _ member: Member, _ saving: Saving) {
    guard !external.contains(where: { $0.ino == inode }) else { return }
    external.append(
      .with {
        ($0.id, $0.ino, $0.type) = (saving.files.newID(), inode, member.entry.type)
        ($0.state, $0.flags, $0.uflags) = (
          UInt32(UnixSocketFacts.unconnected), UInt32(O_RDWR), UnixSocketRoom.isExternal
        )
        ($0.backlog, $0.peer, $0.fown, $0.name) = (0, 0, .none, Data(name))
        $0.opts = .with {
          ($0.soSndbuf, $0.soRcvbuf) = (0, 0)
          ($0.soSndTmoSec, $0.soSndTmoUsec, $0.soRcvTmoSec, $0.soRcvTmoUsec) = (0, 0, 0, 0)
        }
        $0.nsID = IdentityRoom.own.netNsID
      })
  }

  private func refuse(_ strangers: [(member: UInt32, peer: UInt32, words: String)], _ saving: Saving) {
    guard !strangers.isEmpty else { return }
    let job = Set(saving.job.processes.map(\.pid))
    let holders = FileHolders.find(Set(strangers.map { "socket:[\($0.peer)]" }), except: job)
    for stranger in strangers {
      guard let member = members[stranger.member] else { continue }
      let holder = holders["socket:[\(stranger.peer)]"].map { "\($0), which is not part of the job" }
      let place = UnixSocketName.place(table?[stranger.peer]?.name ?? [])
      saving.refuse(
        member.facts.process,
        "\(stranger.words) \(holder ?? "a process that cannot be seen from here")\(place) (\(member.facts.link))",
        advice: "close the connection before the checkpoint, or checkpoint the parent of both")
    }
  }

  // MARK: Write

  func write(to image: ImageWriter, _ add: (FileEntry) -> Void) throws(Failure) {
    var extras: [UnixSocketExtras] = []
    for inode in order {
      guard let member = members[inode] else { continue }
      add(Self.fileEntry(member.entry))
      extras.append(member.extras)
    }
    for entry in external { add(Self.fileEntry(entry)) }
    if !extras.isEmpty { try image.write(.socketExtras, all: extras) }
    for (index, packet) in packets.enumerated() { try write(packet, index, image) }
  }

  private static func fileEntry(_ entry: UnixSkEntry) -> FileEntry {
    .with { ($0.type, $0.id, $0.usk) = (.unixsk, entry.id, entry) }
  }

  private func write(
    _ packet: (id: UInt32, message: ReceivedMessage, rights: [UInt32]), _ index: Int, _ image: ImageWriter
  ) throws(Failure) {
    let entry = SkPacketEntry.with {
      $0.idFor = packet.id
      $0.length = UInt32(packet.message.data.count)
      if !packet.rights.isEmpty { $0.scm = [.with { ($0.type, $0.rights) = (UInt32(SCM_RIGHTS), packet.rights) }] }
    }
    try image.append(.socketQueues, 0, entry, raw: packet.message.data)
    let sender = Array(packet.message.address.dropFirst(2))
    guard !sender.isEmpty || packet.message.credentials != nil else { return }
    let extras = PacketExtras.with {
      $0.index = UInt32(index)
      $0.sender = Data(sender)
      if let user = packet.message.credentials { $0.user = SocketUser(user) }
    }
    try image.append(.packetExtras, 0, extras)
  }
}

extension SocketUser {
  init(_ credentials: SocketCredentials) {
    self = .with { ($0.pid, $0.uid, $0.gid) = (credentials.pid, credentials.user, credentials.group) }
  }
  var credentials: SocketCredentials { SocketCredentials(pid: pid, user: uid, group: gid) }
}

import CLinux
import FoundationEssentials
import Images
import Linux
import SystemPackage

/// The unix sockets of a job that is being built.
///
/// First all of them are made, named and connected; when every other file of the job is open too, their queues are
/// filled; then datagram sockets are connected, and options and halves that are shut are set.
final class RestoredUnixSockets {
  private var entries: [UInt32: UnixSkEntry] = [:]
  private var order: [UInt32] = []
  private var inodes: [UInt32: UInt32] = [:]
  /// Who is connected to each, or wants to be.
  private var incoming: [UInt32: [UInt32]] = [:]
  private var listeningNames: Set<Data> = []
  private var extras: [UInt32: UnixSocketExtras] = [:]
  let packets: RestoredPackets
  private var names = UnixNameCheck()
  private let binder = UnixBinder()
  /// By inode: the sockets, the other ends of connections whose other end is closed, the files they are bound to.
  private var made: [UInt32: Int32] = [:]
  private var given: Set<UInt32> = []
  private var closedPeers: [UInt32: Int32] = [:]
  private var handles: [UInt32: Int32] = [:]

  init(_ image: ImageReader) throws(Failure) {
    for entry in try image.readAll(.socketExtras, as: UnixSocketExtras.self) { extras[entry.id] = entry }
    packets = try RestoredPackets(image)
  }

  deinit { closeAll() }

  /// - Returns: false where there is another socket of its number.
  func note(_ entry: UnixSkEntry) -> Bool {
    inodes[entry.id] = entry.ino
    order.append(entry.ino)
    if entry.peer != 0 { incoming[entry.peer, default: []].append(entry.ino) }
    if entry.isListening { listeningNames.insert(entry.name) }
    return entries.updateValue(entry, forKey: entry.ino) == nil
  }

  private func extras(of entry: UnixSkEntry) -> UnixSocketExtras { extras[entry.id] ?? UnixSocketExtras() }
  private func peer(of entry: UnixSkEntry) -> UnixSkEntry? { entry.peer == 0 ? nil : entries[entry.peer] }

  /// The socket itself, which stays ours; nil where there is none.
  func number(ofFile id: UInt32) -> Int32? { inodes[id].flatMap { made[$0] } }

  /// Gives the socket away; it has to stay open until `handOver`.
  func descriptor(of entry: UnixSkEntry) throws(Failure) -> Descriptor {
    guard let number = made[entry.ino], given.insert(entry.ino).inserted else {
      throw Failure("Cannot restore a unix socket", why: "it has not been made")
    }
    return Descriptor(owning: number)
  }

  // MARK: Check

  func check(_ entry: UnixSkEntry, _ files: RestoredFiles) throws(Failure) {
    let types = [SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET].map { UInt32($0.rawValue) }
    guard types.contains(entry.type), entry.name.count <= 108 else {
      throw files.damaged("a unix socket is of no type")
    }
    if entry.isExternal {
      guard entry.isDatagram, !entry.name.isEmpty else { throw outside(entry, files) }
      return try names.checkReceiver(entry, files.what)
    }
    guard entry.uflags == 0 else { throw outside(entry, files) }
    if let peer = peer(of: entry), !peer.isExternal {
      guard peer.type == entry.type else {
        throw files.damaged("unix socket \(entry.ino) is connected to one of another type")
      }
    } else if entry.peer != 0, entries[entry.peer] == nil {
      throw files.damaged("unix socket \(entry.ino) is connected to one that is not there")
    }
    guard files.isOpen(entry.id), !(takesNameForItself(entry) && entry.path != nil) else { return }
    // An accepted one has its name from the socket that listens, which may have the name still.
    try names.check(entry, base: base(of: entry), files.what)
  }

  private func outside(_ entry: UnixSkEntry, _ files: RestoredFiles) -> Failure {
    Failure(
      .cannotRestore, files.what, why: "the job has a connection to a unix socket\(entry.place) outside of it",
      advice: "use the program that made the image")
  }

  /// Whether nobody but the socket itself uses its name.
  private func takesNameForItself(_ entry: UnixSkEntry) -> Bool {
    entry.deleted || (entry.isConnected && !entry.isDatagram)
  }

  private func base(of entry: UnixSkEntry) -> String {
    if let path = entry.path, !path.hasPrefix("/") { return entry.nameDir.isEmpty ? "/" : entry.nameDir }
    let base = extras(of: entry).base
    return base.isEmpty ? "/" : base
  }

  // MARK: Make

  func make(_ restoring: Restoring, _ files: RestoredFiles) throws(Failure) {
    let wanted = order.compactMap { entries[$0] }.filter { files.isOpen($0.id) && !$0.isExternal }
    guard !wanted.isEmpty else { return }
    let actors = SocketActors(restoring)
    for entry in wanted where entry.isConnected && !entry.isDatagram { try connectStream(entry, actors, files) }
    for entry in wanted where entry.isDatagram { try pairDatagram(entry, actors, files) }
    for entry in wanted where made[entry.ino] == nil && !isWaiting(entry) {
      made[entry.ino] = try socket(entry, files).release()
    }
    for entry in wanted where handles[entry.ino] == nil && !(entry.isConnected && !entry.isDatagram) {
      try bind(entry, files)
    }
    for entry in wanted where entry.isListening { try listen(entry, actors, files) }
  }

  private func isWaiting(_ entry: UnixSkEntry) -> Bool { peer(of: entry)?.isListening == true }

  private func socket(_ entry: UnixSkEntry, _ files: RestoredFiles) throws(Failure) -> Descriptor {
    try attempt("\(files.what): a unix socket") { () throws(Errno) in
      try Descriptor.socket(AF_UNIX, Int32(entry.type), 0)
    }
  }

  /// Both ends of a connection, or the one that is left of it.
  private func connectStream(_ entry: UnixSkEntry, _ actors: SocketActors, _ files: RestoredFiles) throws(Failure) {
    guard made[entry.ino] == nil, !isWaiting(entry) else { return }
    let other = peer(of: entry)
    if let other, !files.isOpen(other.id) {
      throw files.damaged("unix socket \(entry.ino) is connected to one that nobody has")
    }
    try adopt(connection(entry, other, actors, files), entry, other)
  }

  private func adopt(_ pair: consuming SocketPair, _ entry: UnixSkEntry, _ other: UnixSkEntry?) throws(Failure) {
    let numbers = try attempt("Cannot restore a unix socket") { () throws(Errno) in
      (try pair.first.duplicate().release(), try pair.second.duplicate().release())
    }
    made[entry.ino] = numbers.0
    if let other { made[other.ino] = numbers.1 } else { closedPeers[entry.ino] = numbers.1 }
  }

  private func connection(
    _ entry: UnixSkEntry, _ other: UnixSkEntry?, _ actors: SocketActors, _ files: RestoredFiles
  ) throws(Failure) -> SocketPair {
    let user = extras(of: entry).peer
    let otherUser = other.map { extras(of: $0).peer } ?? user
    guard !entry.name.isEmpty || !(other?.name.isEmpty ?? true) else {
      return try actors.pair(Int32(entry.type), as: user.pid == 0 ? nil : user)
    }
    // Who has been accepted bears the name of the socket that listened; that of the other end is its own.
    let isServer = isAccepted(entry) || other?.name.isEmpty ?? true
    let server = isServer ? entry : other ?? entry
    let client = isServer ? other : entry
    let (seenByServer, seenByClient) = isServer ? (user, otherUser) : (otherUser, user)
    do throws(Failure) {
      let listener = try socket(server, files)
      let file = try name(listener, server, .nowhere)
      try actors.listen(listener, backlog: 1, as: seenByClient.pid == 0 ? nil : seenByClient)
      let calling = try socket(server, files)
      if let client { _ = try name(calling, client, .nowhere) }
      try actors.connect(
        calling, to: Self.address(server, Self.number(of: file)), as: seenByServer.pid == 0 ? nil : seenByServer)
      let accepted = try attempt(files.what) { () throws(Errno) in try listener.accept() }
      return isServer ? SocketPair(first: accepted, second: calling) : SocketPair(first: calling, second: accepted)
    } catch {
      throw Failure(
        error.kind, files.what, why: "the connection of the unix socket\(server.place): \(error.why)",
        advice: error.advice)
    }
  }

  private func isAccepted(_ entry: UnixSkEntry) -> Bool {
    !entry.name.isEmpty && listeningNames.contains(entry.name)
  }

  private func name(
    _ socket: borrowing Descriptor, _ entry: UnixSkEntry, _ place: UnixBinder.Place
  ) throws(Failure) -> Descriptor? {
    do throws(Errno) { return try binder.bind(socket, entry, place) } catch {
      throw Failure(
        .cannotRestore, "Cannot restore a unix socket", why: "the name\(entry.place) cannot be given: \(error.words)",
        advice: error == .notPermitted ? "run torpor as root, or with the capability CAP_SYS_CHROOT" : "")
    }
  }

  private static func number(of descriptor: borrowing Descriptor?) -> Int32? {
    switch descriptor {
    case .some(let descriptor): descriptor.number
    case .none: nil
    }
  }

  /// How to connect to a socket that is bound.
  private static func address(_ entry: UnixSkEntry, _ handle: Int32?) -> [UInt8] {
    guard let handle else { return unixAddress(Array(entry.name)) }
    return unixAddress(Array("/proc/\(getpid())/fd/\(handle)".utf8))
  }

  private func bind(_ entry: UnixSkEntry, _ files: RestoredFiles) throws(Failure) {
    guard let number = made[entry.ino], !entry.name.isEmpty else { return }
    let permissions = entry.hasFilePerms ? entry.filePerms : nil
    let place: UnixBinder.Place =
      takesNameForItself(entry) ? .nowhere : .file(base: base(of: entry), permissions)
    let handle = try Descriptor.lending(number) { socket throws(Failure) in try name(socket, entry, place) }
    if let handle { handles[entry.ino] = handle.release() }
  }

  private func listen(
    _ entry: UnixSkEntry, _ actors: SocketActors, _ files: RestoredFiles
  ) throws(Failure) {
    guard let number = made[entry.ino] else { return }
    let own = extras(of: entry)
    let user = own.peer.pid == 0 ? nil : own.peer
    let present = Set((incoming[entry.ino] ?? []).filter { entries[$0].map { files.isOpen($0.id) } ?? false })
    let known = Set(own.waiting)
    let inOrder = own.waiting.filter(present.contains) + present.filter { !known.contains($0) }.sorted()
    let clients = inOrder.compactMap { entries[$0] }
    let backlog = Int32(clamping: entry.backlog)
    try Descriptor.lending(number) { socket throws(Failure) in
      try actors.listen(socket, backlog: max(backlog, Int32(clamping: clients.count)), as: user)
      for client in clients { try wait(client, for: entry, actors, files) }
      if clients.count > backlog { try actors.listen(socket, backlog: backlog, as: user) }
    }
  }

  /// A connection that nobody has accepted yet. Who has asked for it will be asked for by the one that accepts it.
  private func wait(
    _ client: UnixSkEntry, for entry: UnixSkEntry, _ actors: SocketActors, _ files: RestoredFiles
  ) throws(Failure) {
    let calling = try socket(client, files)
    _ = try name(calling, client, .nowhere)
    try attempt(files.what) { () throws(Errno) in try calling.setStatusFlags(O_NONBLOCK) }
    try actors.connect(calling, to: Self.address(entry, handles[entry.ino]), as: files.holder(of: client.id))
    made[client.ino] = calling.release()
  }

  // MARK: Datagrams

  /// Only socketpair(2) connects sockets without a name.
  private func pairDatagram(_ entry: UnixSkEntry, _ actors: SocketActors, _ files: RestoredFiles) throws(Failure) {
    guard made[entry.ino] == nil else { return }
    let user = extras(of: entry).peer
    guard let other = peer(of: entry) else {
      // Connected to a socket that has been closed; CRIU says the same of one that others are connected to.
      guard entry.peer == 0, entry.isConnected, extras[entry.id] != nil else { return }
      return try adopt(try actors.pair(Int32(entry.type), as: user.pid == 0 ? nil : user), entry, nil)
    }
    guard other.name.isEmpty, !other.isExternal, made[other.ino] == nil, files.isOpen(other.id) else { return }
    try adopt(try actors.pair(Int32(entry.type), as: user.pid == 0 ? nil : user), entry, other)
  }

  /// Connects datagram sockets. Nobody can connect to one that is connected to another, so those that are only receivers come
  /// last.
  private func connectDatagrams(_ files: RestoredFiles) throws(Failure) {
    var done: Set<UInt32> = []
    for inode in order {
      guard let entry = entries[inode], entry.isDatagram, made[inode] != nil else { continue }
      try connectDatagram(entry, &done, files)
    }
  }

  private func connectDatagram(_ entry: UnixSkEntry, _ done: inout Set<UInt32>, _ files: RestoredFiles) throws(Failure)
  {
    guard done.insert(entry.ino).inserted, let number = made[entry.ino] else { return }
    for inode in incoming[entry.ino] ?? [] where inode != entry.peer {
      guard let other = entries[inode], other.isDatagram else { continue }
      try connectDatagram(other, &done, files)
    }
    do throws(Errno) {
      try Descriptor.lending(number) { socket throws(Errno) in
        if let other = peer(of: entry) {
          guard !other.name.isEmpty else { return }
          try socket.connect(to: Self.address(other, handles[other.ino]))
        } else if !entry.isConnected, isHalfOfPair(entry) {
          try socket.connect(to: [0, 0])
        }
      }
    } catch {
      throw Failure(
        .cannotRestore, files.what,
        why: "a unix socket\(entry.place) cannot be connected\(peer(of: entry)?.place ?? ""): \(error.words)")
    }
  }

  /// Whether it was made together with another, while it itself is not connected to anything.
  private func isHalfOfPair(_ entry: UnixSkEntry) -> Bool {
    entry.name.isEmpty && incoming[entry.ino] != nil
  }

  // MARK: Fill and finish

  /// Puts into the queues what was in them.
  ///
  /// - Parameter descriptors: all open files of the job, by ID.
  func finish(_ descriptors: [UInt32: Int32], _ restoring: Restoring, _ files: RestoredFiles) throws(Failure) {
    guard !made.isEmpty else { return }
    let filler = PacketFiller(packets, descriptors, SocketActors(restoring), restoring.log, files)
    for (id, group) in packets.byReceiver {
      guard let inode = inodes[id], let entry = entries[inode], let number = made[inode] else { continue }
      let peer = peer(of: entry).flatMap { made[$0.ino] } ?? closedPeers[inode]
      let route = PacketFiller.Route(
        receiver: number, type: Int32(entry.type),
        peer: entry.isDatagram && entry.peer != 0 && self.peer(of: entry)?.name.isEmpty == false ? nil : peer,
        address: entry.name.isEmpty ? [] : Self.address(entry, handles[inode]))
      try filler.fill(route, group) { name in
        self.sender(named: name)
      } bind: { socket, name throws(Failure) in
        _ = try self.name(socket, .with { $0.name = Data(name) }, .nowhere)
      }
    }
    try connectDatagrams(files)
    for inode in order {
      guard let entry = entries[inode], let number = made[inode] else { continue }
      do throws(Errno) {
        try Descriptor.lending(number) { socket throws(Errno) in try settle(entry, socket, files) }
      } catch {
        throw Failure("\(files.what): the unix socket\(entry.place)", error)
      }
    }
  }

  private func sender(named name: [UInt8]) -> Int32? {
    for inode in order {
      guard let entry = entries[inode], entry.isDatagram, Array(entry.name) == name, let number = made[inode] else {
        continue
      }
      return number
    }
    return nil
  }

  /// What would have been in the way before.
  private func settle(_ entry: UnixSkEntry, _ socket: borrowing Descriptor, _ files: RestoredFiles) throws(Errno) {
    let own = extras(of: entry)
    if own.isReset { _ = try? socket.send([0]) }
    if let other = closedPeers.removeValue(forKey: entry.ino) {
      close(other)
    } else {
      switch entry.shutdown {
      case .read: try socket.shutdown(Int32(SHUT_RD))
      case .write: try socket.shutdown(Int32(SHUT_WR))
      case .both: try socket.shutdown(Int32(SHUT_RDWR))
      case .none: break
      }
    }
    try SocketOptions.applyGeneral(entry.opts, to: socket)
    try files.datagrams.applyOptions(entry.id, to: socket)
    if entry.opts.soPasscred { try socket.setOption(SOL_SOCKET, UnixOption.passCredentials, 1) }
    if entry.opts.soPasssec { try socket.setOption(SOL_SOCKET, UnixOption.passSecurity, 1) }
    if own.passesPidfd { try socket.setOption(SOL_SOCKET, UnixOption.passProcess, 1) }
    if own.refusesRights { try socket.setOption(SOL_SOCKET, UnixOption.passRights, 0) }
    if own.hasPeekOffset { try socket.setOption(SOL_SOCKET, SO_PEEK_OFF, own.peekOffset) }
  }

  /// From here on only the job has its sockets.
  func handOver() {
    binder.keepFiles()
    closeAll()
  }

  private func closeAll() {
    for (inode, number) in made where !given.contains(inode) { close(number) }
    for number in closedPeers.values { close(number) }
    for number in handles.values { close(number) }
    (made, closedPeers, handles) = ([:], [:], [:])
  }
}

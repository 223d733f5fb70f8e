import CLinux
import Images
import Linux
import SystemPackage
import Tracing

/// Makes the calls whose caller the kernel remembers (SO_PEERCRED), each in the process that had made it first.
///
/// A process that has ended gets a stand-in for a moment, with its PID.
final class SocketActors {
  private let restoring: Restoring
  private var standIns: [ProcessID: ControlledThread?] = [:]

  init(_ restoring: Restoring) { self.restoring = restoring }

  deinit {
    for case let thread? in standIns.values {
      kill(thread.tid, SIGKILL)
      waitpid(thread.tid, nil, __WALL)
      thread.forget()
    }
  }

  // MARK: Calls

  func pair(_ type: Int32, as user: SocketUser?) throws(Failure) -> SocketPair {
    guard let user, let thread = try thread(for: user) else {
      return try attempt(Self.what) { () throws(Errno) in
        try asUser(user) { () throws(Errno) in try SocketPair(AF_UNIX, type) }
      }
    }
    var script = Script()
    let ends = script.add(upTo: 512) { program in
      let ends = program.reserve(16)
      Self.change(to: user, &program)
      program.call(Int32(SYS_socketpair), .init(AF_UNIX), .init(type), 0, .data(ends))
      Self.changeBack(&program)
      return ends
    }
    let results = try run(script, in: thread)
    let numbers = results[0].load(ends, as: (Int32, Int32).self)
    let pair = try attempt(Self.what) { () throws(Errno) in
      let process = try openProcess(thread.process)
      return SocketPair(
        first: try copyDescriptor(numbers.0, from: process), second: try copyDescriptor(numbers.1, from: process))
    }
    var closing = Script()
    closing.call(Int32(SYS_close), .init(numbers.0))
    closing.call(Int32(SYS_close), .init(numbers.1))
    try run(closing, in: thread)
    return pair
  }

  func listen(_ socket: borrowing Descriptor, backlog: Int32, as user: SocketUser?) throws(Failure) {
    guard let user, let thread = try thread(for: user) else {
      let number = socket.number
      return try attempt(Self.what) { () throws(Errno) in
        try asUser(user) { () throws(Errno) in _ = try systemCall(Int32(SYS_listen), Int(number), Int(backlog)) }
      }
    }
    try act(on: socket, as: user, in: thread) { program in
      program.call(Int32(SYS_listen), 0, .init(backlog))
    }
  }

  func connect(_ socket: borrowing Descriptor, to address: [UInt8], as user: SocketUser?) throws(Failure) {
    guard let user, let thread = try thread(for: user) else {
      let number = socket.number
      return try attempt(Self.what) { () throws(Errno) in
        try asUser(user) { () throws(Errno) in
          try address.withBytes { bytes throws(Errno) in
            _ = try systemCall(Int32(SYS_connect), Int(number), Int(bitPattern: bytes.baseAddress), bytes.count)
          }
        }
      }
    }
    try act(on: socket, as: user, in: thread) { program in
      let name = program.store(bytes: address)
      program.call(Int32(SYS_connect), 0, .data(name), .init(address.count))
    }
  }

  /// Has somebody with this PID exist, so that it can be named as a sender.
  func summon(_ user: SocketUser) throws(Failure) { _ = try thread(for: user) }

  private static let what = "Cannot make a unix socket"

  // MARK: Processes

  /// Gives the socket to the process, which has no descriptors yet, as 0, and takes it away again.
  private func act(
    on socket: borrowing Descriptor, as user: SocketUser, in thread: ControlledThread,
    _ call: (inout SyscallProgram) -> Void
  ) throws(Failure) {
    var script = Script()
    try restoring.dealer.deal([socket.number], &script)
    script.add(upTo: 1024) { program in
      Self.change(to: user, &program)
      call(&program)
      Self.changeBack(&program)
      program.call(Int32(SYS_close), 0)
    }
    try run(script, in: thread)
  }

  @discardableResult
  private func run(_ script: Script, in thread: ControlledThread) throws(Failure) -> [Results] {
    var results: [Results] = []
    for program in script.programs where !program.isEmpty {
      results.append(try thread.run(program, in: restoring.layout.mainSeat))
    }
    return results
  }

  /// The process that is to make the call; nil where it has to be this one.
  private func thread(for user: SocketUser) throws(Failure) -> ControlledThread? {
    if user.pid == getpid() { return nil }
    if let process = restoring.processes.first(where: { $0.pid == user.pid }) { return process.leader }
    if let known = standIns[user.pid] { return known }
    let thread = try standIn(user.pid)
    standIns[user.pid] = .some(thread)
    if thread == nil {
      restoring.log.warning(
        "unix sockets that process \(user.pid) had made will tell torpor's PID as their maker's (SO_PEERCRED): that process has ended, and its PID is taken"
      )
    }
    return thread
  }

  private func standIn(_ pid: ProcessID) throws(Failure) -> ControlledThread? {
    guard let blank = try? BlankProcess.start(pid: pid, base: restoring.layout.base) else { return nil }
    let socket = UInt64(restoring.dealer.socketNumber)
    var script = Script()
    script.call(Int32(SYS_close_range), 0, .init(socket - 1), 0)
    script.call(Int32(SYS_close_range), .init(socket + 1), .init(UInt32.max), 0)
    try run(script, in: blank.thread)
    return blank.thread
  }

  // MARK: Users

  // Only the effective IDs count, and with the real and saved ones left alone there is a way back.
  private static func change(to user: SocketUser, _ program: inout SyscallProgram) {
    if user.gid != getegid() {
      program.call(Int32(SYS_setresgid), .init(-1), .init(user.gid), .init(-1), tolerant: true)
    }
    if user.uid != geteuid() {
      program.call(Int32(SYS_setresuid), .init(-1), .init(user.uid), .init(-1), tolerant: true)
    }
  }

  private static func changeBack(_ program: inout SyscallProgram) {
    program.call(Int32(SYS_setresuid), .init(-1), .init(geteuid()), .init(-1))
    program.call(Int32(SYS_setresgid), .init(-1), .init(getegid()), .init(-1))
  }

  /// The bare calls change this thread only.
  private func asUser<Value: ~Copyable>(_ user: SocketUser?, _ body: () throws(Errno) -> Value) throws(Errno) -> Value {
    guard let user, user.uid != geteuid() || user.gid != getegid() else { return try body() }
    let own = (Int(geteuid()), Int(getegid()))
    _ = try? systemCall(Int32(SYS_setresgid), -1, Int(user.gid), -1)
    _ = try? systemCall(Int32(SYS_setresuid), -1, Int(user.uid), -1)
    defer {
      _ = try? systemCall(Int32(SYS_setresuid), -1, own.0, -1)
      _ = try? systemCall(Int32(SYS_setresgid), -1, own.1, -1)
    }
    return try body()
  }
}

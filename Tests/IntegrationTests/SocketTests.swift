import Glibc
import Testing

/// What a user loses when sockets do not come back as they were.
@Suite struct Sockets {
  private static let quiet = Expectations(observe: false, counts: false)

  @Test func aMessageAConnectionOrADescriptorInAUnixSocketIsLost() async throws {
    try await withWorkspace { workspace in
      let victim = try await Victim.start("unixsockets", ["strict"], in: workspace)
      try await victim.travel(generations: 2)
      try await victim.finish()
    }
  }

  @Test func aDatagramOrAnOptionOfAUDPSocketIsLost() async throws {
    try await withWorkspace { workspace in
      let victim = try await Victim.start("udpsockets", in: workspace)
      try await victim.travel(generations: 2)
      try await victim.finish()
    }
  }

  @Test func aPidfdANetlinkSocketOrAPacketFilterIsLost() async throws {
    try await withWorkspace { workspace in
      let victim = try await Victim.start("handles", in: workspace)
      let zombies = Set(victim.pids.filter { Processes.state($0) == "Z" })
      try await victim.travel(generations: 2, Expectations(zombies: zombies))
      try await victim.finish()
    }
  }

  @Test func aPidfdOfAnotherProgramIsLostSilently() async throws {
    try await withWorkspace { workspace in
      let victim = try await python(
        """
        fd = os.pidfd_open(os.getppid())
        say("READY", os.getpid())
        while True: time.sleep(0.01)
        """, in: workspace)
      let run = try await workspace.torpor(["checkpoint", "\(victim.pid)", "--output", workspace.fresh("image")])
      #expect(run.status == .code(3) && run.message.contains("pidfd of \(getpid()) ("), "\(run)")
    }
  }

  @Test func anEmptyMessageInAUnixSocketIsLost() async throws {
    try await withWorkspace { workspace in
      let victim = try await Victim.start("unixsockets", ["empty"], in: workspace)
      try await victim.travel(leaveRunning: false)
      // The kernel shows it only once: from then on a checkpoint says so.
      try await victim.checkpoint()
      let run = try await workspace.torpor(["checkpoint", "\(victim.pid)", "--output", workspace.fresh("image")])
      #expect(run.status == .code(3) && run.message.contains("empty message"), "\(run)")
      try await victim.finish()
    }
  }

  /// A Python program that reports READY once `body` has set up what it wants to have.
  private func python(_ body: String, _ arguments: [String] = [], in workspace: Workspace) async throws -> Victim {
    let script = workspace.fresh("job.py")
    let start = "import os, socket, sys, time\ndef say(*words): print(*words, flush=True)\n"
    try Files.write(script, text: start + body)
    let victim = try Victim("python3", [script] + arguments, in: workspace)
    try await victim.waitUntilReady()
    return victim
  }

  private static let server = """
    s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    s.bind(sys.argv[1]); s.listen(5)
    say("READY", os.getpid())
    peers = []
    while True: peers.append(s.accept())
    """

  @Test func aConnectionToAProgramOutsideIsCutSilently() async throws {
    try await withWorkspace { workspace in
      let name = workspace.file("socket")
      let server = try await python(Self.server, [name], in: workspace)
      let client = try await python(
        """
        s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])
        say("READY", os.getpid())
        while True: time.sleep(0.01)
        """, [name], in: workspace)
      for (victim, other) in [(client, server), (server, client)] {
        // The server may not have accepted it yet.
        var run = try await workspace.torpor(["checkpoint", "\(victim.pid)", "--output", workspace.fresh("image")])
        for _ in 0..<20 where run.message.contains("waits to be accepted") {
          run = try await workspace.torpor(["checkpoint", "\(victim.pid)", "--output", workspace.fresh("image")])
        }
        #expect(run.status == .code(3), "\(run)")
        #expect(run.message.contains("unix socket") && run.message.contains("\(other.pid) (python3"), "\(run)")
        await victim.expectUnharmed("after a refusal", Self.quiet, sourceLocation: #_sourceLocation)
      }
      try await client.end()
      try await server.end()
    }
  }

  @Test func aProgramLosesItsWayToTheSystemLog() async throws {
    try await withWorkspace { workspace in
      let name = workspace.file("log")
      let logger = try await python(
        """
        s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.bind(sys.argv[1])
        say("READY", os.getpid())
        while True: say(s.recv(100).decode())
        """, [name], in: workspace)
      let client = try await python(
        """
        s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.connect(sys.argv[1])
        say("READY", os.getpid())
        n = 0
        while True:
            n += 1
            s.send(b"line %d" % n)
            time.sleep(0.005)
        """, [name], in: workspace)
      try await client.travel(generations: 2, Self.quiet)
      let lines = logger.report.count
      #expect(await eventually { logger.report.count > lines + 20 }, "\(client.explanation)")
      let image = try await client.checkpointAndStop(Self.quiet)
      #expect(
        logger.report.dropFirst().enumerated().allSatisfy { $1 == "line \($0 + 1)" }, "\(logger.report.suffix(20))")
      try await logger.end()
      let run = try await workspace.torpor(["restore", image, "--detach"])
      #expect(run.status == .code(5) && run.message.contains(name), "\(run)")
      #expect(!Processes.exists(client.pid))
    }
  }

  @Test func whatIsInAConnectionThatWaitsIsDroppedSilently() async throws {
    try await withWorkspace { workspace in
      let victim = try await python(
        """
        s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(5)
        c = socket.socket(socket.AF_UNIX); c.connect(sys.argv[1]); c.send(b"first words")
        say("READY", os.getpid())
        while not os.path.exists("finish"): time.sleep(0.01)
        a, _ = s.accept()
        say("ACCEPTED")
        while not os.path.exists("end"): time.sleep(0.01)
        say(a.recv(100).decode())
        """, [workspace.file("socket")], in: workspace)
      let run = try await workspace.torpor(["checkpoint", "\(victim.pid)", "--output", workspace.fresh("image")])
      #expect(run.status == .code(3) && run.message.contains("has not been accepted and has data"), "\(run)")
      try Files.write("\(victim.folder)/finish", text: "")
      #expect(await eventually { victim.report.contains("ACCEPTED") })
      try await victim.travel(Self.quiet)
      try Files.write("\(victim.folder)/end", text: "")
      #expect(await eventually { victim.report.contains("first words") }, "\(victim.explanation)")
    }
  }

  @Test func aSocketTakesANameThatAnotherProgramHas() async throws {
    try await withWorkspace { workspace in
      let name = workspace.file("socket")
      let victim = try await python(Self.server, [name], in: workspace)
      let image = try await victim.checkpointAndStop(Self.quiet)
      unlink(name)
      let other = try await python(Self.server, [name], in: workspace)
      let run = try await workspace.torpor(["restore", image, "--detach"])
      #expect(run.status == .code(5), "\(run)")
      #expect(run.message.contains(name) && run.message.contains("\(other.pid) (python3"), "\(run)")
      try await other.end()
      try await victim.restore(image)
      try await victim.end()
      // Something else at the place of the socket is not overwritten.
      unlink(name)
      try Files.write(name, text: "precious")
      let second = try await workspace.torpor(["restore", image, "--detach"])
      #expect(second.status == .code(5) && second.message.contains(name), "\(second)")
      #expect(Files.text(name) == "precious")
      unlink(name)
      try await victim.restore(image)
      #expect(Files.status(name)?.st_mode == S_IFSOCK | 0o755)
      try await victim.end()
    }
  }
}

import Glibc
import Testing

/// What a user loses when sockets do not come back as they were.
@Suite struct Sockets {
  private static let quiet = Expectations(observe: false, counts: false)

  @Test func aMessageAConnectionOrADescriptorInAUnixSocketIsLost() async throws {
    try await withWorkspace { workspace in
      let victim = try await Victim.start("unixsockets", in: workspace)
      try await victim.travel(generations: 2)
      try await victim.finish()
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
}

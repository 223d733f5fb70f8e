import Glibc
import Testing

/// What cannot be done is said in one clear line, the job is unharmed, and nothing is left behind.
@Suite struct BadInput {
  /// One line that holds all of `words`, a status that is not 0, and no partial image.
  private func expectRefusal(
    _ run: TorporRun, _ words: String..., sourceLocation: SourceLocation = #_sourceLocation
  ) {
    #expect(!run.succeeded, "\(run)", sourceLocation: sourceLocation)
    if case .signal = run.status { Issue.record("torpor crashed: \(run)", sourceLocation: sourceLocation) }
    let lines = run.message.split(separator: "\n")
    #expect(lines.count == 1, "more than one line: \(run)", sourceLocation: sourceLocation)
    #expect(run.message.hasPrefix("torpor: Cannot "), "\(run)", sourceLocation: sourceLocation)
    for word in words { #expect(run.message.contains(word), "no \"\(word)\" in: \(run)", sourceLocation: sourceLocation) }
  }

  @Test func aProcessThatIsNoneOrNoProgramIsTaken() async throws {
    try await withWorkspace { workspace in
      let ended = try workspace.start(Launch("/bin/true"))
      _ = await Reaper.wait(for: ended, within: .seconds(5))
      expectRefusal(try await workspace.torpor(["checkpoint", "\(ended)"]), "\(ended)", "no such process")
      expectRefusal(try await workspace.torpor(["checkpoint", "2"]), "2 (", "kernel")
      expectRefusal(try await workspace.torpor(["checkpoint", "\(getpid())"]), "\(getpid())", "below it")
      let victim = try await Victim.start("zombie", in: workspace)
      if let zombie = Processes.children(victim.pid).first {
        expectRefusal(try await workspace.torpor(["checkpoint", "\(zombie)"]), "\(zombie)", "zombie", "\(victim.pid)")
      } else {
        Issue.record("there is no zombie")
      }
      #expect(Files.names(in: workspace.path).filter { $0.contains("partial") }.isEmpty)
    }
  }

  @Test func aProcessIsTakenFromItsDebugger() async throws {
    try await withWorkspace { workspace in
      let tracer = try await Victim.start("tracer", in: workspace)
      let traced = pid_t(tracer.ready.last ?? 0)
      expectRefusal(
        try await workspace.torpor(["checkpoint", "\(traced)", "--output", workspace.file("image")]), "\(traced)",
        "traced by \(tracer.pid)", "tracer")
      #expect(Processes.status("/proc/\(traced)/status")["TracerPid"] == "\(tracer.pid)")
      let late = await tracer.countsOn(except: ["progress"])
      #expect(late.isEmpty, "\(late)")
      try await tracer.end()
    }
  }

  @Test func anotherUsersProcessIsTaken() async throws {
    try #require(Host.isRoot, "this test needs root to have two users")
    try await withWorkspace { workspace in
      let victim = try await Victim.start("counter", in: workspace)
      let folder = workspace.file("open")
      try Files.makeFolder(folder, mode: 0o777)
      chmod(folder, 0o777)
      let copy = workspace.file("torpor")
      try Files.copy(Host.torpor, to: copy)
      let (status, output, errors) = try await workspace.run(
        "setpriv",
        ["--reuid", "65534", "--regid", "65534", "--clear-groups", copy, "checkpoint", "\(victim.pid)", "--output", "\(folder)/image"])
      #expect(status == .code(6), "\(status) \(output) \(errors)")
      #expect(errors.contains("\(victim.pid)") && errors.contains("user 0"), "\(errors)")
      await victim.expectUnharmed("after another user's try", sourceLocation: #_sourceLocation)
      #expect(Files.names(in: folder).isEmpty)
    }
  }

  @Test func anImageIsOverwrittenOrWrittenWhereItCannotBe() async throws {
    try await withWorkspace { workspace in
      let victim = try await Victim.start("counter", in: workspace)
      let there = workspace.file("there")
      try Files.makeFolder(there)
      try Files.write("\(there)/precious", text: "content")
      expectRefusal(try await workspace.torpor(["checkpoint", "\(victim.pid)", "--output", there]), there, "exists already", "--output")
      #expect(Files.text("\(there)/precious") == "content")
      expectRefusal(
        try await workspace.torpor(["checkpoint", "\(victim.pid)", "--output", workspace.file("none/image")]), "none", "--output")
      expectRefusal(try await workspace.torpor(["checkpoint", "\(victim.pid)", "--output", "/proc/image"]), "/proc")
      await victim.expectUnharmed("after three refusals", sourceLocation: #_sourceLocation)
      try await victim.finish()
    }
  }

  @Test func aFullDiskHarmsTheJob() async throws {
    try #require(Host.isRoot, "this test mounts a small file system")
    try await withWorkspace { workspace in
      let victim = try await Victim.start("memory", ["10"], in: workspace)
      let folder = workspace.file("small")
      try Files.makeFolder(folder)
      let mounted = try await workspace.run("mount", ["-t", "tmpfs", "-o", "size=4m", "none", folder])
      try #require(mounted.status == .code(0), "\(mounted)")
      let run = try await workspace.torpor(["checkpoint", "\(victim.pid)", "--output", "\(folder)/image"])
      let left = Files.names(in: folder)
      let unmounted = try await workspace.run("umount", [folder])
      #expect(unmounted.status == .code(0), "\(unmounted)")
      expectRefusal(run, folder, "it needs", "4 MiB free", "--output")
      #expect(left.isEmpty, "left behind: \(left)")
      await victim.expectUnharmed("after a full disk", sourceLocation: #_sourceLocation)
      try await victim.travel()
      try await victim.finish()
    }
  }

  @Test func aDamagedImageIsRestored() async throws {
    try await withWorkspace { workspace in
      let victim = try await Victim.start("threads", ["3"], in: workspace)
      let image = try await victim.checkpointAndStop()
      for name in Files.names(in: image) {
        let path = "\(image)/\(name)"
        let content = try #require(Files.bytes(path))
        // The last byte of the manifest is only a line feed.
        let lengths = Set([0, 1, 3, 8, 11, content.count / 2, content.count - (name == "torpor.json" ? 2 : 1)]).filter { $0 < content.count && $0 >= 0 }
        for length in lengths {
          try Files.write(path, content.prefix(length))
          expectRefusal(try await workspace.torpor(["restore", image, "--detach"]), image)
        }
        for place in [0, content.count / 3, content.count - 1] where name != "torpor.json" && !content.isEmpty {
          var damaged = content
          damaged[place] ^= 1 << Int.random(in: 0...7)
          try Files.write(path, damaged)
          expectRefusal(try await workspace.torpor(["restore", image, "--detach"]), image, name)
        }
        unlink(path)
        if name != "torpor.json" { expectRefusal(try await workspace.torpor(["restore", image, "--detach"]), image, name) }
        try Files.write(path, content)
        #expect(!Processes.exists(victim.pid))
      }
      try await victim.restore(image)
      try await victim.finish()
    }
  }

  @Test func anImageOfANewerTorporOrAnotherMachineIsRestored() async throws {
    try await withWorkspace { workspace in
      let victim = try await Victim.start("counter", in: workspace)
      let image = try await victim.checkpointAndStop()
      let path = "\(image)/torpor.json"
      let manifest = try #require(Files.text(path))
      func changed(_ from: String, _ to: String) throws -> String {
        let parts = manifest.split(separator: from, maxSplits: 1, omittingEmptySubsequences: false)
        try #require(parts.count == 2, "no \(from) in \(manifest.prefix(300))")
        return "\(parts[0])\(to)\(parts[1])"
      }
      try Files.write(path, text: try changed("\"version\":1", "\"version\":77"))
      expectRefusal(try await workspace.torpor(["restore", image, "--detach"]), "version 77")
      try Files.write(path, text: try changed("\"x86_64\"", "\"aarch64\""))
      expectRefusal(try await workspace.torpor(["restore", image, "--detach"]), "aarch64")
      try Files.write(path, text: try changed("\"cpuFeatures\":[", "\"cpuFeatures\":[\"warpdrive\","))
      expectRefusal(try await workspace.torpor(["restore", image, "--detach"]), "warpdrive")
      expectRefusal(try await workspace.torpor(["restore", workspace.file("nothing"), "--detach"]), "nothing")
      expectRefusal(try await workspace.torpor(["restore", workspace.path, "--detach"]), workspace.path)
      try Files.write(path, text: manifest)
      try await victim.restore(image)
      try await victim.finish()
    }
  }

  @Test func aProcessIDThatIsTakenIsTakenAway() async throws {
    try await withWorkspace { workspace in
      let victim = try await Victim.start("counter", in: workspace)
      let image = try await victim.checkpoint()
      expectRefusal(
        try await workspace.torpor(["restore", image, "--detach", "--pid-namespace", "never"]), "\(victim.pid) (counter)", "taken")
      await victim.expectUnharmed("after a restore over it", sourceLocation: #_sourceLocation)
      try await victim.finish()
    }
  }

  @Test func aFileOfTheJobIsGoneOrShorterOrAnother() async throws {
    try await withWorkspace { workspace in
      let program = workspace.file("counter")
      try Files.copy("\(try Host.victims.get())/counter", to: program)
      let victim = try Victim(program, [], in: workspace)
      try await victim.waitUntilReady()
      let image = try await victim.checkpointAndStop()
      let content = try #require(Files.bytes(program))
      unlink(program)
      expectRefusal(try await workspace.torpor(["restore", image, "--detach"]), program)
      try Files.copy("/bin/true", to: program)
      expectRefusal(try await workspace.torpor(["restore", image, "--detach"]), program)
      try Files.write(program, content, mode: 0o755)
      let progress = try #require(Files.bytes("\(victim.folder)/progress"))
      try Files.write("\(victim.folder)/progress", [])
      expectRefusal(try await workspace.torpor(["restore", image, "--detach"]), "\(victim.folder)/progress", "bytes")
      try Files.write("\(victim.folder)/progress", progress)
      try await victim.restore(image)
      try await victim.finish()
    }
  }
}

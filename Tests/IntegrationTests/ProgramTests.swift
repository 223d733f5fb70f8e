import Glibc
import Testing

/// Programs that nobody here wrote, saved and restored in the middle of their work.
@Suite struct Programs {
  private static let quiet = Expectations(observe: false, counts: false)

  /// Checkpoint and go on, checkpoint and stop, restore; as often as wanted.
  private func travel(_ victim: Victim, generations: Int = 2) async throws {
    try await victim.travel(generations: generations, Self.quiet)
  }

  @Test func pythonComputesOtherDigits() async throws {
    try await withWorkspace { workspace in
      let script = workspace.file("digits.py")
      try Files.write(script, text: Sources.digits)
      let undisturbed = try await workspace.run("python3", [script, "700"])
      let victim = try Victim("python3", [script, "700"], in: workspace)
      try await Task.sleep(for: .milliseconds(400))
      try await travel(victim, generations: 3)
      _ = await Reaper.wait(for: victim.pid, within: .seconds(60))
      #expect(undisturbed.output.count > 2000)
      #expect((Files.text("\(victim.folder)/report") ?? "") == undisturbed.output)
    }
  }

  @Test func aPipelineWritesAnotherFile() async throws {
    try await withWorkspace { workspace in
      let script = "for i in $(seq 1 60); do seq $i 4000; sleep 0.02; done | gzip -9 | gzip -d | tee copy | sha256sum > sum"
      let undisturbed = workspace.file("undisturbed")
      try Files.makeFolder(undisturbed)
      _ = try await workspace.run("bash", ["-c", script], folder: undisturbed)
      let victim = try Victim("bash", ["-c", script], in: workspace)
      try await Task.sleep(for: .milliseconds(400))
      try await travel(victim, generations: 3)
      _ = await Reaper.wait(for: victim.pid, within: .seconds(60))
      #expect(Files.text("\(victim.folder)/sum") == Files.text("\(undisturbed)/sum"))
      #expect(Files.bytes("\(victim.folder)/copy") == Files.bytes("\(undisturbed)/copy"))
      #expect(Files.size("\(undisturbed)/copy") > 100_000)
    }
  }

  @Test func aBuildMakesOtherPrograms() async throws {
    try await withWorkspace { workspace in
      let sources = "\(Host.packageRoot)/Tests/Victims"
      func folder(_ name: String) throws -> String {
        let folder = workspace.file(name)
        try Files.makeFolder(folder)
        for file in Files.names(in: sources) where file == "Makefile" || file.hasSuffix(".c") || file.hasSuffix(".h") {
          try Files.copy("\(sources)/\(file)", to: "\(folder)/\(file)")
        }
        return folder
      }
      let undisturbed = try folder("undisturbed")
      let build = try await workspace.run("make", ["-j8"], folder: undisturbed, limit: .seconds(120))
      try #require(build.status == .code(0), "\(build)")
      // Somewhere else the compiler would write other paths into what it makes.
      Files.remove("\(workspace.path)/kept")
      rename("\(undisturbed)/bin", "\(workspace.path)/kept")
      let victim = try Victim("make", ["-j8"], in: workspace, workingFolder: undisturbed)
      var generations = 0
      while generations < 20 {
        try await Task.sleep(for: .milliseconds(.random(in: 10...150)))
        let image = workspace.fresh("image")
        let run = try await workspace.torpor(["checkpoint", "\(victim.pid)", "--stop", "--output", image])
        if run.status == .code(2) { break } // it was done before
        try #require(run.succeeded, "\(run)")
        try #require(await Reaper.waitUntilGone(try await workspace.processes(in: image)).isEmpty)
        try await victim.restore(image)
        Files.remove(image)
        generations += 1
      }
      #expect(generations > 1, "the build was done after \(generations) restores")
      _ = await Reaper.wait(for: victim.pid, within: .seconds(120))
      let made = Files.names(in: "\(undisturbed)/bin")
      #expect(made == Files.names(in: "\(workspace.path)/kept"), "\(victim.explanation)")
      for name in made {
        #expect(Files.bytes("\(undisturbed)/bin/\(name)") == Files.bytes("\(workspace.path)/kept/\(name)"), "\(name) is another")
      }
    }
  }

  @Test func redisForgetsItsKeys() async throws {
    try await withWorkspace { workspace in
      let port = try FreePort.find()
      let victim = try Victim(
        "redis-server", ["--port", "\(port)", "--save", "", "--dir", workspace.path, "--loglevel", "warning"], in: workspace)
      func ask(_ words: String...) async throws -> String {
        let run = try await workspace.run("redis-cli", ["-p", "\(port)"] + words)
        // The server closes its end a moment after the client has gone.
        #expect(await eventually { !FreePort.isConnected(port) })
        return run.output.trimmingSpaces()
      }
      var answer = ""
      for _ in 0..<100 where answer != "PONG" {
        try await Task.sleep(for: .milliseconds(50))
        answer = try await ask("ping")
      }
      try #require(answer == "PONG")
      _ = try await ask("eval", "for i=1,2000 do redis.call('set','key'..i,'value'..i) end", "0")
      for generation in 1...10 {
        try await travel(victim, generations: 1)
        #expect(try await ask("dbsize") == "\(1999 + generation)")
        #expect(try await ask("get", "key1234") == "value1234")
        #expect(try await ask("set", "generation\(generation)", "1") == "OK")
      }
      try await victim.end()
    }
  }

  @Test func sqliteLosesATransaction() async throws {
    try await withWorkspace { workspace in
      // Everything is inside of the job: a shell that feeds the database line by line.
      let script = """
        { echo 'create table t(n integer); begin;'; for i in $(seq 1 120); do echo "insert into t values($i);"; sleep 0.02; done
          echo 'commit; select count(*), sum(n) from t;'; } | sqlite3 data.db > result
        """
      let victim = try Victim("bash", ["-c", script], in: workspace)
      try await Task.sleep(for: .milliseconds(700))
      try await travel(victim)
      _ = await Reaper.wait(for: victim.pid, within: .seconds(60))
      #expect(Files.text("\(victim.folder)/result")?.trimmingSpaces() == "120|7260")
    }
  }

  @Test func aGoProgramStopsCounting() async throws {
    try await withWorkspace { workspace in
      let source = workspace.file("main.go")
      let program = workspace.file("counter")
      try Files.write(source, text: Sources.go)
      let build = try await workspace.run(
        "go", ["build", "-o", program, source], environment: ["GOCACHE": workspace.file("cache"), "GO111MODULE": "off"],
        limit: .seconds(240))
      try #require(build.status == .code(0), "\(build)")
      let victim = try Victim(program, [], in: workspace)
      try await countLines(victim)
    }
  }

  @Test func aJavaProgramStopsCounting() async throws {
    try await withWorkspace { workspace in
      try Files.write(workspace.file("Counter.java"), text: Sources.java)
      let build = try await workspace.run("javac", ["-d", workspace.path, workspace.file("Counter.java")], limit: .seconds(120))
      try #require(build.status == .code(0), "\(build)")
      let victim = try Victim("java", ["-Xmx256m", "-cp", workspace.path, "Counter"], in: workspace)
      try await countLines(victim)
    }
  }

  @Test func aSwiftProgramStopsCounting() async throws {
    try await withWorkspace { workspace in
      let source = workspace.file("counter.swift")
      let program = workspace.file("counter")
      try Files.write(source, text: Sources.swift)
      let build = try await workspace.run("swiftc", ["-parse-as-library", "-o", program, source], limit: .seconds(240))
      try #require(build.status == .code(0), "\(build)")
      let victim = try Victim(program, [], in: workspace)
      try await countLines(victim)
    }
  }

  /// The program prints `count N` with N rising by one each time, and goes on doing so through restores.
  private func countLines(_ victim: Victim) async throws {
    func last() -> Int { victim.report.last { $0.hasPrefix("count ") }.flatMap { Int($0.dropFirst(6)) } ?? 0 }
    try #require(await eventually(within: .seconds(20)) { last() > 5 }, "\(victim.explanation)")
    for _ in 1...3 {
      try await travel(victim, generations: 1)
      let now = last()
      #expect(await eventually(within: .seconds(20)) { last() > now + 5 }, "\(victim.explanation)")
    }
    let counts = victim.report.compactMap { $0.hasPrefix("count ") ? Int($0.dropFirst(6)) : nil }
    #expect(counts == Array(1...max(counts.count, 1)), "counts are missing or doubled: \(victim.explanation)")
    try await victim.end()
  }
}

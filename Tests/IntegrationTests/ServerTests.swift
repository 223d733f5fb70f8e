import Glibc
import Testing

/// Servers and programs with sockets that nobody here wrote, saved and restored in the middle of their work.
@Suite struct Servers {
  private static let quiet = Expectations(observe: false, counts: false)

  @Test func nginxAnswersNoMore() async throws {
    try await withWorkspace { workspace in
      let port = try FreePort.find()
      let folder = workspace.path
      try Files.makeFolder("\(folder)/www")
      try Files.write("\(folder)/www/index.html", text: "a page\n")
      chmod(folder, 0o777)
      try Files.write("\(folder)/nginx.conf", text: Sources.nginx(folder, port))
      let victim = try Victim(
        "nginx", ["-p", folder, "-c", "\(folder)/nginx.conf", "-e", "\(folder)/error.log"], in: workspace)
      let client = workspace.file("client.py")
      try Files.write(client, text: Sources.webClient)
      func answers() async throws -> Bool {
        let run = try await workspace.run("python3", [client, "\(port)", "\(folder)/socket"])
        return run.status == .code(0) && run.output == "a page\na page\n"
      }
      var isUp = false
      for _ in 0..<100 where !isUp {
        isUp = try await answers()
        if !isUp { try await Task.sleep(for: .milliseconds(50)) }
      }
      try #require(isUp, "\(victim.explanation) \(Files.text("\(folder)/error.log") ?? "")")
      #expect(victim.pids.count == 3, "a master and two workers")
      for _ in 1...3 {
        try await victim.travel(Self.quiet)
        #expect(try await answers(), "\(Files.text("\(folder)/error.log") ?? "")")
      }
      // The master still rules its workers over their channels.
      kill(victim.pid, SIGQUIT)
      #expect(await Reaper.wait(for: victim.pid, within: .seconds(15)) == .code(0))
      let log = (Files.text("\(folder)/error.log") ?? "").split(separator: "\n").filter { !$0.contains("[notice]") }
      #expect(log.isEmpty, "\(log)")
    }
  }

  @Test func aJavaSelectorHangs() async throws {
    try await withWorkspace { workspace in
      try Files.write(workspace.file("Echo.java"), text: Sources.javaSelector)
      let build = try await workspace.run(
        "javac", ["-d", workspace.path, workspace.file("Echo.java")], limit: .seconds(120))
      try #require(build.status == .code(0), "\(build)")
      let victim = try Victim(
        "java", ["-Xmx128m", "-cp", workspace.path, "Echo", "\(workspace.path)/echo"], in: workspace)
      try await countLines(victim)
    }
  }

  @Test func pythonsAsyncioAndMultiprocessingHang() async throws {
    try await withWorkspace { workspace in
      let script = workspace.file("loops.py")
      try Files.write(script, text: Sources.pythonLoops)
      let victim = try Victim("python3", [script, workspace.file("socket")], in: workspace)
      try await countLines(victim)
    }
  }

  @Test func nodeStopsCounting() async throws {
    try await withWorkspace { workspace in
      let script = workspace.file("echo.js")
      try Files.write(script, text: Sources.node)
      let victim = try Victim("node", [script, workspace.file("socket")], in: workspace)
      try await countLines(victim)
    }
  }

  /// The program prints `count N` with N rising by one each time, and goes on doing so through restores.
  private func countLines(_ victim: Victim) async throws {
    func last() -> Int { victim.report.last { $0.hasPrefix("count ") }.flatMap { Int($0.dropFirst(6)) } ?? 0 }
    try #require(await eventually(within: .seconds(30)) { last() > 5 }, "\(victim.explanation)")
    for _ in 1...3 {
      try await victim.travel(Self.quiet)
      let now = last()
      #expect(await eventually(within: .seconds(20)) { last() > now + 5 }, "\(victim.explanation)")
    }
    let counts = victim.report.compactMap { $0.hasPrefix("count ") ? Int($0.dropFirst(6)) : nil }
    #expect(counts == Array(1...max(counts.count, 1)), "counts are missing or doubled: \(victim.explanation)")
    #expect(!victim.report.contains { $0.hasPrefix("ERROR") }, "\(victim.explanation)")
    try await victim.end()
  }
}

import CLinux
import Linux
import SystemPackage
import Tracing

/// Tries out what Torpor needs of the kernel and of the user's rights.
public enum Probes {
  public struct Feature: Encodable, Sendable {
    public var name: String
    public var works: Bool
    /// Without it nothing can be saved or restored.
    public var isNeeded: Bool
    /// What Torpor does with it.
    public var purpose: String
    /// What can be done where it is missing.
    public var remedy: String
  }

  /// Each is really tried, on this process or on a child that lives no longer than the trial.
  public static func all() -> [Feature] {
    let child = try? BlankProcess.start(pid: nil, base: 0x10_0000)
    defer {
      if let child {
        kill(child.thread.tid, SIGKILL)
        child.thread.forget()
        waitpid(child.thread.tid, nil, __WALL)
      }
    }
    return [
      feature(
        "tracing (PTRACE_SEIZE)", child != nil, needed: true, "stopping a job",
        "allow it: sysctl kernel.yama.ptrace_scope=0, or run torpor as root"),
      feature(
        "vDSO with spare bytes", child.map(canBorrow) ?? false, needed: true, "asking a job about itself",
        "boot without vdso=0"),
      feature(
        "choice of process IDs (clone3)", canChoosePID(), needed: true, "restoring under the old IDs",
        "run torpor as root, or give it CAP_CHECKPOINT_RESTORE"),
      feature(
        "comparing objects (kcmp)", works { () throws(Errno) in _ = try compareFiles(getpid(), 0, getpid(), 0) },
        needed: true, "keeping shared files shared", "use a kernel with CONFIG_KCMP"),
      feature(
        "copying descriptors (pidfd_getfd)",
        works { () throws(Errno) in
          let process = try openProcess(getpid())
          _ = try copyDescriptor(process.number, from: process)
        }, needed: true, "reading pipes and sockets", "use Linux 5.6 or newer"),
      feature(
        "finding pages (PAGEMAP_SCAN)",
        works { () throws(Errno) in
          let scan = try PageScan(ProcDirectory(getpid()))
          try scan.forEachOwnRun(in: AddressRange(0x1000, 0x2000)) { _, _ in }
        }, needed: true, "saving memory", "use Linux 6.7 or newer"),
      feature(
        "children in /proc", (try? fileStatus("/proc/self/task/\(getpid())/children")) != nil, needed: true,
        "finding the processes of a job", "use a kernel with CONFIG_PROC_CHILDREN"),
      feature(
        "mapped files in /proc (map_files)", (try? fileStatus("/proc/self/map_files")) != nil, needed: false,
        "knowing how mapped files were opened", "run torpor as root"),
      feature(
        "cgroup freezer", freezer() != nil, needed: false, freezer() ?? "", "a job is then stopped thread by thread"),
      feature(
        "time namespaces", (try? readLink("/proc/self/ns/time")) != nil, needed: false,
        "clocks that never go back", "clocks jump at a restore after a reboot"),
    ]
  }

  private static func feature(
    _ name: String, _ works: Bool, needed: Bool, _ purpose: String, _ remedy: String
  ) -> Feature {
    Feature(name: name, works: works, isNeeded: needed, purpose: purpose, remedy: remedy)
  }

  private static func works(_ trial: () throws(Errno) -> Void) -> Bool {
    do { try trial() } catch { return false }
    return true
  }

  private static func canBorrow(_ child: BlankProcess) -> Bool {
    // The child still stands inside of its execve; one program takes it out.
    var program = SyscallProgram()
    program.call(Int32(SYS_getpid))
    guard (try? child.thread.run(program, in: child.layout.mainSeat)) != nil, let proc = try? ProcDirectory(child.thread.tid), let memory = try? proc.open("mem", O_RDWR),
      let areas = try? readMemoryMap(of: proc, withFlags: false),
      let vdso = areas.first(where: { $0.name == "[vdso]" }),
      let workspace = try? BorrowedWorkspace(
        thread: child.thread, memory: memory, vdso: vdso.range, seats: 1, seatSize: 4096)
    else { return false }
    return (try? workspace.remove()) != nil
  }

  /// A PID that is surely free: one that a child had a moment ago.
  private static func canChoosePID() -> Bool {
    guard let first = try? BlankProcess.start(pid: nil, base: 0x10_0000) else { return false }
    let pid = first.thread.tid
    end(first)
    guard let second = try? BlankProcess.start(pid: pid, base: 0x10_0000) else { return false }
    end(second)
    return true
  }

  private static func end(_ process: BlankProcess) {
    kill(process.thread.tid, SIGKILL)
    process.thread.forget()
    waitpid(process.thread.tid, nil, __WALL)
  }

  private static func freezer() -> String? {
    guard let mounts = try? readWholeFile("/proc/self/mountinfo") else { return nil }
    for line in mounts.split(separator: 0x0a) {
      let fields = line.split(separator: 0x20).map { String(decoding: $0, as: UTF8.self) }
      guard let dash = fields.firstIndex(of: "-"), dash + 1 < fields.count, fields.count > 4 else { continue }
      if fields[dash + 1] == "cgroup2" { return "version 2 at \(fields[4])" }
      if fields[dash + 1] == "cgroup", fields.last?.split(separator: ",").contains("freezer") == true {
        return "version 1 at \(fields[4])"
      }
    }
    return nil
  }
}

import CLinux
import Linux
import SystemPackage
import Tracing

/// Tries out what Torpor needs of the kernel and of the user's rights.
///
/// Each is really tried, on this process or on a child that lives no longer than the trial.
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

  public static func all() -> [Feature] {
    let child = try? BlankProcess.start(pid: nil, base: 0x10_0000)
    defer { if let child { end(child) } }
    return stopping(child) + looking(child) + restoring() + ifThere()
  }

  // MARK: To save

  private static func stopping(_ child: BlankProcess?) -> [Feature] {
    [
      feature(
        "tracing a child", child != nil, "every call that is made inside of a process",
        "allow ptrace(2) and executable memfds: kernel.yama.ptrace_scope below 3, vm.memfd_noexec below 2, no seccomp filter"
      ),
      feature(
        "tracing others", canTraceOthers(), "stopping a job that torpor has not started",
        "set kernel.yama.ptrace_scope to 0, run torpor as root, or give it CAP_SYS_PTRACE"),
      feature(
        "restartable sequences", succeeds(child) { child throws(Errno) in _ = try child.restartableSequence() },
        "threads that are stopped inside of one", "use Linux 5.13 or newer"),
      feature(
        "spare bytes in the vDSO", child.map(canBorrow) ?? false, "asking a process about itself",
        "boot without vdso=0"),
      feature(
        "children in /proc", (try? fileStatus("/proc/self/task/\(getpid())/children")) != nil,
        "finding the processes of a job", "use a kernel with CONFIG_PROC_CHILDREN"),
    ]
  }

  private static func looking(_ child: BlankProcess?) -> [Feature] {
    [
      feature(
        "process_vm_readv", child.map(canReadMemory) ?? false, "reading the memory of a job",
        "use a kernel with CONFIG_CROSS_MEMORY_ATTACH"),
      feature(
        "PAGEMAP_SCAN",
        succeeds { () throws(Errno) in
          try PageScan(ProcDirectory(getpid())).forEachOwnRun(in: AddressRange(0x1000, 0x2000)) { _, _ in }
        }, "finding the pages that have content", "use Linux 6.7 or newer"),
      feature(
        "kcmp", succeeds { () throws(Errno) in _ = try compareFiles(getpid(), 0, getpid(), 0) },
        "telling a shared file from one opened twice", "use a kernel with CONFIG_KCMP"),
      feature(
        "pidfd_getfd",
        succeeds { () throws(Errno) in
          let process = try openProcess(getpid())
          _ = try copyDescriptor(process.number, from: process)
        }, "reading pipes, sockets and terminals", "use Linux 5.6 or newer"),
    ]
  }

  // MARK: To restore

  private static func restoring() -> [Feature] {
    [
      feature(
        "choosing process IDs", canChoosePID(), "restoring under the old ones",
        "run torpor as root, or give it CAP_CHECKPOINT_RESTORE"),
      feature(
        "PR_SET_MM_MAP",
        succeeds { () throws(Errno) in
          var size: UInt32 = 0
          try withUnsafeMutablePointer(to: &size) { size throws(Errno) in
            _ = try systemCall(
              Int32(SYS_prctl), 35 /* PR_SET_MM */, 15 /* PR_SET_MM_MAP_SIZE */, Int(bitPattern: size))
          }
        }, "restoring heap, arguments and environment", "use a kernel with CONFIG_CHECKPOINT_RESTORE"),
    ]
  }

  // MARK: Good to have

  private static func ifThere() -> [Feature] {
    let freezer = FreezableGroup.mounts().first
    return [
      optional(
        "timers with chosen IDs", PosixTimerRoom.canChooseIDs, "restoring timers of timer_create(2)",
        "use Linux 6.15 or newer"),
      optional(
        "map_files", canReadMappedFile(), "finding mapped files that others hide or have removed",
        "run torpor as root, or give it CAP_CHECKPOINT_RESTORE"),
      optional(
        "cgroup freezer", freezer != nil,
        "stopping a job at once that has a cgroup of its own" + (freezer.map { " (\($0))" } ?? ""), "mount one"),
      optional(
        "other users' jobs", has(capabilities: [6, 7]) /* CAP_SETGID, CAP_SETUID */, "restoring them as they were",
        "run torpor as root, or restore jobs of your own only"),
      optional(
        "raising limits", has(capabilities: [24]) /* CAP_SYS_RESOURCE */,
        "giving a job hard limits above those that torpor has",
        "raise those of torpor, or give it CAP_SYS_RESOURCE"),
      optional(
        "time namespaces", (try? readLink("/proc/self/ns/time")) != nil,
        "clocks that go on after a reboot, in a later version",
        "use a kernel with CONFIG_TIME_NS"),
      optional(
        "tracking of writes", canTrackWrites(), "images of what has changed, in a later version",
        "use Linux 6.7 or newer"),
    ]
  }

  private static func feature(_ name: String, _ works: Bool, _ purpose: String, _ remedy: String) -> Feature {
    Feature(name: name, works: works, isNeeded: true, purpose: purpose, remedy: remedy)
  }

  private static func optional(_ name: String, _ works: Bool, _ purpose: String, _ remedy: String) -> Feature {
    Feature(name: name, works: works, isNeeded: false, purpose: purpose, remedy: remedy)
  }
}

// MARK: - The trials

extension Probes {
  private static func succeeds(_ trial: () throws(Errno) -> Void) -> Bool {
    do { try trial() } catch { return false }
    return true
  }

  private static func succeeds(_ child: BlankProcess?, _ trial: (borrowing Tracee) throws(Errno) -> Void) -> Bool {
    guard let child else { return false }
    return succeeds { () throws(Errno) in try child.thread.with(trial) }
  }

  /// Yama lets only parents trace, or only those with a capability, or nobody.
  private static func canTraceOthers() -> Bool {
    guard let text = try? readWholeFile("/proc/sys/kernel/yama/ptrace_scope"), let digit = text.first else {
      return true
    }
    return digit == UInt8(ascii: "0") || digit < UInt8(ascii: "3") && has(capabilities: [19]) /* CAP_SYS_PTRACE */
  }

  private static func has(capabilities: [UInt64]) -> Bool {
    guard let proc = try? ProcDirectory(getpid()), let status = try? TaskStatus(of: proc) else { return false }
    return capabilities.allSatisfy { status.effectiveCapabilities >> $0 & 1 == 1 }
  }

  private static func canBorrow(_ child: BlankProcess) -> Bool {
    // The child still stands inside of its execve; one program takes it out.
    var program = SyscallProgram()
    program.call(Int32(SYS_getpid))
    guard (try? child.thread.run(program, in: child.layout.mainSeat)) != nil,
      let proc = try? ProcDirectory(child.thread.tid), let memory = try? proc.open("mem", O_RDWR),
      let areas = try? readMemoryMap(of: proc, withFlags: false),
      let vdso = areas.first(where: { $0.name == "[vdso]" }),
      let workspace = try? BorrowedWorkspace(
        thread: child.thread, memory: memory, vdso: vdso.range, seats: 1, seatSize: 4096)
    else { return false }
    return (try? workspace.remove()) != nil
  }

  private static func canReadMemory(_ child: BlankProcess) -> Bool {
    var bytes = [UInt8](repeating: 0, count: 16)
    return succeeds { () throws(Errno) in
      try bytes.withMutableBytes { bytes throws(Errno) in
        try readMemory(of: child.thread.tid, at: child.layout.interpreter, into: bytes)
      }
    }
  }

  private static func canReadMappedFile() -> Bool {
    guard let proc = try? ProcDirectory(getpid()), let areas = try? readMemoryMap(of: proc, withFlags: false),
      let area = areas.first(where: { $0.name.hasPrefix("/") })
    else { return false }
    let name = String(area.range.start, radix: 16) + "-" + String(area.range.end, radix: 16)
    return (try? readLink("/proc/self/map_files/\(name)")) != nil
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

  /// userfaultfd(2) with write protection that needs no answers. (UFFD_FEATURE_WP_ASYNC)
  private static func canTrackWrites() -> Bool {
    guard let number = try? systemCall(Int32(SYS_userfaultfd), Int(O_CLOEXEC) | 1 /* UFFD_USER_MODE_ONLY */) else {
      return false
    }
    let descriptor = Descriptor(owning: Int32(number))
    // struct uffdio_api: version, features, what is possible.
    var api: [UInt64] = [0xaa, 1 << 15, 0]
    return succeeds { () throws(Errno) in
      try api.withMutableBytes { bytes throws(Errno) in
        _ = try systemCall(
          Int32(SYS_ioctl), Int(descriptor.number), 0xc018_aa3f /* UFFDIO_API */, Int(bitPattern: bytes.baseAddress))
      }
    }
  }
}

import CLinux
import FoundationEssentials
import Images
import Linux
import SystemPackage
import Tracing

/// What belongs to processes and threads and has no place in CRIU's files.
enum ExtrasRoom {
  /// MMF_DUMP_FILTER_DEFAULT of linux/mm_types.h: what every process starts with.
  private static let usualCoreDump: UInt32 = 0x33
  /// PR_MCE_KILL_DEFAULT.
  private static let usualMachineCheck: Int64 = 2
  /// PR_TSC_SIGSEGV.
  private static let counterFaults: Int32 = 2

  // MARK: Save

  static func save(
    _ process: JobProcess, _ memory: MmEntry, _ answers: ProcessAnswers, _ interview: Interview
  ) throws(Failure) -> TaskExtras {
    var extras = TaskExtras()
    if memory.mmSavedAuxv.count > MemoryRoom.longestAuxiliaryVector { extras.auxv = memory.mmSavedAuxv }
    if let filter = number(process, "coredump_filter"), filter != usualCoreDump { extras.coredumpFilter = filter }
    extras.personality = number(process, "personality") ?? 0
    extras.memoryMerge = answers.memoryMerge
    extras.mdwe = answers.mdwe
    let allCPUs = try CPUSet.ofMachine()
    for thread in process.threads where !thread.isDead {
      let entry = try save(thread, process, interview.threads[thread.tid] ?? ThreadAnswers(), allCPUs)
      if entry != ThreadExtras() { extras.threads.append(.with { ($0, $0.tid) = (entry, UInt32(thread.tid)) }) }
    }
    return extras
  }

  private static func save(
    _ thread: JobThread, _ process: JobProcess, _ answers: ThreadAnswers, _ allCPUs: [UInt8]
  ) throws(Failure) -> ThreadExtras {
    var entry = ThreadExtras()
    if RegistersRoom.hasOtherComponents(thread.extendedState) { entry.xsave = Data(thread.extendedState) }
    if answers.timerSlack != 0, answers.timerSlack != ThreadRoom.usualTimerSlack { entry.timerSlackNs = answers.timerSlack }
    if answers.machineCheck >= 0, answers.machineCheck != usualMachineCheck {
      entry.machineCheck = UInt32(truncatingIfNeeded: answers.machineCheck)
    }
    entry.tscFaults = answers.timeStampCounter == counterFaults
    try attempt("Cannot read the settings of thread \(thread.tid) of \(process.label)") { () throws(Errno) in
      let cpus = try CPUSet.of(thread.tid)
      if cpus != allCPUs { entry.cpus = Data(cpus) }
      // IOPRIO_WHO_PROCESS
      entry.ioPriority = UInt32(truncatingIfNeeded: try systemCall(Int32(SYS_ioprio_get), 1, Int(thread.tid)))
    }
    return entry
  }

  private static func number(_ process: JobProcess, _ file: String) -> UInt32? {
    guard let text = try? process.proc.read(file) else { return nil }
    return text.withUnsafeBytes { bytes in
      var scanner = TextScanner(bytes)
      return scanner.hexadecimal().map { UInt32(truncatingIfNeeded: $0) }
    }
  }

  // MARK: Restore

  /// The calls by which a thread gets its settings back. CPUs that this machine does not have are passed over.
  static func restore(_ entry: ThreadExtras, into program: inout SyscallProgram) {
    if !entry.cpus.isEmpty {
      let mask = SyscallProgram.Argument.data(program.store(bytes: [UInt8](entry.cpus)))
      program.call(Int32(SYS_sched_setaffinity), 0, .init(entry.cpus.count), mask, tolerant: true)
    }
    if entry.ioPriority != 0 { program.call(Int32(SYS_ioprio_set), 1, 0, .init(entry.ioPriority), tolerant: true) }
    if entry.hasMachineCheck {
      program.call(Int32(SYS_prctl), 33 /* PR_MCE_KILL */, 1 /* SET */, .init(entry.machineCheck), 0, 0, tolerant: true)
    }
    if entry.tscFaults { program.call(Int32(SYS_prctl), 26 /* PR_SET_TSC */, .init(counterFaults)) }
  }

  /// The calls that come when nothing of ours needs memory any more.
  static func restoreLast(_ entry: TaskExtras, into program: inout SyscallProgram) {
    if entry.personality != 0 { program.call(Int32(SYS_personality), .init(entry.personality)) }
    if entry.memoryMerge { program.call(Int32(SYS_prctl), 67 /* PR_SET_MEMORY_MERGE */, 1, 0, 0, 0, tolerant: true) }
    if entry.mdwe != 0 { program.call(Int32(SYS_prctl), 65 /* PR_SET_MDWE */, .init(entry.mdwe), 0, 0, 0) }
  }

  /// What is set from outside.
  static func restoreFromOutside(_ entry: TaskExtras, _ pid: ProcessID) throws(Errno) {
    guard entry.hasCoredumpFilter else { return }
    let file = try ProcDirectory(pid).open("coredump_filter", O_WRONLY)
    try [UInt8]("0x\(String(entry.coredumpFilter, radix: 16))".utf8).withBytes { bytes throws(Errno) in try file.write(bytes) }
  }
}

/// Sets of CPUs, a bit for each.
private enum CPUSet {
  /// sched_getaffinity(2), without the empty bytes at its end.
  static func of(_ tid: ProcessID) throws(Errno) -> [UInt8] {
    var mask = [UInt8](repeating: 0, count: 1024)
    let count = try mask.withMutableBytes { bytes throws(Errno) in
      try systemCall(Int32(SYS_sched_getaffinity), Int(tid), bytes.count, Int(bitPattern: bytes.baseAddress))
    }
    return trimmed(mask.prefix(count))
  }

  /// All that are there: what a thread is given that has never asked for less.
  static func ofMachine() throws(Failure) -> [UInt8] {
    let text = try attempt("Cannot find out which CPUs there are") { () throws(Errno) in
      try readWholeFile("/sys/devices/system/cpu/online")
    }
    var mask: [UInt8] = []
    // 0-3,8-11
    for part in String(decoding: text, as: UTF8.self).split(whereSeparator: { $0 == "," || $0 == "\n" }) {
      let ends = part.split(separator: "-").compactMap { Int($0) }
      guard let first = ends.first, let last = ends.last, first <= last, last < 8192 else { continue }
      for cpu in first...last {
        while mask.count <= cpu / 8 { mask.append(0) }
        mask[cpu / 8] |= 1 << UInt8(cpu % 8)
      }
    }
    return trimmed(mask[...])
  }

  private static func trimmed(_ mask: ArraySlice<UInt8>) -> [UInt8] {
    guard let last = mask.lastIndex(where: { $0 != 0 }) else { return [] }
    return Array(mask[...last])
  }
}

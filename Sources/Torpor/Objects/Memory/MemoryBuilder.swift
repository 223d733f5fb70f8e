import CLinux
import Images
import Linux
import SystemPackage
import Tracing

/// Builds address spaces: areas at their old addresses, filled by the processes' own reads from the image.
extension MemoryRoom {
  /// Builds the memory of every process of the job, several at a time.
  static func build(_ restoring: Restoring) throws(Failure) {
    let living = restoring.processes.filter { !$0.isZombie }
    let verifier = PageVerifier(restoring)
    var scripts: [(process: RestoredProcess, script: Script)] = []
    for process in living {
      guard let memory = process.memory, let pages = process.pages else { continue }
      var hand = try MappingHand(process, memory, pages, restoring)
      try hand.deal(to: process, restoring)
      var script = Script()
      AreaScript.map(memory, pages, hand, into: &script)
      AreaScript.fill(pages, file: hand.pagesFile, vdso: memory.vmas.first { $0.kind.contains(.vdso) }?.range, into: &script)
      AreaScript.finish(memory, hand, parked: restoring.parkedVDSO, into: &script)
      scripts.append((process, script))
    }
    try runTogether(scripts, restoring)
    try verifier.wait()
  }

  /// Runs scripts side by side, one program of each at a time.
  private static func runTogether(
    _ scripts: [(process: RestoredProcess, script: Script)], _ restoring: Restoring
  ) throws(Failure) {
    let rounds = scripts.map(\.script.programs.count).max() ?? 0
    for round in 0..<rounds {
      for (process, script) in scripts where round < script.programs.count {
        let program = script.programs[round]
        guard !program.isEmpty, let leader = process.leader else { continue }
        try attempt("Cannot restore \(process.label)") { () throws(Errno) in
          try leader.start(program, in: restoring.layout.mainSeat)
        }
      }
      for (process, script) in scripts where round < script.programs.count {
        let program = script.programs[round]
        guard !program.isEmpty, let leader = process.leader else { continue }
        let results: Results
        do throws(Failure) { results = try leader.finish() } catch {
          throw Failure(error.kind, "Cannot restore the memory of \(process.label)", why: error.why, advice: error.advice)
        }
        try checkReads(program, results, process)
      }
    }
  }

  /// Every read must have given all that was asked for.
  private static func checkReads(_ program: SyscallProgram, _ results: Results, _ process: RestoredProcess) throws(Failure) {
    for index in 0..<program.count {
      guard let expected = program.expectation(of: index), results[index] != expected else { continue }
      throw Failure(
        .badImage, "Cannot restore the memory of \(process.label)",
        why: "its pages file gave \(results[index]) bytes where \(expected) were expected", advice: "use another image")
    }
  }
}

/// The descriptors that a process needs while it maps its memory, and the numbers they arrive under.
private struct MappingHand {
  private(set) var pagesFile: Int32 = 0
  private(set) var executable: Int32 = 0
  private struct Key: Hashable {
    var id: UInt32
    var writable: Bool
  }
  private var numbers: [Key: Int32] = [:]
  private var order: [Key] = []
  private let pagesName: String

  init(_ process: RestoredProcess, _ memory: MmEntry, _ pages: PageMap, _ restoring: Restoring) throws(Failure) {
    pagesName = ImageKind.pagesFileName(pages.pagesID)
    for vma in memory.vmas where vma.isFile && !vma.isOfKernel { add(Self.key(vma)) }
    let executableKey = Key(id: memory.exeFileID, writable: false)
    add(executableKey)
    executable = numbers[executableKey] ?? 0
  }

  private mutating func add(_ key: Key) {
    guard numbers[key] == nil else { return }
    // Number 0 is the pages file.
    numbers[key] = Int32(order.count + 1)
    order.append(key)
  }

  private static func key(_ vma: VmaEntry) -> Key {
    let access = Int32(bitPattern: vma.fdflags) & O_ACCMODE
    let shared = vma.kind.contains(.fileShared)
    return Key(
      id: UInt32(truncatingIfNeeded: vma.shmid),
      writable: shared && (access == O_RDWR || vma.prot & UInt32(PROT_WRITE) != 0))
  }

  func number(of vma: VmaEntry) -> Int32 { numbers[Self.key(vma)] ?? 0 }

  /// How many descriptors there are in all.
  var count: Int { order.count + 1 }

  mutating func deal(to process: RestoredProcess, _ restoring: Restoring) throws(Failure) {
    let pages = try attempt("Cannot read \(restoring.image.path)/\(pagesName)") { () throws(Errno) in
      try restoring.image.openFile(pagesName)
    }
    var opened: [Int32] = []
    defer { for number in opened { close(number) } }
    for key in order {
      opened.append(try restoring.files.openForMapping(key.id, writable: key.writable).release())
    }
    var script = Script()
    try restoring.dealer.deal([pages.number] + opened, &script)
    try process.run(script, in: restoring.layout)
  }
}

/// The calls that make an address space.
private enum AreaScript {
  /// Small areas are mapped writable at first even if nothing goes into them, so that neighbours can be made with one
  /// call; larger ones would count against the limit of committed memory.
  private static let smallArea: UInt64 = 1 << 20

  /// Areas side by side that one mmap(2) can make.
  private struct Group {
    var range: AddressRange
    var protection: Int32
    var flags: Int32
    var descriptor: Int32
    var offset: UInt64

    func takes(_ other: Group) -> Bool {
      range.end == other.range.start && protection == other.protection && flags == other.flags
        && descriptor == other.descriptor && flags & Int32(MAP_GROWSDOWN) == 0
        && (descriptor < 0 || offset + range.count == other.offset)
    }
  }

  static func map(_ memory: MmEntry, _ pages: PageMap, _ hand: MappingHand, into script: inout Script) {
    var group: Group?
    var run = 0
    func close(_ group: Group?) {
      guard let group else { return }
      script.call(
        Int32(SYS_mmap), .init(group.range.start), .init(group.range.count), .init(group.protection),
        .init(group.flags | Int32(MAP_FIXED)), .init(Int64(group.descriptor)), .init(group.offset))
    }
    for vma in memory.vmas where !vma.isOfKernel {
      while run < pages.runs.count, pages.runs[run].end <= vma.start { run += 1 }
      let hasPages = run < pages.runs.count && pages.runs[run].start < vma.end
      let next = Group(
        range: vma.range, protection: firstProtection(vma, hasPages: hasPages), flags: flags(vma),
        descriptor: vma.isFile ? hand.number(of: vma) : -1, offset: vma.isFile ? vma.pgoff : 0)
      if let open = group, open.takes(next) {
        group?.range.end = next.range.end
      } else {
        close(group)
        group = next
      }
    }
    close(group)
  }

  private static func flags(_ vma: VmaEntry) -> Int32 {
    let kept = Int32(MAP_GROWSDOWN | MAP_NORESERVE)
    var flags = Int32(bitPattern: vma.flags) & kept
    flags |= vma.kind.contains(.fileShared) ? MAP_SHARED : MAP_PRIVATE
    if !vma.isFile { flags |= Int32(MAP_ANONYMOUS) }
    return flags
  }

  private static func firstProtection(_ vma: VmaEntry, hasPages: Bool) -> Int32 {
    let final = Int32(vma.prot)
    guard vma.isPrivateMemory else { return final }
    return hasPages || vma.count <= smallArea || final & PROT_WRITE != 0 ? PROT_READ | PROT_WRITE : final
  }

  /// Reads of all pages, each into many places at once. preadv(2)
  static func fill(_ pages: PageMap, file: Int32, vdso: AddressRange?, into script: inout Script) {
    let longest = 1024
    let largest: UInt64 = 1 << 30
    var offset: UInt64 = 0
    var pieces: [AddressRange] = []
    var count: UInt64 = 0
    func flush() {
      guard count > 0 else { return }
      let (vector, start, total) = (pieces, offset, count)
      script.add(upTo: 64 + 16 + vector.count * 16) { program in
        let words = vector.flatMap { [$0.start, $0.count] }
        let address = program.store(bytes: words.withUnsafeBytes { [UInt8]($0) })
        let index = program.call(
          Int32(SYS_preadv), .init(file), .data(address), .init(vector.count), .init(start))
        program.expect(Int64(total), of: index)
      }
      offset += count
      pieces = []
      count = 0
    }
    for run in pages.runs {
      if let vdso, run.overlaps(vdso) {
        // The kernel's own is used; its pages are in the image for readers that look at its symbols. A run may hold
        // more than the vDSO in an image of CRIU's.
        flush()
        for part in [AddressRange(run.start, min(max(run.start, vdso.start), run.end)),
          AddressRange(max(run.start, vdso.start), min(run.end, vdso.end)),
          AddressRange(max(vdso.end, run.start), max(run.end, vdso.end))] where part.start < part.end
        {
          if part.overlaps(vdso) { offset += part.count } else {
            pieces.append(part)
            count += part.count
            flush()
          }
        }
        continue
      }
      var start = run.start
      while start < run.end {
        let piece = AddressRange(start, min(run.end, start + (largest - count)))
        pieces.append(piece)
        count += piece.count
        start = piece.end
        if pieces.count == longest || count == largest { flush() }
      }
    }
    flush()
  }

  /// Final protections and advice, the vDSO's place, what the kernel keeps of an address space as a whole.
  static func finish(_ memory: MmEntry, _ hand: MappingHand, parked: [ParkedArea], into script: inout Script) {
    protect(memory, into: &script)
    for vma in memory.vmas where !vma.isOfKernel {
      if vma.flags & UInt32(MAP_LOCKED) != 0 {
        script.call(Int32(SYS_mlock), .init(vma.start), .init(vma.count))
      }
      guard vma.madv != 0 else { continue }
      for advice in Advice.numbers(vma.madv) {
        script.call(Int32(SYS_madvise), .init(vma.start), .init(vma.count), .init(advice))
      }
    }
    VDSO.unpark(parked, memory.vmas, into: &script)
    describe(memory, executable: hand.executable, into: &script)
    if memory.thpDisabled { script.call(Int32(SYS_prctl), 41 /* PR_SET_THP_DISABLE */, 1, 0, 0, 0) }
    script.call(Int32(SYS_close_range), 0, .init(hand.count - 1), 0)
  }

  private static func protect(_ memory: MmEntry, into script: inout Script) {
    var pending: (range: AddressRange, protection: Int32)?
    func flush() {
      guard let (range, protection) = pending else { return }
      script.call(Int32(SYS_mprotect), .init(range.start), .init(range.count), .init(protection))
      pending = nil
    }
    for vma in memory.vmas where vma.isPrivateMemory {
      let final = Int32(vma.prot)
      guard final != PROT_READ | PROT_WRITE else {
        flush()
        continue
      }
      if let open = pending, open.range.end == vma.start, open.protection == final {
        pending?.range.end = vma.end
      } else {
        flush()
        pending = (vma.range, final)
      }
    }
    flush()
  }

  /// prctl(2) with PR_SET_MM_MAP: what /proc/PID/stat, cmdline, environ, auxv and exe show, and where brk goes on.
  private static func describe(_ memory: MmEntry, executable: Int32, into script: inout Script) {
    script.add(upTo: 512 + 64 * 8) { program in
      var map = clinux_prctl_mm_map()
      (map.start_code, map.end_code) = (memory.mmStartCode, memory.mmEndCode)
      (map.start_data, map.end_data) = (memory.mmStartData, memory.mmEndData)
      (map.start_brk, map.brk, map.start_stack) = (memory.mmStartBrk, memory.mmBrk, memory.mmStartStack)
      (map.arg_start, map.arg_end) = (memory.mmArgStart, memory.mmArgEnd)
      (map.env_start, map.env_end) = (memory.mmEnvStart, memory.mmEnvEnd)
      map.auxv_size = UInt32(memory.mmSavedAuxv.count * 8)
      map.exe_fd = UInt32(bitPattern: executable)
      let vector = program.store(bytes: memory.mmSavedAuxv.withUnsafeBytes { [UInt8]($0) })
      let structure = program.store(bytes: withUnsafeBytes(of: map) { [UInt8]($0) })
      program.link(from: structure + 88, to: vector)
      program.call(
        Int32(SYS_prctl), 35 /* PR_SET_MM */, 14 /* PR_SET_MM_MAP */, .data(structure),
        .init(MemoryLayout<clinux_prctl_mm_map>.size), 0)
    }
  }
}

/// Checks the digests of the pages files while the processes read from them.
private final class PageVerifier {
  private let worker = Worker()

  init(_ restoring: Restoring) {
    let image = Reader(image: restoring.image)
    let progress = restoring.progress
    let total = restoring.image.manifest?.memoryBytes ?? 0
    worker.submit { () throws(Failure) in
      var done: UInt64 = 0
      try image.image.verify(where: { $0.hasPrefix("pages-") }) { count in
        done += UInt64(count)
        progress.update("memory", done, of: total)
      }
    }
  }

  /// - Throws: where a file is not what was written.
  func wait() throws(Failure) { try worker.wait() }

  /// The image reader only reads, each time from the start, through descriptors of its own.
  private struct Reader: @unchecked Sendable {
    let image: ImageReader
  }
}

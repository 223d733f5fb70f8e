import CLinux
import Images
import Linux
import SystemPackage
import Tracing

/// Builds address spaces: areas at their old addresses, filled by the processes' own reads from the image.
extension MemoryRoom {
  /// Builds the memory of every process of the job, several at a time.
  static func build(_ restoring: Restoring) throws(Failure) {
    let verifier = PageVerifier(restoring)
    let shared = restoring.files.sharedMemory
    try shared.makeAll()
    var cache = MappedFileCache(restoring)
    var scripts: [(process: RestoredProcess, script: Script)] = []
    for process in restoring.processes {
      guard let memory = process.memory, let space = process.space else { continue }
      let hand = MappingHand(memory, space)
      try hand.deal(to: process, &cache, restoring)
      let script = AreaScript.make(memory, space, hand, parked: restoring.parkedVDSO)
      // It goes to work while the next one is dealt its files.
      try start(script, 0, process, restoring)
      scripts.append((process, script))
    }
    let rounds = scripts.map(\.script.programs.count).max() ?? 0
    for round in 0..<rounds {
      for (process, script) in scripts { try finish(script, round, process) }
      for (process, script) in scripts { try start(script, round + 1, process, restoring) }
    }
    try shared.sealAll()
    try verifier.wait()
  }

  /// Starts program number `index` of `script`, if there is one.
  private static func start(
    _ script: Script, _ index: Int, _ process: RestoredProcess, _ restoring: Restoring
  ) throws(Failure) {
    guard index < script.programs.count, !script.programs[index].isEmpty, let leader = process.leader else { return }
    try attempt("Cannot restore \(process.label)") { () throws(Errno) in
      try leader.start(script.programs[index], in: restoring.layout.mainSeat)
    }
  }

  private static func finish(_ script: Script, _ index: Int, _ process: RestoredProcess) throws(Failure) {
    guard let leader = process.leader, leader.isRunning else { return }
    let results: Results
    do throws(Failure) { results = try leader.finish() } catch {
      throw Failure(error.kind, "Cannot restore the memory of \(process.label)", why: error.why, advice: error.advice)
    }
    try checkReads(script.programs[index], results, process)
  }

  /// Every read must have given all that was asked for.
  private static func checkReads(_ program: SyscallProgram, _ results: Results, _ process: RestoredProcess) throws(Failure) {
    for (index, expected) in program.allExpectations where results[index] != expected {
      throw Failure(
        .badImage, "Cannot restore the memory of \(process.label)",
        why: "its pages file gave \(results[index]) bytes where \(expected) were expected", advice: "use another image")
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

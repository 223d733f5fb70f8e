import Images
import Linux
import Logging
import SystemPackage
import Tracing

/// What the rooms share while a job is built from an image.
public final class Restoring {
  public let image: ImageReader
  public let log: Logger
  public let layout: BlankProcess.Layout
  /// Parents before their children; the first is the root.
  public let processes: [RestoredProcess]
  public let plan: BirthPlan
  public let files: RestoredFiles
  public let dealer: DescriptorDealer
  public let progress: Progress
  /// Where vDSO and vvar wait in every process; set once the root is born.
  public internal(set) var parkedVDSO: [ParkedArea] = []

  init(
    image: ImageReader, log: Logger, layout: BlankProcess.Layout, processes: [RestoredProcess], plan: BirthPlan,
    files: RestoredFiles, dealer: DescriptorDealer, progress: Progress
  ) {
    self.image = image
    self.log = log
    self.layout = layout
    self.processes = processes
    self.plan = plan
    self.files = files
    self.dealer = dealer
    self.progress = progress
  }
}

/// One process that is being built.
public final class RestoredProcess {
  public let entry: PstreeEntry
  /// The core of each thread, the leader's first, in the order of `entry.threads`.
  public let cores: [CoreEntry]
  public let ids: TaskKobjIdsEntry
  /// nil for a zombie.
  public let memory: MmEntry?
  public internal(set) weak var parent: RestoredProcess?
  public internal(set) var children: [RestoredProcess] = []
  /// What it has that its core has no room for, and what its threads have.
  var extras = TaskExtras()
  var threadExtras: [ProcessID: ThreadExtras] = [:]
  /// Its address space; set when the image has been checked.
  var space: AddressSpace?
  /// Its leader, once born.
  public internal(set) var leader: ControlledThread?
  /// Its other threads, once born.
  public internal(set) var otherThreads: [ControlledThread] = []

  init(entry: PstreeEntry, cores: [CoreEntry], ids: TaskKobjIdsEntry, memory: MmEntry?) {
    self.entry = entry
    self.cores = cores
    self.ids = ids
    self.memory = memory
  }

  /// One that stands in for a leader that has ended.
  convenience init(standIn pid: ProcessID, parent: ProcessID) {
    let entry = PstreeEntry.with {
      $0.pid = UInt32(bitPattern: pid)
      $0.ppid = UInt32(bitPattern: parent)
    }
    self.init(entry: entry, cores: [], ids: TaskKobjIdsEntry(), memory: nil)
  }

  public var pid: ProcessID { ProcessID(bitPattern: entry.pid) }
  public var name: String { cores.first?.tc.comm ?? "?" }
  public var label: String { "\(pid) (\(name))" }
  public var isZombie: Bool { memory == nil }
  /// Whether job control has stopped it.
  public var isStopped: Bool { !isZombie && cores[0].tc.taskState == TaskRoom.State.stopped }

  /// Runs every program of `script` in the process's leader, in order.
  ///
  /// - Returns: the results of each program.
  @discardableResult
  public func run(_ script: Script, in layout: BlankProcess.Layout) throws(Failure) -> [Results] {
    guard let leader else { throw Failure("Cannot restore \(label)", why: "it has not been born yet") }
    var results: [Results] = []
    for program in script.programs where !program.isEmpty {
      do throws(Failure) { results.append(try leader.run(program, in: layout.mainSeat)) } catch {
        throw Failure(error.kind, "Cannot restore \(label)", why: error.why, advice: error.advice)
      }
    }
    return results
  }
}

/// System calls for one process, cut into programs that fit its seat.
public struct Script {
  public private(set) var programs: [SyscallProgram] = [SyscallProgram()]
  private static let limit = BlankProcess.Layout.mainSeatSize - 4096

  public init() {}

  public var isEmpty: Bool { programs.allSatisfy(\.isEmpty) }

  /// Adds calls that belong together: `body` may store data and use it in its calls, which end up in one program.
  ///
  /// - Parameter size: what they will take at most, in bytes: 64 for a call, the rest for data.
  @discardableResult
  public mutating func add<Value>(upTo size: Int, _ body: (inout SyscallProgram) -> Value) -> Value {
    if programs[programs.count - 1].size + size > Self.limit { programs.append(SyscallProgram()) }
    return body(&programs[programs.count - 1])
  }

  /// Adds one call that needs no data.
  public mutating func call(
    _ number: Int32, _ a: SyscallProgram.Argument = 0, _ b: SyscallProgram.Argument = 0,
    _ c: SyscallProgram.Argument = 0, _ d: SyscallProgram.Argument = 0, _ e: SyscallProgram.Argument = 0,
    _ f: SyscallProgram.Argument = 0, tolerant: Bool = false
  ) {
    add(upTo: 64) { $0.call(number, a, b, c, d, e, f, tolerant: tolerant) }
  }
}

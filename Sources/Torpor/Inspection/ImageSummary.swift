import Images
import Linux

/// What `torpor show` tells of an image.
public struct ImageSummary: Encodable, Sendable {
  public struct Process: Encodable, Sendable {
    public var pid: UInt32
    /// 0 for the root.
    public var parent: UInt32
    public var processGroup: UInt32
    public var session: UInt32
    public var threads: Int
    /// Bytes of memory that the image holds of it.
    public var memoryBytes: UInt64
    public var mappings: Int
    public var descriptors: Int
    /// `alive`, `stopped` or `zombie`.
    public var state: String
    public var program: String
    /// How far below the root.
    public var depth: Int
  }

  public var path: String
  public var bytes: UInt64
  public var files: Int
  /// Whether every file was found to be what its checksum says; nil where nobody asked or there are no checksums.
  public var verified: Bool?
  /// What only images of Torpor's own tell.
  public var created: String?
  public var torpor: String?
  public var host: String?
  public var kernel: String?
  public var architecture: String?
  public var cpuFeatures: [String]?
  /// Each before its children, and these right after it.
  public var processes: [Process] = []

  /// Reads the image at `path`; with `verify`, checks every file's checksum too.
  public init(of path: String, verify: Bool, progress: Progress = Progress()) throws(Failure) {
    let image = try ImageReader(at: path)
    (bytes, files) = image.totalSize()
    if verify {
      let total = bytes
      var done: UInt64 = 0
      try image.verify(progress: { count in
        done += UInt64(count)
        progress.update("reading", done, of: total)
      })
      if image.manifest != nil { verified = true }
    }
    self.path = path
    if let manifest = image.manifest {
      (created, torpor, host) = (manifest.created, manifest.torpor, manifest.host)
      (kernel, architecture, cpuFeatures) = (manifest.kernel, manifest.architecture, manifest.cpuFeatures)
    }
    for (entry, depth) in Self.ordered(try image.readAll(.processTree, as: PstreeEntry.self)) {
      processes.append(try Self.describe(entry, depth: depth, image))
    }
  }

  /// The tree from the root down. What hangs on no root, as only a damaged image has it, comes last.
  private static func ordered(_ entries: [PstreeEntry]) -> [(PstreeEntry, depth: Int)] {
    let byPID = Dictionary(entries.enumerated().map { ($1.pid, $0) }, uniquingKeysWith: { first, _ in first })
    var children = [[Int]](repeating: [], count: entries.count)
    var waiting: [(index: Int, depth: Int)] = []
    for (index, entry) in entries.enumerated() {
      // An entry that comes before its parent would make a circle possible.
      if let parent = byPID[entry.ppid], parent < index { children[parent].append(index) } else { waiting.append((index, 0)) }
    }
    waiting.reverse()
    var result: [(PstreeEntry, depth: Int)] = []
    while let next = waiting.popLast() {
      result.append((entries[next.index], next.depth))
      for child in children[next.index].reversed() { waiting.append((child, next.depth + 1)) }
    }
    return result
  }

  private static func describe(_ entry: PstreeEntry, depth: Int, _ image: ImageReader) throws(Failure) -> Process {
    let core = try image.read(.core, UInt64(entry.pid), as: CoreEntry.self)
    var result = Process(
      pid: entry.pid, parent: entry.ppid, processGroup: entry.pgid, session: entry.sid, threads: 0, memoryBytes: 0,
      mappings: 0, descriptors: 0, state: "zombie", program: core.tc.comm, depth: depth)
    guard image.has(.memoryMap, UInt64(entry.pid)) else { return result }
    result.threads = entry.threads.count
    result.state = core.tc.taskState == TaskRoom.State.stopped ? "stopped" : "alive"
    result.mappings = try image.read(.memoryMap, UInt64(entry.pid), as: MmEntry.self).vmas.count
    let ids = image.has(.ids, UInt64(entry.pid)) ? try image.read(.ids, UInt64(entry.pid)) : core.ids
    result.descriptors = try image.readAll(.descriptors, UInt64(ids.filesID), as: FdinfoEntry.self).count
    var cursor = try image.open(.pagemap, UInt64(entry.pid))
    _ = try cursor.next(PagemapHead.self)
    while let run = try cursor.next(PagemapEntry.self) {
      let pages = run.hasNrPages ? run.nrPages : UInt64(run.compatNrPages)
      result.memoryBytes &+= pages &* pageSize
    }
    return result
  }
}

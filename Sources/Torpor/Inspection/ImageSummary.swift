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
  /// What only images of Torpor's own tell.
  public var created: String?
  public var torpor: String?
  public var host: String?
  public var kernel: String?
  public var architecture: String?
  public var cpuFeatures: [String]?
  /// Parents before their children.
  public var processes: [Process] = []

  /// Reads the image at `path`; with `verify`, checks every file's checksum too.
  public init(of path: String, verify: Bool) throws(Failure) {
    let image = try ImageReader(at: path)
    if verify { try image.verify() }
    self.path = path
    if let manifest = image.manifest {
      (created, torpor, host) = (manifest.created, manifest.torpor, manifest.host)
      (kernel, architecture, cpuFeatures) = (manifest.kernel, manifest.architecture, manifest.cpuFeatures)
    }
    bytes = try image.totalSize()
    var depths: [UInt32: Int] = [0: -1]
    for entry in try image.readAll(.processTree, as: PstreeEntry.self) {
      let depth = (depths[entry.ppid] ?? 0) + 1
      depths[entry.pid] = depth
      processes.append(try Self.describe(entry, depth: depth, image))
    }
  }

  private static func describe(_ entry: PstreeEntry, depth: Int, _ image: ImageReader) throws(Failure) -> Process {
    let core = try image.read(.core, UInt64(entry.pid), as: CoreEntry.self)
    var result = Process(
      pid: entry.pid, parent: entry.ppid, processGroup: entry.pgid, session: entry.sid, threads: entry.threads.count,
      memoryBytes: 0, mappings: 0, descriptors: 0, state: "zombie", program: core.tc.comm, depth: depth)
    guard image.has(.memoryMap, UInt64(entry.pid)) else { return result }
    result.state = core.tc.taskState == TaskRoom.State.stopped ? "stopped" : "alive"
    result.mappings = try image.read(.memoryMap, UInt64(entry.pid), as: MmEntry.self).vmas.count
    let ids = try image.read(.ids, UInt64(entry.pid), as: TaskKobjIdsEntry.self)
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

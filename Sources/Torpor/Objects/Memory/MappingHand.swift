import CLinux
import Images
import Linux
import SystemPackage
import Tracing

/// The descriptors that a process needs while it maps its memory, and the numbers they arrive under.
struct MappingHand {
  /// What lies under a mapping.
  enum Object: Hashable {
    case file(UInt32)
    /// Shared anonymous memory in an image of an older kind.
    case anonymous(UInt64)
  }

  struct Key: Hashable {
    var object: Object
    var writable: Bool

    init(_ object: Object, writable: Bool = false) { (self.object, self.writable) = (object, writable) }

    /// nil for private anonymous memory.
    init?(_ vma: borrowing VmaEntry) {
      let kind = vma.kind
      if kind.contains(.anonymousShared) {
        self.init(.anonymous(vma.shmid), writable: true)
      } else if vma.isFile {
        let access = Int32(bitPattern: vma.fdflags) & O_ACCMODE
        self.init(
          .file(UInt32(truncatingIfNeeded: vma.shmid)),
          writable: kind.contains(.fileShared) && (access == O_RDWR || vma.prot & UInt32(PROT_WRITE) != 0))
      } else {
        return nil
      }
    }
  }

  let pagesFile: Int32 = 0
  let executable: Int32
  private var numbers: [Key: Int32] = [:]
  private var order: [Key] = []
  private let pagesName: String

  init(_ memory: MmEntry, _ space: AddressSpace) {
    pagesName = ImageKind.pagesFileName(space.pages.pagesID)
    executable = 1
    add(Key(.file(memory.exeFileID)))
    for vma in space.areas where !vma.isOfKernel {
      if let key = Key(vma) { add(key) }
    }
  }

  private mutating func add(_ key: Key) {
    guard numbers[key] == nil else { return }
    order.append(key)
    // Number 0 is the pages file.
    numbers[key] = Int32(order.count)
  }

  /// The number under which the process has what lies under `vma`; -1 for private anonymous memory.
  func number(of vma: borrowing VmaEntry) -> Int32 { Key(vma).flatMap { numbers[$0] } ?? -1 }

  /// The highest number of them.
  var last: Int32 { Int32(order.count) }

  func deal(to process: RestoredProcess, _ cache: inout MappedFileCache, _ restoring: Restoring) throws(Failure) {
    let pages = try attempt("Cannot read \(restoring.image.path)/\(pagesName)") { () throws(Errno) in
      try restoring.image.openFile(pagesName)
    }
    var hand = [pages.number]
    for key in order { hand.append(try cache.open(key)) }
    var script = Script()
    try restoring.dealer.deal(hand, &script)
    try process.run(script, in: restoring.layout)
  }
}

/// The files that processes map, open in Torpor: most of a job's processes map the same ones.
struct MappedFileCache: ~Copyable {
  private let files: RestoredFiles
  private var open: [MappingHand.Key: Int32] = [:]

  init(_ restoring: Restoring) { files = restoring.files }

  deinit { for number in open.values { close(number) } }

  mutating func open(_ key: MappingHand.Key) throws(Failure) -> Int32 {
    if let number = open[key] { return number }
    let number =
      switch key.object {
      case .file(let id): try files.openForMapping(id, writable: key.writable).release()
      case .anonymous(let id): try files.sharedMemory.open(.anonymous(id), O_RDWR).release()
      }
    open[key] = number
    return number
  }
}

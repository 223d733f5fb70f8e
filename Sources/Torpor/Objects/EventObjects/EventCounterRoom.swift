import CLinux
import Images
import Linux
import SystemPackage

/// eventfd(2): a counter.
enum EventCounterRoom: FileRoom {
  static let type = FdTypes.eventfd

  static func recognises(_ facts: DescriptorFacts) -> Bool { facts.link == "anon_inode:[eventfd]" }

  static func save(_ facts: DescriptorFacts, id: UInt32, _ saving: Saving) throws(Failure) -> FileEntry? {
    let owner = try facts.owner()
    // EFD_SEMAPHORE lies among the bits of the access mode, which is always O_RDWR.
    let semaphore = facts.info.number("eventfd-semaphore") == 1 ? UInt32(EFD_SEMAPHORE) : 0
    return .with {
      $0.type = type
      $0.id = id
      $0.efd = .with {
        $0.id = id
        $0.flags = UInt32(bitPattern: facts.flags) | semaphore
        $0.fown = owner
        $0.counter = facts.info.number("eventfd-count", radix: 16) ?? 0
      }
    }
  }

  static func settings(_ entry: FileEntry) -> (flags: Int32, owner: FownEntry) {
    (Int32(bitPattern: entry.efd.flags), entry.efd.fown)
  }

  static func open(_ entry: FileEntry, _ files: RestoredFiles) throws(Failure) -> Descriptor {
    try attempt("\(files.what): an event counter") { () throws(Errno) in
      let flags = O_CLOEXEC | (Int32(bitPattern: entry.efd.flags) & EFD_SEMAPHORE)
      let counter = Descriptor(owning: Int32(try systemCall(Int32(SYS_eventfd2), 0, Int(flags))))
      guard entry.efd.counter > 0 else { return counter }
      try [entry.efd.counter].withBytes { bytes throws(Errno) in try counter.write(bytes) }
      return counter
    }
  }
}

/// EFD_SEMAPHORE of sys/eventfd.h.
private let EFD_SEMAPHORE: Int32 = 1

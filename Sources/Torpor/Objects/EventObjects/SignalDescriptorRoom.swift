import CLinux
import Images
import Linux
import SystemPackage

/// signalfd(2): signals that are read.
enum SignalDescriptorRoom: FileRoom {
  static let type = FdTypes.signalfd

  static func recognises(_ facts: DescriptorFacts) -> Bool { facts.link == "anon_inode:[signalfd]" }

  static func save(_ facts: DescriptorFacts, id: UInt32, _ saving: Saving) throws(Failure) -> FileEntry? {
    let owner = try facts.owner()
    return .with {
      $0.type = type
      $0.id = id
      $0.sgfd = .with {
        $0.id = id
        $0.flags = UInt32(bitPattern: facts.flags)
        $0.fown = owner
        $0.sigmask = facts.info.number("sigmask", radix: 16) ?? 0
      }
    }
  }

  static func settings(_ entry: FileEntry) -> (flags: Int32, owner: FownEntry) {
    (Int32(bitPattern: entry.sgfd.flags), entry.sgfd.fown)
  }

  static func open(_ entry: FileEntry, _ files: RestoredFiles) throws(Failure) -> Descriptor {
    try attempt("\(files.what): a signal descriptor") { () throws(Errno) in
      var mask = entry.sgfd.sigmask
      return Descriptor(
        owning: try withUnsafeMutableBytes(of: &mask) { bytes throws(Errno) in
          Int32(try systemCall(Int32(SYS_signalfd4), -1, Int(bitPattern: bytes.baseAddress), 8, Int(O_CLOEXEC)))
        })
    }
  }
}

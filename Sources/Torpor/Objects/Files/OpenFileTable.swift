import CLinux
import Linux
import SystemPackage

/// Finds out which descriptors, in all processes, are of one open file description.
///
/// Candidates are those with the same inode, flags, offset and mount. kcmp(2) puts open file descriptions into a total
/// order, so each group of candidates is kept sorted, and a search takes few comparisons.
struct OpenFileTable {
  private struct Key: Hashable {
    let device: UInt64
    let inode: UInt64
    let flags: Int32
    let position: Int64
    let mount: Int32

    init(_ facts: DescriptorFacts) {
      device = UInt64(facts.status.st_dev)
      inode = UInt64(facts.status.st_ino)
      flags = facts.flags
      position = facts.info.position
      mount = facts.info.mountID
    }
  }

  private struct Member {
    let process: ProcessID
    let number: Int32
    let id: UInt32
  }

  private var groups: [Key: [Member]] = [:]

  /// The ID of the description that `facts` are about.
  ///
  /// - Parameter newID: gives the ID of one that is met for the first time.
  mutating func id(of facts: DescriptorFacts, newID: () -> UInt32) throws(Failure) -> (id: UInt32, isNew: Bool) {
    let key = Key(facts)
    var place = 0
    if let group = groups[key] {
      var range = 0..<group.count
      while !range.isEmpty {
        let middle = range.lowerBound + range.count / 2
        switch try order(facts, group[middle]) {
        case .same: return (group[middle].id, false)
        case .before: range = range.lowerBound..<middle
        case .after, .different: range = (middle + 1)..<range.upperBound
        }
      }
      place = range.lowerBound
    }
    let id = newID()
    groups[key, default: []].insert(
      Member(process: facts.process.witness, number: facts.number, id: id), at: place)
    return (id, true)
  }

  private func order(_ facts: DescriptorFacts, _ member: Member) throws(Failure) -> KernelOrder {
    try attempt("Cannot compare \(facts.label) of \(facts.process.label)") { () throws(Errno) in
      try compareFiles(facts.process.witness, facts.number, member.process, member.number)
    }
  }
}

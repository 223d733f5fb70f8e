import CLinux
import Linux
import Logging
import SystemPackage
import Tracing

/// The cgroup of a job that has one to itself, frozen while its threads are being seized, so that nothing is born or ends
/// meanwhile.
///
/// A keeper, a process of its own, stands by: should Torpor die, it puts the group back, and sees to it that no call in it
/// returns the EINTR that freezing causes.
public final class Cage {
  let group: FreezableGroup
  /// Whether it was frozen before we came, and shall be afterwards.
  private let wasFrozen: Bool
  private let toggle: Descriptor
  private var keeper: CageKeeper?
  private var isClosed = true

  /// How long a group may take to come to a standstill. One that takes longer has a thread in an uninterruptible sleep,
  /// which the seizing of each thread finds and names.
  private static let patience: Double = 2

  /// Freezes the group of `root`; nil where it has none, shares it, or may not freeze it.
  static func close(around root: ProcessID, _ log: Logger) -> Cage? {
    guard let proc = try? ProcDirectory(root), let group = FreezableGroup(of: proc), owns(root, group) else { return nil }
    do throws(Failure) {
      let cage = try Cage(group)
      guard try cage.close() else {
        log.debug("the cgroup \(group.path) does not come to a standstill")
        return nil
      }
      log.debug("froze the cgroup \(group.path)")
      return cage
    } catch {
      log.debug("the cgroup \(group.path) is not used: \(error)")
      return nil
    }
  }

  /// Whether every process of the group is `root` or one of its descendants.
  private static func owns(_ root: ProcessID, _ group: FreezableGroup) -> Bool {
    guard let members = try? group.processes(), members.contains(root) else { return false }
    var known: Set<ProcessID> = [root]
    return members.allSatisfy { member in
      var line: [ProcessID] = []
      var current = member
      while !known.contains(current) {
        guard current > 1, let proc = try? ProcDirectory(current), let statistics = try? TaskStatistics(of: proc) else {
          // It has ended meanwhile.
          return kill(member, 0) != 0
        }
        line.append(current)
        current = statistics.parent
      }
      known.formUnion(line)
      return true
    }
  }

  private init(_ group: FreezableGroup) throws(Failure) {
    self.group = group
    let what = "Cannot freeze the cgroup \(group.path)"
    toggle = try attempt(what) { () throws(Errno) in try group.openSwitch() }
    wasFrozen = try attempt(what) { () throws(Errno) in try group.shallBeFrozen() }
    keeper = try CageKeeper(group, word: wasFrozen ? group.frozenWord : group.thawedWord, heals: !wasFrozen)
  }

  deinit { if isClosed != wasFrozen { try? write(wasFrozen ? group.frozenWord : group.thawedWord) } }

  private func close() throws(Failure) -> Bool {
    try write(group.frozenWord)
    FaultPoint.reach(.cageClosing)
    let deadline = Clock.monotonic() + Self.patience
    while true {
      if try attempt("Cannot freeze the cgroup \(group.path)", { () throws(Errno) in try group.isFrozen() }) { break }
      guard Clock.monotonic() < deadline else {
        try open()
        return false
      }
      usleep(100)
    }
    FaultPoint.reach(.cageClosed)
    return true
  }

  /// Thaws it. What is seized stays where it is.
  func open() throws(Failure) {
    try write(group.thawedWord)
    isClosed = false
  }

  /// Says that nothing in it shows an EINTR of ours any more.
  func dismissKeeper() { if !wasFrozen { keeper = nil } }

  /// Freezes it again, where it was frozen before: what is held then stands as soon as it is let go.
  func putBack() throws(Failure) {
    guard wasFrozen else { return }
    try write(group.frozenWord)
    isClosed = true
    keeper = nil
  }

  private func write(_ word: String) throws(Failure) {
    try attempt("Cannot freeze or thaw the cgroup \(group.path)") { () throws(Errno) in
      try [UInt8](word.utf8).withBytes { bytes throws(Errno) in try toggle.write(bytes) }
    }
  }
}

import CLinux
import Images
import Linux
import SystemPackage
import Tracing

/// User and group IDs, capabilities and what goes with them; every thread has its own. credentials(7), capabilities(7)
enum CredentialsRoom {
  // MARK: Save

  static func save(_ status: TaskStatus, secureBits: UInt32) -> CredsEntry {
    func words(_ set: UInt64) -> [UInt32] { [UInt32(truncatingIfNeeded: set), UInt32(truncatingIfNeeded: set >> 32)] }
    func id(_ ids: [UInt32], _ index: Int) -> UInt32 { index < ids.count ? ids[index] : 0 }
    return .with {
      ($0.uid, $0.euid, $0.suid, $0.fsuid) =
        (id(status.uids, 0), id(status.uids, 1), id(status.uids, 2), id(status.uids, 3))
      ($0.gid, $0.egid, $0.sgid, $0.fsgid) =
        (id(status.gids, 0), id(status.gids, 1), id(status.gids, 2), id(status.gids, 3))
      $0.groups = status.groups
      $0.capInh = words(status.inheritableCapabilities)
      $0.capPrm = words(status.permittedCapabilities)
      $0.capEff = words(status.effectiveCapabilities)
      $0.capBnd = words(status.boundingCapabilities)
      $0.capAmb = words(status.ambientCapabilities)
      $0.secbits = secureBits
      if status.noNewPrivileges { $0.noNewPrivs = 1 }
    }
  }

  // MARK: Restore

  /// What the thread that runs this has: the processes it makes inherit that.
  static func own() throws(Failure) -> CredsEntry {
    try attempt("Cannot read /proc/self/status") { () throws(Errno) in
      let status = try TaskStatus(of: ProcDirectory(getpid()))
      return save(status, secureBits: UInt32(try systemCall(Int32(SYS_prctl), 27 /* PR_GET_SECUREBITS */)))
    }
  }

  /// Adds the calls that give a thread its credentials; none where it has them already.
  ///
  /// - Parameter own: what it has now.
  static func restore(_ entry: CredsEntry, own: CredsEntry, into program: inout SyscallProgram) {
    if entry != own {
      changeIDs(entry, own: own, &program)
      changeCapabilities(entry, own: own, &program)
    }
    if entry.noNewPrivs == 1 { program.call(Int32(SYS_prctl), 38 /* PR_SET_NO_NEW_PRIVS */, 1, 0, 0, 0) }
  }

  private static func changeIDs(_ entry: CredsEntry, own: CredsEntry, _ program: inout SyscallProgram) {
    if entry.groups != own.groups {
      let list = program.store(bytes: entry.groups.withUnsafeBytes { [UInt8]($0) })
      program.call(Int32(SYS_setgroups), .init(entry.groups.count), .data(list))
    }
    func ids(_ entry: CredsEntry) -> [UInt32] {
      [
        entry.uid, entry.euid, entry.suid, entry.fsuid, entry.gid, entry.egid, entry.sgid, entry.fsgid,
      ]
    }
    guard ids(entry) != ids(own) else { return }
    // Without this a change of user IDs takes capabilities away: SECBIT_NO_SETUID_FIXUP.
    program.call(Int32(SYS_prctl), 28 /* PR_SET_SECUREBITS */, .init(own.secbits | 1 << 2))
    program.call(Int32(SYS_setresgid), .init(entry.gid), .init(entry.egid), .init(entry.sgid))
    if entry.fsgid != entry.egid { program.call(Int32(SYS_setfsgid), .init(entry.fsgid)) }
    program.call(Int32(SYS_setresuid), .init(entry.uid), .init(entry.euid), .init(entry.suid))
    if entry.fsuid != entry.euid { program.call(Int32(SYS_setfsuid), .init(entry.fsuid)) }
  }

  private static func changeCapabilities(_ entry: CredsEntry, own: CredsEntry, _ program: inout SyscallProgram) {
    func set(_ words: [UInt32]) -> UInt64 {
      UInt64(words.first ?? 0) | UInt64(words.count > 1 ? words[1] : 0) << 32
    }
    let dropped = set(own.capBnd) & ~set(entry.capBnd)
    for bit in 0..<64 where dropped >> UInt64(bit) & 1 == 1 {
      program.call(Int32(SYS_prctl), 24 /* PR_CAPBSET_DROP */, .init(bit))
    }
    // The last change of securebits needs CAP_SETPCAP, so it comes before the capabilities.
    program.call(Int32(SYS_prctl), 28 /* PR_SET_SECUREBITS */, .init(entry.secbits))
    // struct __user_cap_header_struct with _LINUX_CAPABILITY_VERSION_3, then two data structures.
    let header = program.store((UInt32(0x2008_0522), UInt32(0)))
    func word(_ words: [UInt32], _ index: Int) -> UInt32 { index < words.count ? words[index] : 0 }
    let data = program.store(
      (
        word(entry.capEff, 0), word(entry.capPrm, 0), word(entry.capInh, 0), word(entry.capEff, 1),
        word(entry.capPrm, 1), word(entry.capInh, 1)
      ))
    program.call(Int32(SYS_capset), header, data)
    let ambient = set(entry.capAmb)
    for bit in 0..<64 where ambient >> UInt64(bit) & 1 == 1 {
      program.call(Int32(SYS_prctl), 47 /* PR_CAP_AMBIENT */, 2 /* PR_CAP_AMBIENT_RAISE */, .init(bit), 0, 0)
    }
  }
}

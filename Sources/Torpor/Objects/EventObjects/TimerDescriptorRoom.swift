import CLinux
import Images
import Linux
import SystemPackage

/// timerfd_create(2): a timer that is read.
enum TimerDescriptorRoom: FileRoom {
  static let type = FdTypes.timerfd

  static func recognises(_ facts: DescriptorFacts) -> Bool { facts.link == "anon_inode:[timerfd]" }

  static func save(_ facts: DescriptorFacts, id: UInt32, _ saving: Saving) throws(Failure) -> FileEntry? {
    let duplicate = try facts.duplicate()
    let (value, interval) = try remaining(duplicate, facts)
    // Asked for the time left, the kernel has counted all expirations of a periodic timer, not only the first.
    let info = try attempt("Cannot look at \(facts.label) of \(facts.process.label)") { () throws(Errno) in
      try DescriptorInfo(of: facts.process.proc, facts.number)
    }
    guard let clock = info.number("clockid") else {
      saving.refuse(
        facts.process, "\(facts.label) is a timer that the kernel does not describe", advice: "close it before the checkpoint")
      return nil
    }
    let owner = try facts.owner(duplicate)
    return .with {
      $0.type = type
      $0.id = id
      $0.tfd = .with {
        $0.id = id
        $0.flags = UInt32(bitPattern: facts.flags)
        $0.fown = owner
        $0.clockid = UInt32(truncatingIfNeeded: clock)
        $0.ticks = info.number("ticks") ?? 0
        $0.settimeFlags = UInt32(truncatingIfNeeded: info.number("settime flags", radix: 8) ?? 0)
        ($0.vsec, $0.vnsec) = value
        ($0.isec, $0.insec) = interval
      }
    }
  }

  /// timerfd_gettime(2): the time left, and the interval.
  private static func remaining(
    _ timer: borrowing Descriptor, _ facts: DescriptorFacts
  ) throws(Failure) -> (value: (UInt64, UInt64), interval: (UInt64, UInt64)) {
    var words: (UInt64, UInt64, UInt64, UInt64) = (0, 0, 0, 0)
    do throws(Errno) {
      let number = Int(timer.number)
      try withUnsafeMutableBytes(of: &words) { bytes throws(Errno) in
        _ = try systemCall(Int32(SYS_timerfd_gettime), number, Int(bitPattern: bytes.baseAddress))
      }
    } catch { throw Failure("Cannot look at \(facts.label) of \(facts.process.label)", error) }
    return ((words.2, words.3), (words.0, words.1))
  }

  static func settings(_ entry: FileEntry) -> (flags: Int32, owner: FownEntry) {
    (Int32(bitPattern: entry.tfd.flags), entry.tfd.fown)
  }

  static func check(_ entry: FileEntry, _ files: RestoredFiles) throws(Failure) {
    guard entry.tfd.vnsec < 1_000_000_000, entry.tfd.insec < 1_000_000_000 else {
      throw files.damaged("a timer of it has a time that is none")
    }
  }

  static func open(_ entry: FileEntry, _ files: RestoredFiles) throws(Failure) -> Descriptor {
    try attempt("\(files.what): a timer", advice: "an alarm clock needs the capability CAP_WAKE_ALARM") {
      () throws(Errno) in
      Descriptor(owning: Int32(try systemCall(Int32(SYS_timerfd_create), Int(entry.tfd.clockid), Int(O_CLOEXEC))))
    }
  }

  /// Sets the timer going. It is done last, so that the time it takes to build the job is not counted.
  static func arm(_ timer: Int32, _ entry: TimerfdEntry) throws(Errno) {
    // The kernel tells the time left whatever the timer was set to.
    var value = (entry.isec, entry.insec, entry.vsec, entry.vnsec)
    // A periodic timer that had just run out goes on with its next period.
    if value.2 == 0, value.3 == 0, entry.ticks > 0 { (value.2, value.3) = (entry.isec, entry.insec) }
    try withUnsafeMutableBytes(of: &value) { bytes throws(Errno) in
      _ = try systemCall(Int32(SYS_timerfd_settime), Int(timer), 0, Int(bitPattern: bytes.baseAddress), 0)
    }
    guard entry.ticks > 0 else { return }
    var ticks = entry.ticks
    try withUnsafeMutableBytes(of: &ticks) { bytes throws(Errno) in
      // TFD_IOC_SET_TICKS, _IOW('T', 0, u64)
      _ = try systemCall(Int32(SYS_ioctl), Int(timer), 0x4008_5400, Int(bitPattern: bytes.baseAddress))
    }
  }
}

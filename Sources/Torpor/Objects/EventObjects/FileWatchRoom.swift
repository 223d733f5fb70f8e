import CLinux
import Images
import Linux
import SystemPackage

/// inotify(7): files and directories that are watched for changes.
enum FileWatchRoom: FileRoom {
  static let type = FdTypes.inotify

  static func recognises(_ facts: DescriptorFacts) -> Bool {
    facts.link == "anon_inode:inotify" || facts.link == "anon_inode:[inotify]"
  }

  // MARK: Save

  static func save(_ facts: DescriptorFacts, id: UInt32, _ saving: Saving) throws(Failure) -> FileEntry? {
    let duplicate = try facts.duplicate()
    var waiting: Int32 = 0
    try attempt("Cannot look at \(facts.label) of \(facts.process.label)") { () throws(Errno) in
      try duplicate.control(UInt(FIONREAD), &waiting)
    }
    guard waiting == 0 else {
      saving.refuse(
        facts.process, "\(facts.label) is an inotify instance with events that have not been read",
        advice: "try again when the job has read them")
      return nil
    }
    var watches: [InotifyWdEntry] = []
    for line in facts.info.details where line.name == "inotify wd" {
      guard var watch = parse(line.value) else { continue }
      guard let path = path(of: watch) else {
        saving.refuse(
          facts.process, "\(facts.label) is an inotify instance that watches a file whose name cannot be found (inode \(watch.iIno))",
          advice: "run torpor as root; a deleted file cannot be watched again")
        return nil
      }
      watch.fHandle.path = path
      watches.append(watch)
    }
    let owner = try facts.owner(duplicate)
    return .with {
      $0.type = type
      $0.id = id
      $0.ify = .with {
        $0.id = id
        $0.flags = UInt32(bitPattern: facts.flags)
        $0.fown = owner
        $0.wd = watches.sorted { $0.wd < $1.wd }
      }
    }
  }

  /// A line `inotify wd:1 ino:3df9d sdev:fe00000 mask:2 ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:9ddf...`,
  /// behind its first colon.
  static func parse(_ text: String) -> InotifyWdEntry? {
    var fields: [Substring: Substring] = [:]
    for word in ("wd:" + text).split(separator: " ") {
      guard let colon = word.firstIndex(of: ":") else { return nil }
      fields[word[..<colon]] = word[word.index(after: colon)...]
    }
    func number(_ name: Substring) -> UInt64? { fields[name].flatMap { UInt64($0, radix: 16) } }
    guard let watch = number("wd"), let inode = number("ino"), let device = number("sdev"), let mask = number("mask"),
      let count = number("fhandle-bytes"), count <= 128, let type = number("fhandle-type"),
      let handle = fields["f_handle"], handle.utf8.count >= Int(count) * 2
    else { return nil }
    return .with {
      $0.id = 0
      ($0.wd, $0.iIno, $0.sDev) = (UInt32(truncatingIfNeeded: watch), inode, UInt32(truncatingIfNeeded: device))
      ($0.mask, $0.ignoredMask) = (UInt32(truncatingIfNeeded: mask), UInt32(truncatingIfNeeded: number("ignored_mask") ?? 0))
      $0.fHandle = .with {
        ($0.bytes, $0.type) = (UInt32(count), UInt32(truncatingIfNeeded: type))
        $0.handle = words(handle.utf8.prefix(Int(count) * 2))
      }
    }
  }

  /// Digits as bytes packed into words, as many as CRIU expects.
  private static func words(_ digits: Substring.UTF8View) -> [UInt64] {
    var words = [UInt64](repeating: 0, count: 16)
    for (index, digit) in digits.enumerated() {
      let value = UInt64(digit >= 0x61 ? digit - 0x61 + 10 : digit - 0x30) & 15
      let byte = index / 2
      words[byte / 8] |= value << UInt64(byte % 8 * 8 + (index % 2 == 0 ? 4 : 0))
    }
    return words
  }

  /// The name of the watched file, through its handle. open_by_handle_at(2)
  private static func path(of watch: InotifyWdEntry) -> String? {
    // struct file_handle: size, type, bytes.
    var handle = withUnsafeBytes(of: (watch.fHandle.bytes, watch.fHandle.type)) { [UInt8]($0) }
    for word in watch.fHandle.handle { withUnsafeBytes(of: word) { handle.append(contentsOf: $0) } }
    for mount in mounts(of: watch.sDev) {
      guard let directory = try? Descriptor.open(mount, O_RDONLY | O_DIRECTORY) else { continue }
      let number = handle.withUnsafeBytes { bytes in
        try? systemCall(
          Int32(SYS_open_by_handle_at), Int(directory.number), Int(bitPattern: bytes.baseAddress), Int(O_PATH | O_CLOEXEC))
      }
      guard let number else { continue }
      let file = Descriptor(owning: Int32(number))
      guard let path = try? readLink("/proc/self/fd/\(file.number)"), let status = try? file.status(),
        FileName.problem(path, status) == nil
      else { continue }
      return path
    }
    return nil
  }

  /// Where the file system with this number is mounted.
  private static func mounts(of device: UInt32) -> [String] {
    guard let text = try? readWholeFile("/proc/self/mountinfo") else { return [] }
    let wanted = "\(device >> 20):\(device & 0xfffff)"
    return String(decoding: text, as: UTF8.self).split(separator: "\n").compactMap { line in
      // ID, parent, device, root, mount point.
      let words = line.split(separator: " ", maxSplits: 5)
      return words.count > 4 && words[2] == wanted ? String(words[4]) : nil
    }
  }

  // MARK: Restore

  static func settings(_ entry: FileEntry) -> (flags: Int32, owner: FownEntry) {
    (Int32(bitPattern: entry.ify.flags), entry.ify.fown)
  }

  static func check(_ entry: FileEntry, _ files: RestoredFiles) throws(Failure) {
    for watch in entry.ify.wd {
      let path = watch.fHandle.path
      guard !path.isEmpty else {
        throw Failure(
          .cannotRestore, files.what, why: "a file that the job watches is in the image without its name",
          advice: "use the program that made the image")
      }
      guard (try? fileStatus(path)) == nil else { continue }
      throw Failure(
        .cannotRestore, files.what, why: "\(path), which the job watches, is missing", advice: "put it back where it was")
    }
  }

  static func open(_ entry: FileEntry, _ files: RestoredFiles) throws(Failure) -> Descriptor {
    try attempt("\(files.what): an inotify instance") { () throws(Errno) in
      Descriptor(owning: Int32(try systemCall(Int32(SYS_inotify_init1), Int(O_CLOEXEC))))
    }
  }

  /// Adds the watches under their numbers. It is done last: what torpor itself does with files is no news to the job.
  static func addWatches(_ entry: InotifyFileEntry, to instance: Int32, _ what: String) throws(Failure) {
    let bits: UInt32 = 0xfff | 0x0400_0000 | 0x8000_0000  // IN_ALL_EVENTS, IN_EXCL_UNLINK, IN_ONESHOT
    for watch in entry.wd.sorted(by: { $0.wd < $1.wd }) {
      let path = watch.fHandle.path
      let number = try attempt("\(what): a watch of \(path)") { () throws(Errno) in
        // INOTIFY_IOC_SETNEXTWD, _IOW('I', 0, int)
        try systemCall(Int32(SYS_ioctl), Int(instance), 0x4004_4900, Int(watch.wd))
        let bytes = Array(path.utf8) + [0]
        return try bytes.withBytes { bytes throws(Errno) in
          try systemCall(
            Int32(SYS_inotify_add_watch), Int(instance), Int(bitPattern: bytes.baseAddress), Int(watch.mask & bits))
        }
      }
      guard number == Int(watch.wd) else {
        throw Failure(
          .cannotRestore, what, why: "the watch of \(path) has the number \(number) instead of \(watch.wd)",
          advice: "was the file replaced by a link to another one that is watched?")
      }
    }
  }
}

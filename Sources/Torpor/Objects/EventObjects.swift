import CLinux
import Images
import Linux
import SystemPackage

/// Event counters. eventfd(2)
enum EventfdRoom: FileRoom {
  static let type = FdTypes.eventfd

  static func recognises(_ file: OpenFile) -> Bool { file.link == "anon_inode:[eventfd]" }

  static func save(_ file: OpenFile, id: UInt32, _ saving: Saving) throws(Failure) -> FileEntry? {
    let owner = try attempt("Cannot look at descriptor \(file.number) of \(file.process.label)") { () throws(Errno) in
      try file.owner()
    }
    let isSemaphore = file.value(of: "eventfd-semaphore:") == 1
    let entry = EventfdFileEntry.with {
      ($0.id, $0.fown) = (id, owner)
      $0.flags = UInt32(bitPattern: file.flags) | (isSemaphore ? 1 /* EFD_SEMAPHORE */ : 0)
      $0.counter = file.value(of: "eventfd-count:", hexadecimal: true) ?? 0
    }
    return .with { ($0.type, $0.id, $0.efd) = (.eventfd, id, entry) }
  }

  static func open(_ entry: FileEntry, _ files: RestoredFiles) throws(Failure) -> Descriptor {
    let event = entry.efd
    return try attempt("Cannot make an eventfd of the job") { () throws(Errno) in
      let flags = Int(event.flags & UInt32(bitPattern: O_NONBLOCK) | event.flags & 1) | Int(O_CLOEXEC)
      let file = Descriptor(owning: Int32(try systemCall(Int32(SYS_eventfd2), 0, flags)))
      // The counter may be larger than the 32 bits that eventfd2 takes.
      if event.counter != 0 { try [event.counter].withBytes { bytes throws(Errno) in try file.write(bytes) } }
      try file.setOwner(event.fown)
      return file
    }
  }
}

/// Sets of watched files. epoll(7)
enum EventpollRoom: FileRoom {
  static let type = FdTypes.eventpoll

  static func recognises(_ file: OpenFile) -> Bool { file.link == "anon_inode:[eventpoll]" }

  static func save(_ file: OpenFile, id: UInt32, _ saving: Saving) throws(Failure) -> FileEntry? {
    let owner = try attempt("Cannot look at descriptor \(file.number) of \(file.process.label)") { () throws(Errno) in
      try file.owner()
    }
    let watched = watchedFiles(file)
    for one in watched {
      let status = try? fileStatus("fd/\(one.tfd)", at: file.process.proc.directory.number)
      guard status.map({ UInt64($0.st_ino) }) == one.inode else {
        saving.refuse(
          file.process, "the event poll at descriptor \(file.number) watches a file that was descriptor \(one.tfd) and is no more",
          advice: "a later version of torpor will save this; for now try again later")
        return nil
      }
    }
    let entry = EventpollFileEntry.with {
      ($0.id, $0.flags, $0.fown, $0.tfd) = (id, UInt32(bitPattern: file.flags), owner, watched)
    }
    return .with { ($0.type, $0.id, $0.epfd) = (.eventpoll, id, entry) }
  }

  /// Lines like `tfd:        5 events:       19 data: 5  pos:0 ino:61ef sdev:7` in the information.
  private static func watchedFiles(_ file: OpenFile) -> [EventpollTfdEntry] {
    file.information.withUnsafeBytes { bytes in
      var result: [EventpollTfdEntry] = []
      var scanner = TextScanner(bytes)
      while !scanner.isAtEnd {
        if scanner.accept("tfd:") { result.append(parse(&scanner)) }
        scanner.skipLine()
      }
      return result
    }
  }

  private static func parse(_ scanner: inout TextScanner) -> EventpollTfdEntry {
    var entry = EventpollTfdEntry()
    entry.id = 0
    func after(_ name: StaticString, _ read: (inout TextScanner) -> UInt64?) -> UInt64 {
      scanner.skipSpaces()
      _ = scanner.accept(name)
      scanner.skipSpaces()
      return read(&scanner) ?? 0
    }
    entry.tfd = UInt32(truncatingIfNeeded: after("") { $0.decimal().map { UInt64(bitPattern: $0) } })
    entry.events = UInt32(truncatingIfNeeded: after("events:") { $0.hexadecimal() })
    entry.data = after("data:") { $0.hexadecimal() }
    entry.pos = after("pos:") { $0.decimal().map { UInt64(bitPattern: $0) } }
    entry.inode = after("ino:") { $0.hexadecimal() }
    entry.dev = UInt32(truncatingIfNeeded: after("sdev:") { $0.hexadecimal() })
    return entry
  }

  static func open(_ entry: FileEntry, _ files: RestoredFiles) throws(Failure) -> Descriptor {
    try attempt("Cannot make an event poll of the job") { () throws(Errno) in
      let file = Descriptor(owning: Int32(try systemCall(Int32(SYS_epoll_create1), Int(O_CLOEXEC))))
      try file.setOwner(entry.epfd.fown)
      return file
    }
  }

  /// The calls by which a process puts the watched files back, under its own descriptor numbers.
  static func fill(_ entry: EventpollFileEntry, number: UInt32, into script: inout Script) {
    for watched in entry.tfd {
      script.add(upTo: 128) { program in
        // struct epoll_event is packed: 32 bits of events, then the data.
        let event = program.reserve(16)
        program.patch(event, watched.events)
        program.patch(event + 4, watched.data)
        program.call(
          Int32(SYS_epoll_ctl), .init(number), 1 /* EPOLL_CTL_ADD */, .init(watched.tfd), .data(event))
      }
    }
  }
}

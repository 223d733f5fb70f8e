import CLinux
import Images
import Linux
import SystemPackage

/// epoll_create(2): a set of watched files.
enum EventPollRoom: FileRoom {
  static let type = FdTypes.eventpoll

  static func recognises(_ facts: DescriptorFacts) -> Bool { facts.link == "anon_inode:[eventpoll]" }

  /// The entry is made later, when all descriptors are known.
  static func save(_ facts: DescriptorFacts, id: UInt32, _ saving: Saving) throws(Failure) -> FileEntry? {
    saving.files.eventPolls.add(facts, id: id, owner: try facts.owner())
    return nil
  }

  static func settings(_ entry: FileEntry) -> (flags: Int32, owner: FownEntry) {
    (Int32(bitPattern: entry.epfd.flags), entry.epfd.fown)
  }

  static func open(_ entry: FileEntry, _ files: RestoredFiles) throws(Failure) -> Descriptor {
    try attempt("\(files.what): an epoll instance") { () throws(Errno) in
      Descriptor(owning: Int32(try systemCall(Int32(SYS_epoll_create1), Int(O_CLOEXEC))))
    }
  }

  /// Adds the watch to the instance at `descriptor` of the process that runs the script.
  static func add(_ watch: EventpollTfdEntry, to descriptor: UInt32, _ script: inout Script) {
    script.add(upTo: 64 + 32) { program in
      let event = program.reserve(16)
      program.patch(event, watch.events)
      program.patch(event + dataOffset, watch.data)
      program.call(
        Int32(SYS_epoll_ctl), .init(descriptor), 1 /* EPOLL_CTL_ADD */, .init(watch.tfd), .data(event))
    }
  }

  #if arch(x86_64)
  /// Where `data` lies in struct epoll_event, which is packed here.
  private static let dataOffset = 4
  #else
  private static let dataOffset = 8
  #endif
}

/// The epoll instances of a frozen job.
struct SavedEventPolls {
  private struct Instance {
    let facts: DescriptorFacts
    let id: UInt32
    let owner: FownEntry
  }

  /// A file by the numbers that fdinfo of an epoll instance tells.
  private struct Identity: Hashable {
    let device: UInt64
    let inode: UInt64
  }

  private struct Holding {
    let process: JobProcess
    let number: Int32
  }

  private var instances: [Instance] = []
  private var descriptors: [Identity: [Holding]] = [:]
  private var holders: [UInt32: [Holding]] = [:]
  private(set) var entries: [FileEntry] = []

  mutating func add(_ facts: DescriptorFacts, id: UInt32, owner: FownEntry) {
    instances.append(Instance(facts: facts, id: id, owner: owner))
  }

  mutating func noteDescriptor(_ facts: DescriptorFacts, id: UInt32) {
    let holding = Holding(process: facts.process, number: facts.number)
    let identity = Identity(device: kernelDevice(UInt64(facts.status.st_dev)), inode: UInt64(facts.status.st_ino))
    descriptors[identity, default: []].append(holding)
    if EventPollRoom.recognises(facts) { holders[id, default: []].append(holding) }
  }

  /// Finds the descriptor behind every watch.
  mutating func finish(_ saving: Saving) throws(Failure) {
    for instance in instances {
      let watches = try watches(of: instance, saving)
      entries.append(
        .with {
          $0.type = .eventpoll
          $0.id = instance.id
          $0.epfd = .with {
            $0.id = instance.id
            $0.flags = UInt32(bitPattern: instance.facts.flags)
            $0.fown = instance.owner
            $0.tfd = watches
          }
        })
    }
  }

  private func watches(of instance: Instance, _ saving: Saving) throws(Failure) -> [EventpollTfdEntry] {
    var result: [EventpollTfdEntry] = []
    /// How many watches of one number came before: two files may have been added under one number, one after the other.
    var seen: [UInt32: UInt32] = [:]
    for line in instance.facts.info.details where line.name == "tfd" {
      guard var watch = Self.parse(line.value) else { continue }
      let place = seen[watch.tfd, default: 0]
      seen[watch.tfd] = place + 1
      guard let number = try descriptor(behind: watch, place, instance) else {
        saving.refuse(
          instance.facts.process,
          "\(instance.facts.label) is an epoll instance that watches a file under the number \(watch.tfd), which no process that has the instance has open any more",
          advice: "a later version of torpor may save this; for now start the job anew")
        continue
      }
      watch.tfd = UInt32(bitPattern: number)
      result.append(watch)
    }
    return result
  }

  /// The number under which a restore finds the watched file: in the first process that has the instance and any file
  /// under this number.
  private func descriptor(
    behind watch: EventpollTfdEntry, _ place: UInt32, _ instance: Instance
  ) throws(Failure) -> Int32? {
    let identity = Identity(device: UInt64(watch.dev), inode: watch.inode)
    let candidates = descriptors[identity] ?? []
    let sameNumber = Int32(bitPattern: watch.tfd)
    var processes: Set<ProcessID> = []
    for holder in holders[instance.id] ?? [] where processes.insert(holder.process.pid).inserted {
      let own = candidates.filter { $0.process.pid == holder.process.pid }
      for candidate in own.filter({ $0.number == sameNumber }) + own.filter({ $0.number != sameNumber }) {
        let isIt = try attempt("Cannot look at \(instance.facts.label) of \(holder.process.label)") {
          () throws(Errno) in
          try isWatched(
            candidate.number, of: candidate.process.witness, by: instance.facts.number, of: instance.facts.process.witness,
            registeredAs: watch.tfd, place: place)
        }
        if isIt, !isTaken(candidate.number, before: holder.process, instance) { return candidate.number }
      }
    }
    return nil
  }

  /// Whether an earlier holder of the instance has any file under `number`.
  private func isTaken(_ number: Int32, before process: JobProcess, _ instance: Instance) -> Bool {
    for holder in holders[instance.id] ?? [] {
      if holder.process.pid == process.pid { return false }
      let path = "fd/\(number)"
      if (try? fileStatus(path, followingLink: false, at: holder.process.proc.directory.number)) != nil { return true }
    }
    return false
  }

  /// A line `tfd:  5 events: 19 data: 5  pos:0 ino:7c9 sdev:9`, without its first word.
  static func parse(_ text: String) -> EventpollTfdEntry? {
    var words = text.replacingColons().split(separator: " ").makeIterator()
    guard let number = words.next().flatMap({ UInt32($0) }) else { return nil }
    var entry = EventpollTfdEntry()
    (entry.id, entry.tfd, entry.events, entry.data) = (0, number, 0, 0)
    while let name = words.next(), let value = words.next() {
      switch name {
      case "events": entry.events = UInt32(value, radix: 16) ?? 0
      case "data": entry.data = UInt64(value, radix: 16) ?? 0
      case "pos": entry.pos = Int64(value).map { UInt64(bitPattern: $0) } ?? 0
      case "ino": entry.inode = UInt64(value, radix: 16) ?? 0
      case "sdev": entry.dev = UInt32(value, radix: 16) ?? 0
      default: break
      }
    }
    return entry
  }
}

extension String {
  fileprivate func replacingColons() -> String { String(map { $0 == ":" ? " " : $0 }) }
}

/// A device number as the kernel has it inside: 12 bits major, 20 bits minor.
func kernelDevice(_ device: UInt64) -> UInt64 {
  UInt64(clinux_major(device)) << 20 | UInt64(clinux_minor(device))
}

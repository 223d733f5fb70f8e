import Linux
import SystemPackage

/// Reads of each process, now that it stands still, what may have changed while it was being stopped, and what its
/// descriptors look like.
///
/// Of many, a thread reads ahead while others are being asked about themselves already.
final class SecondReading {
  let processes: [JobProcess]
  private var reader: Worker?
  private var pieces: [Int] = []

  init(of processes: [JobProcess]) {
    self.processes = processes
    guard processes.count > 1 else { return }
    let reader = Worker()
    let tasks = processes.map { Task(process: $0) }
    for task in tasks { pieces.append(reader.submit { () throws(Failure) in try task.process.readAgain() }) }
    for task in tasks { reader.submit { () throws(Failure) in task.process.readDescriptorsAhead() } }
    self.reader = reader
  }

  /// Waits until the process at this place has been read, all but its descriptors.
  func wait(for index: Int) throws(Failure) {
    if let reader { try reader.wait(for: pieces[index]) } else { try processes[index].readAgain() }
  }

  func waitForAll() throws(Failure) { try reader?.wait() }

  /// The reader has state, memory map and descriptors of the process to itself until it has been waited for.
  private struct Task: @unchecked Sendable {
    let process: JobProcess
  }
}

extension JobProcess {
  /// More descriptors than this are looked at one by one when it is their turn.
  private static let mostDescriptorsAhead = 64

  fileprivate func readAgain() throws(Failure) {
    try attempt("Cannot read the state of \(label)") { () throws(Errno) in
      let name = statistics.command
      statistics = try TaskStatistics(of: proc)
      if witness != pid { statistics.command = name }
      status = try TaskStatus(of: proc)
      areas = try readMemoryMap(of: proc, withFlags: true)
      timers = PosixTimer.parse(try proc.read("timers"))
    }
  }

  /// What cannot be read here is read again, and its error shown, when it is its turn.
  fileprivate func readDescriptorsAhead() {
    guard let numbers = try? DescriptorFacts.numbers(of: self), numbers.count <= Self.mostDescriptorsAhead else { return }
    var facts: [DescriptorFacts] = []
    for number in numbers {
      guard let one = try? DescriptorFacts(self, number) else { return }
      facts.append(one)
    }
    descriptors = facts
  }
}

import Linux
import Synchronization
import Testing

@Suite struct WorkerTests {
  @Test func piecesAreDoneInTheirOrder() throws {
    let done = Mutex<[Int]>([])
    let worker = Worker()
    for number in 0..<100 { worker.submit { () throws(Failure) in done.withLock { $0.append(number) } } }
    try worker.wait()
    #expect(done.withLock { $0 } == Array(0..<100))
  }

  @Test func aPieceCanBeWaitedFor() throws {
    let done = Atomic(false)
    let worker = Worker()
    let first = worker.submit { () throws(Failure) in done.store(true, ordering: .releasing) }
    worker.submit { () throws(Failure) in }
    try worker.wait(for: first)
    let isDone = done.load(ordering: .acquiring)
    #expect(isDone)
  }

  @Test func afterAFailureNothingMoreIsDone() {
    let count = Atomic(0)
    let worker = Worker()
    worker.submit { () throws(Failure) in throw Failure("Cannot go on", why: "the test says so") }
    for _ in 0..<10 { worker.submit { () throws(Failure) in count.add(1, ordering: .relaxed) } }
    #expect(throws: Failure.self) { try worker.wait() }
    let done = count.load(ordering: .relaxed)
    #expect(done == 0)
  }

  @Test func whatIsLeftIsDoneBeforeItsEnd() {
    let count = Atomic(0)
    do {
      let worker = Worker()
      for _ in 0..<1000 { worker.submit { () throws(Failure) in count.add(1, ordering: .relaxed) } }
    }
    let done = count.load(ordering: .relaxed)
    #expect(done == 1000)
  }
}

@Suite struct BytesTests {
  /// Built with optimisation, the bytes of a temporary array once came out as zeros.
  @Test func aTemporaryArrayKeepsItsContent() {
    let sum = [UInt8(3), 4].withBytes { bytes in bytes.reduce(0) { $0 + Int($1) } }
    #expect(sum == 7)
    let word: UInt64 = [UInt64(1) << 63].withBytes { $0.loadUnaligned(as: UInt64.self) }
    #expect(word == 1 << 63)
  }

  @Test func bytesCanBeChanged() {
    var words: [UInt32] = [1, 2]
    words.withMutableBytes { $0.storeBytes(of: 7, toByteOffset: 4, as: UInt32.self) }
    #expect(words == [1, 7])
  }
}

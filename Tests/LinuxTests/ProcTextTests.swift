import Linux
import Testing

private func parse<Value>(_ text: String, _ body: (UnsafeRawBufferPointer) -> Value) -> Value {
  Array(text.utf8).withUnsafeBytes(body)
}

@Test func aNameWithBracketsHidesTheFieldsBehindIt() {
  let fields = (4...52).map(String.init).joined(separator: " ")
  let statistics = parse("77 (a) b) (c) S \(fields)\n") { TaskStatistics(parsing: $0) }
  #expect(statistics.command == "a) b) (c")
  #expect(statistics.state == "S")
  #expect(statistics.parent == 4)
  #expect(statistics.session == 6)
  #expect(statistics.startBreak == 47)
  #expect(statistics.exitCode == 52)
}

@Test func aNameWithALineFeedHidesTheStatusBehindIt() {
  let status = parse("Name:\ta\\nb\\\\c\nState:\tT (stopped)\nTgid:\t5\nUid:\t1\t2\t3\t4\nSigBlk:\t00000000000000ff\n") {
    TaskStatus(parsing: $0)
  }
  #expect(status.name == "a\nb\\c")
  #expect(status.state == "T")
  #expect(status.uids == [1, 2, 3, 4])
  #expect(status.blocked == 0xff)
}

@Test func aMappingLosesItsFlagsOrItsName() {
  let text = """
    7f0000000000-7f0000002000 rw-p 00001000 fe:00 42                         /tmp/a file with spaces
    Size:                  8 kB
    Rss:                   4 kB
    ProtectionKey:         0
    VmFlags: rd wr mr mw me gd nh
    7ffc00000000-7ffc00021000 r-xs 00000000 00:00 0                          [stack]
    VmFlags: rd ex

    """
  let areas = parse(text) { parseMemoryMap($0) }
  #expect(areas.count == 2)
  #expect(areas[0].range == AddressRange(0x7f00_0000_0000, 0x7f00_0000_2000))
  #expect(areas[0].name == "/tmp/a file with spaces")
  #expect(areas[0].offset == 0x1000 && areas[0].inode == 42 && areas[0].deviceMajor == 0xfe)
  #expect(areas[0].flags == [.growsDown, .noHugePages] && areas[0].residentBytes == 4096)
  #expect(areas[1].isShared && !areas[1].isWritable && areas[1].name == "[stack]")
}

import CLinux
import Images
import Linux
import Testing

@testable import Torpor

/// What the kernel says of descriptors, in text and in bytes.
@Suite struct FileTextTests {
  private func info(_ text: String) -> DescriptorInfo {
    Array(text.utf8).withUnsafeBytes { DescriptorInfo(parsing: $0) }
  }

  @Test func plainDescriptor() {
    let info = info("pos:\t12345\nflags:\t02100002\nmnt_id:\t27\nino:\t4711\n")
    #expect(info.position == 12345)
    #expect(info.flags == 0o100002)
    #expect(info.closesOnExec)
    #expect(info.mountID == 27)
    #expect(info.details.isEmpty)
  }

  @Test func timer() {
    let info = info(
      "pos:\t0\nflags:\t02\nmnt_id:\t15\nino:\t1\nclockid: 7\nticks: 3\nsettime flags: 01\nit_value: (5, 600)\nit_interval: (0, 7)\n")
    #expect(info.number("clockid") == 7)
    #expect(info.number("settime flags", radix: 8) == 1)
    #expect(info.pair("it_value")! == (5, 600))
    #expect(info.pair("it_interval")! == (0, 7))
    #expect(info.pair("nothing") == nil)
  }

  @Test func eventPoll() throws {
    let info = info("flags:\t02\ntfd:        5 events:       19 data: fedcba9876543210  pos:0 ino:7c9 sdev:f\n")
    let watch = try #require(SavedEventPolls.parse(info.details[0].value))
    #expect((watch.tfd, watch.events) == (5, 0x19))
    #expect(watch.data == 0xfedc_ba98_7654_3210)
    #expect((watch.pos, watch.inode, watch.dev) == (0, 0x7c9, 0xf))
    #expect(SavedEventPolls.parse("") == nil)
  }

  @Test func fileWatch() throws {
    let info = info(
      "flags:\t00\ninotify wd:1a ino:3df9d sdev:fe00000 mask:84000002 ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:9ddf0300000000a1\n")
    let watch = try #require(FileWatchRoom.parse(info.details[0].value))
    #expect((watch.wd, watch.iIno, watch.sDev, watch.mask) == (0x1a, 0x3df9d, 0xfe00000, 0x8400_0002))
    #expect((watch.fHandle.bytes, watch.fHandle.type, watch.fHandle.handle.count) == (8, 1, 16))
    #expect(watch.fHandle.handle[0] == 0xa100_0000_0003_df9d)
    #expect(FileWatchRoom.parse("1 ino:1 sdev:1 mask:2 fhandle-bytes:ff fhandle-type:1 f_handle:00") == nil)
    #expect(FileWatchRoom.parse("") == nil)
  }

  @Test func locks() throws {
    let info = info(
      """
      flags:\t02
      lock:\t1: POSIX  ADVISORY  WRITE 4242 fe:00:1234 100 149
      lock:\t2: FLOCK  ADVISORY  READ 4242 fe:00:1234 0 EOF
      lock:\t3: OFDLCK ADVISORY  WRITE -1 fe:00:1234 5 EOF
      lock:\t4: LEASE  ACTIVE    READ 4242 fe:00:1234 0 EOF

      """)
    let locks = info.details.map { SavedLocks.parse($0.value) }
    #expect(locks.count == 4)
    let posix = try #require(locks[0])
    #expect((posix.flag, posix.type, posix.start, posix.len) == (LockKind.posix, UInt32(F_WRLCK), 100, 50))
    let flock = try #require(locks[1])
    #expect((flock.flag, flock.type, flock.start, flock.len) == (LockKind.flock, UInt32(F_RDLCK), 0, 0))
    #expect(locks[2]?.flag == LockKind.description)
    #expect(locks[3] == nil)
    #expect(SavedLocks.parse("1: POSIX ADVISORY WRITE 1 fe:00:1 9 3") == nil)
  }

  private func note(_ name: [UInt8], _ type: UInt8, _ content: [UInt8]) -> [UInt8] {
    func padded(_ bytes: [UInt8]) -> [UInt8] { bytes + [UInt8](repeating: 0, count: (4 - bytes.count % 4) % 4) }
    return [UInt8(name.count), 0, 0, 0, UInt8(content.count), 0, 0, 0, type, 0, 0, 0] + padded(name) + padded(content)
  }

  @Test func buildIDs() {
    let gnu: [UInt8] = [0x47, 0x4e, 0x55, 0]
    let property = note(gnu, 5, [UInt8](repeating: 9, count: 16))
    #expect(BuildID.find(in: property + note(gnu, 3, [1, 2, 3, 4, 5])) == [0x0403_0201, 5])
    #expect(BuildID.find(in: property) == nil)
    #expect(BuildID.find(in: note([0x47, 0x6f, 0, 0], 3, [1, 2, 3, 4])) == nil)
    #expect(BuildID.find(in: Array(note(gnu, 3, [1, 2, 3, 4]).dropLast())) == nil)
    #expect(BuildID.find(in: []) == nil)
  }

  @Test func buildIDOfThisProgram() throws {
    let own = try readLink("/proc/self/exe")
    let libc = BuildID.read(own) ?? BuildID.read("/usr/lib/x86_64-linux-gnu/libc.so.6")
    #expect(libc?.isEmpty == false)
    #expect(BuildID.read("/etc/passwd") == nil)
  }

  @Test func addresses() throws {
    let v4 = InternetAddress(words: [UInt32(bigEndian: 0x7f00_0001)], port: 80)
    #expect(v4.text == "127.0.0.1 port 80")
    #expect(v4.bytes.count == 16)
    #expect(InternetAddress(bytes: v4.bytes[...]) == v4)
    let local = InternetAddress(words: [UInt32(bigEndian: 0xfe80_0000), 0, 0, UInt32(bigEndian: 1)], port: 443, scope: 3)
    #expect(local.isLinkLocal && !local.isAny && !v4.isLinkLocal)
    #expect(local.bytes.count == 28)
    #expect(InternetAddress(bytes: local.bytes[...]) == local)
    #expect(InternetAddress(bytes: [1, 0, 3]) == nil)
  }

  @Test func terminalModes() throws {
    let entry = TermiosEntry.with {
      ($0.cIflag, $0.cOflag, $0.cCflag, $0.cLflag) = (0x4500, 5, 0xbf, 0x8a3b)
      ($0.cLine, $0.cIspeed, $0.cOspeed) = (0, 0, 0)
      $0.cCc = [0x7f1c_0304, 0x11, 0, 0, 0xff] + [UInt32](repeating: 0, count: 14)
    }
    var expected = entry
    // Only 19 characters, four in each word.
    expected.cCc[4] = 0xff
    #expect(TerminalModes(entry).entry == expected)
  }

  @Test func terminalNumbers() {
    #expect(SavedTerminals.Kind(clinux_makedev(136, 5))?.id == 10)
    #expect(SavedTerminals.Kind(clinux_makedev(137, 1))?.id == 514)
    #expect(SavedTerminals.Kind(clinux_makedev(5, 0)) == .controlling)
    #expect(SavedTerminals.Kind(clinux_makedev(5, 2)) == nil)
    #expect(SavedTerminals.Kind(clinux_makedev(4, 64)) == nil)
  }
}

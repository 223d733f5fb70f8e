import Glibc
import Linux
import Testing

@testable import Images

/// An image directory of a few files in a folder of its own, removed at the end.
private func withImage(_ body: (String) throws -> Void) throws {
  var template = Array("/tmp/torpor-images-XXXXXX".utf8CString)
  try #require(mkdtemp(&template) != nil)
  let folder = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
  let image = folder + "/image"
  defer {
    removeDirectory(image)
    rmdir(folder)
  }
  let writer = try ImageWriter(at: image)
  try writer.write(
    .inventory, 0,
    InventoryEntry.with {
      ($0.imgVersion, $0.fdinfoPerID, $0.nsPerID) = (2, true, true)
    })
  try writer.write(
    .processTree,
    all: (1...20).map { number in
      PstreeEntry.with {
        ($0.pid, $0.ppid, $0.pgid, $0.sid) = (UInt32(number + 100), UInt32(number == 1 ? 0 : 101), 101, 101)
        $0.threads = [UInt32(number + 100)]
      }
    })
  try writer.append(.pagemap, 101, PagemapHead.with { $0.pagesID = 1 })
  for index in 0..<50 {
    try writer.append(
      .pagemap, 101,
      PagemapEntry.with { ($0.vaddr, $0.compatNrPages, $0.nrPages, $0.flags) = (UInt64(index) << 20, 3, 3, 4) })
  }
  try writer.commit(.with { $0.version = 1 })
  try body(image)
}

private func readAll(_ image: String) throws {
  let reader = try ImageReader(at: image)
  try reader.verify()
  _ = try reader.read(.inventory, as: InventoryEntry.self)
  _ = try reader.readAll(.processTree, as: PstreeEntry.self)
  var cursor = try reader.open(.pagemap, 101)
  _ = try cursor.next(PagemapHead.self)
  while try cursor.next(PagemapEntry.self) != nil {}
}

/// The same without the checksums, as for an image of CRIU's.
private func readUnverified(_ image: String) throws {
  let reader = try ImageReader(at: image)
  _ = try reader.readAll(.processTree, as: PstreeEntry.self)
  var cursor = try reader.open(.pagemap, 101)
  _ = try cursor.next(PagemapHead.self)
  while try cursor.next(PagemapEntry.self) != nil {}
}

@Test func anImageReadsBackAsItWasWritten() throws {
  try withImage { image in
    let reader = try ImageReader(at: image)
    try reader.verify()
    #expect(try reader.readAll(.processTree, as: PstreeEntry.self).map(\.pid) == (101...120).map { UInt32($0) })
  }
}

@Test func aFlippedBitGoesUnnoticed() throws {
  try withImage { image in
    for name in ["inventory.img", "pstree.img", "pagemap-101.img"] {
      let path = "\(image)/\(name)"
      let content = try readWholeFile(path)
      for index in stride(from: 0, to: content.count, by: 7) {
        var damaged = content
        damaged[index] ^= UInt8(1 << (index % 8))
        try write(damaged, to: path)
        #expect(throws: Failure.self, "bit \(index % 8) of byte \(index) of \(name)") { try readAll(image) }
      }
      try write(content, to: path)
    }
    try readAll(image)
  }
}

/// Without checksums damage may go unnoticed, but it must never crash the reader, hang it, or have it take much memory.
@Test func anImageOfAStrangerCrashesTheReader() throws {
  try withImage { image in
    unlink("\(image)/torpor.json")
    var generator = SystemRandomNumberGenerator()
    for name in ["pstree.img", "pagemap-101.img"] {
      let path = "\(image)/\(name)"
      let content = try readWholeFile(path)
      for _ in 0..<2000 {
        var damaged = content
        for _ in 0..<Int.random(in: 1...8, using: &generator) {
          switch Int.random(in: 0...3, using: &generator) {
          case 0: damaged[Int.random(in: 0..<damaged.count, using: &generator)] = .random(in: 0...255, using: &generator)
          case 1: damaged.removeLast(Int.random(in: 0..<damaged.count, using: &generator))
          case 2: damaged.insert(contentsOf: [0xff, 0xff, 0xff, 0x7f], at: Int.random(in: 0...damaged.count, using: &generator))
          default: damaged += damaged.prefix(40)
          }
          if damaged.isEmpty { damaged = [0] }
        }
        try write(damaged, to: path)
        do { try readUnverified(image) } catch is Failure {}
      }
      try write(content, to: path)
    }
  }
}

private func write(_ bytes: [UInt8], to path: String) throws {
  let file = try Descriptor.open(path, O_WRONLY | O_CREAT | O_TRUNC)
  try bytes.withBytes { try file.write($0) }
}

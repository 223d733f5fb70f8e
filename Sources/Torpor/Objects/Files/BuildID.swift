import CLinux
import Linux
import SystemPackage

/// The number that linkers give every build of a program or library: the note of type NT_GNU_BUILD_ID.
enum BuildID {
  private static let noteType: UInt32 = 3
  /// Notes of real files are far smaller.
  private static let largest = 1 << 16

  /// The build ID of an ELF file, its bytes packed into words; nil where it has none, or is no ELF file.
  static func read(_ path: String) -> [UInt32]? {
    guard let file = try? Descriptor.open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY) else { return nil }
    guard let head = bytes(file, at: 0, count: MemoryLayout<Elf64_Ehdr>.size), head.starts(with: [0x7f, 0x45, 0x4c, 0x46]),
      head[4] == ELFCLASS64
    else { return nil }
    let header = head.withUnsafeBytes { $0.loadUnaligned(as: Elf64_Ehdr.self) }
    let size = MemoryLayout<Elf64_Phdr>.size
    guard Int(header.e_phentsize) == size, header.e_phoff < 1 << 32,
      let table = bytes(file, at: Int(header.e_phoff), count: size * Int(header.e_phnum))
    else { return nil }
    for index in 0..<Int(header.e_phnum) {
      let segment = table.withUnsafeBytes { $0.loadUnaligned(fromByteOffset: index * size, as: Elf64_Phdr.self) }
      guard segment.p_type == UInt32(PT_NOTE), segment.p_filesz <= largest, segment.p_offset < 1 << 32,
        let notes = bytes(file, at: Int(segment.p_offset), count: Int(segment.p_filesz))
      else { continue }
      if let id = find(in: notes) { return id }
    }
    return nil
  }

  private static func bytes(_ file: borrowing Descriptor, at offset: Int, count: Int) -> [UInt8]? {
    guard count > 0 else { return nil }
    var result = [UInt8](repeating: 0, count: count)
    let read = try? result.withMutableBytes { buffer throws(Errno) in try file.read(into: buffer, at: offset) }
    return read == count ? result : nil
  }

  /// Finds the build ID among the notes of one segment.
  static func find(in notes: [UInt8]) -> [UInt32]? {
    func word(_ offset: Int) -> UInt32 {
      notes.withUnsafeBytes { UInt32(littleEndian: $0.loadUnaligned(fromByteOffset: offset, as: UInt32.self)) }
    }
    func rounded(_ size: UInt32) -> Int { (Int(size) + 3) & ~3 }
    var offset = 0
    while offset + 12 <= notes.count {
      let (nameSize, size, type) = (word(offset), word(offset + 4), word(offset + 8))
      let content = offset + 12 + rounded(nameSize)
      guard content + Int(size) <= notes.count else { return nil }
      if type == noteType {
        let isGNU = nameSize == 4 && notes[(offset + 12)..<(offset + 16)].elementsEqual([0x47, 0x4e, 0x55, 0])
        guard isGNU, size > 0, size <= 512 else { return nil }
        return words(Array(notes[content..<(content + Int(size))]))
      }
      offset = content + rounded(size)
    }
    return nil
  }

  private static func words(_ bytes: [UInt8]) -> [UInt32] {
    stride(from: 0, to: bytes.count, by: 4).map { start in
      bytes[start..<min(start + 4, bytes.count)].enumerated().reduce(0) { $0 | UInt32($1.element) << (8 * $1.offset) }
    }
  }
}

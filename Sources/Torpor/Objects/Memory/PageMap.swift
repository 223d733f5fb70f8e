import Images
import Linux
import SystemPackage

/// Which pages of an address space, or of a segment of shared memory, an image holds, in the order of its pages file.
struct PageMap {
  var pagesID: UInt32 = 0
  /// By rising address, and not overlapping.
  var runs: [AddressRange] = []
  var bytes: UInt64 { runs.reduce(0) { $0 + $1.count } }

  init() {}

  /// Reads a pagemap.
  ///
  /// - Parameter limit: the end of the last page that there can be.
  init(_ image: ImageReader, _ kind: ImageKind, _ id: UInt64, limit: UInt64) throws(Failure) {
    let name = kind.fileName(id)
    var cursor = try image.open(kind, id)
    guard let head = try cursor.next(PagemapHead.self) else { throw Self.damaged(image, "\(name) has no entry") }
    pagesID = head.pagesID
    var end: UInt64 = 0
    while let entry = try cursor.next(PagemapEntry.self) {
      let pages = entry.hasNrPages ? entry.nrPages : UInt64(entry.compatNrPages)
      guard entry.vaddr % pageSize == 0, entry.vaddr >= end, entry.vaddr < limit, pages > 0,
        pages <= (limit - entry.vaddr) / pageSize
      else { throw Self.damaged(image, "\(name) has an impossible run of pages at \(MemoryRoom.hex(entry.vaddr))") }
      end = entry.vaddr + pages * pageSize
      guard entry.inParent == false, entry.flags & PageFlags.parent == 0,
        !entry.hasFlags || entry.flags & PageFlags.present != 0
      else {
        throw Failure(
          .cannotRestore, "Cannot restore \(image.path)", why: "it builds on an earlier image, which is not supported yet",
          advice: "use criu restore for this image")
      }
      runs.append(AddressRange(entry.vaddr, end))
    }
  }

  /// Checks that the pages file holds all that it should.
  func checkLength(_ image: ImageReader) throws(Failure) {
    guard !runs.isEmpty else { return }
    let name = ImageKind.pagesFileName(pagesID)
    let size: Int
    do throws(Errno) { size = Int(try image.openFile(name).status().st_size) } catch {
      throw Failure(.badImage, "Cannot restore \(image.path)", why: "\(name): \(error.words)", advice: "use another image")
    }
    guard UInt64(size) >= bytes else {
      throw Self.damaged(image, "\(name) is too short: \(bytes) bytes are needed and it has \(size)")
    }
  }

  private static func damaged(_ image: ImageReader, _ why: String) -> Failure {
    Failure(
      .badImage, "Cannot restore \(image.path)", why: why, advice: "use another image, or a good copy of this one")
  }
}

/// The address space of a process that is to be built, checked.
struct AddressSpace {
  /// What is mapped, by rising address, without what the kernel maps by itself everywhere.
  var areas: [VmaEntry] = []
  /// Pages that fault at any touch. (MADV_GUARD_INSTALL)
  var guards: [AddressRange] = []
  var pages = PageMap()

  var vdso: AddressRange? { areas.first { $0.kind.contains(.vdso) }?.range }
}

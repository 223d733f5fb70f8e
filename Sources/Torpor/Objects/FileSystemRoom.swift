import CLinux
import Images
import Linux
import SystemPackage

/// Working directory, root directory and file creation mask of a process.
enum FileSystemRoom {
  static func collect(_ process: JobProcess, _ saving: Saving) throws(Failure) -> FsEntry {
    let working = try saving.files.namedLink(process, "cwd", saving)
    let root = try saving.files.namedLink(process, "root", saving)
    return .with { ($0.cwdID, $0.rootID, $0.umask) = (working, root, process.status.umask) }
  }

  static func restore(_ process: RestoredProcess, _ restoring: Restoring, into script: inout Script) throws(Failure) {
    let entry = try restoring.image.read(.fileSystem, UInt64(process.pid), as: FsEntry.self)
    let files = restoring.files
    guard let working = files.regular(entry.cwdID), let root = files.regular(entry.rootID) else {
      throw Failure(
        .badImage, "Cannot restore \(process.label)", why: "fs-\(process.pid).img names directories that files.img has not",
        advice: "use another image")
    }
    // Paths in the image start at the root that torpor has too; so the working directory comes first.
    script.add(upTo: 64 + working.name.utf8.count + 32) { $0.call(Int32(SYS_chdir), $0.store(string: working.name)) }
    if root.name != "/" {
      script.add(upTo: 64 + root.name.utf8.count + 32) { $0.call(Int32(SYS_chroot), $0.store(string: root.name)) }
    }
    if entry.hasUmask { script.call(Int32(SYS_umask), .init(entry.umask)) }
  }
}

import CLinux
import Images
import Linux
import SystemPackage
import Tracing

/// Where a process stands in the file system: working directory, root directory, file mode mask.
enum FileSystemRoom {
  static func collect(_ process: JobProcess, _ saving: Saving) throws(Failure) -> FsEntry {
    let directory = try saving.files.namedLink(process, "cwd", saving)
    let root = try saving.files.namedLink(process, "root", saving)
    return .with {
      $0.cwdID = directory
      $0.rootID = root
      $0.umask = process.status.umask
    }
  }

  static func restore(_ process: RestoredProcess, _ restoring: Restoring, into script: inout Script) throws(Failure) {
    let entry = try restoring.image.read(.fileSystem, UInt64(process.pid), as: FsEntry.self)
    let directory = try restoring.files.directory(entry.cwdID, of: process)
    let root = try restoring.files.directory(entry.rootID, of: process)
    // Both names are as seen from here, so the root comes last.
    change(Int32(SYS_chdir), directory, &script)
    if root != "/" { change(Int32(SYS_chroot), root, &script) }
    if entry.hasUmask { script.call(Int32(SYS_umask), .init(entry.umask)) }
  }

  private static func change(_ number: Int32, _ path: String, _ script: inout Script) {
    script.add(upTo: 64 + 32 + path.utf8.count) { program in
      let path = program.store(string: path)
      program.call(number, path)
    }
  }
}

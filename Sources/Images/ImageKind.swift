/// The files of an image directory: their names, and the number that each starts with.
///
/// A file is a common magic number, its own magic number, and entries, each a 32-bit length and a protobuf message;
/// all numbers are little-endian. Some entries are followed by raw bytes.
public enum ImageKind: Sendable, Hashable {
  case inventory, processTree, files, pipesData, seccomp, cgroup, fifoData, socketQueues
  case ttyInfo, remappedPaths, fileLocks
  case core, ids, memoryMap, fileSystem, descriptors, pagemap, timeNamespace, tcpStream, ghostFile
  case sharedPagemap, memfd
  /// Torpor's own; other readers ignore it.
  case taskExtras
  /// Torpor's own: where packets end in pipes that keep them apart (O_DIRECT).
  case pipePackets
  /// Torpor's own: what CRIU's messages about sockets and their packets have no fields for.
  case socketExtras, packetExtras, datagrams, socketOptions

  /// The first word of every image but the inventory and the raw ones.
  static let commonMagic: UInt32 = 0x5456_4319
  /// The first word of the statistics files.
  static let serviceMagic: UInt32 = 0x5510_5940

  /// The file's own magic number.
  var magic: UInt32 {
    switch self {
    case .inventory: 0x5831_3116
    case .processTree: 0x5027_3030
    case .files: 0x5630_3138
    case .pipesData: 0x5645_3709
    case .fifoData: 0x5933_3054
    case .socketQueues: 0x5626_4026
    case .seccomp: 0x6441_3049
    case .cgroup: 0x5938_3330
    case .ttyInfo: 0x5945_3036
    case .remappedPaths: 0x5913_3954
    case .fileLocks: 0x5432_3616
    case .core: 0x5505_3847
    case .ids: 0x5443_2030
    case .memoryMap: 0x5749_2820
    case .fileSystem: 0x5140_3912
    case .descriptors: 0x5621_3732
    case .pagemap, .sharedPagemap: 0x5608_4025
    case .timeNamespace: 0x4311_4433
    case .memfd: 0x4845_3499
    case .tcpStream: 0x5146_5506
    case .ghostFile: 0x5258_3605
    case .taskExtras: 0x5450_5231
    case .pipePackets: 0x5450_4b54
    case .socketExtras: 0x5450_534b
    case .packetExtras: 0x5450_5051
    case .datagrams: 0x5450_4447
    case .socketOptions: 0x5450_534f
    }
  }

  /// Whether the common magic stands before its own.
  var hasCommonMagic: Bool { self != .inventory }

  /// The name of the file for the object `id`; kinds of which there is one file ignore it.
  public func fileName(_ id: UInt64 = 0) -> String {
    switch self {
    case .inventory: "inventory.img"
    case .processTree: "pstree.img"
    case .files: "files.img"
    case .pipesData: "pipes-data.img"
    case .fifoData: "fifo-data.img"
    case .socketQueues: "sk-queues.img"
    case .seccomp: "seccomp.img"
    case .cgroup: "cgroup.img"
    case .ttyInfo: "tty-info.img"
    case .remappedPaths: "remap-fpath.img"
    case .memfd: "memfd.img"
    case .fileLocks: "filelocks.img"
    case .pipePackets: "torpor-pipe-packets.img"
    case .socketExtras: "torpor-sockets.img"
    case .packetExtras: "torpor-packets.img"
    case .datagrams: "torpor-datagrams.img"
    case .socketOptions: "torpor-socket-options.img"
    case .core: "core-\(id).img"
    case .ids: "ids-\(id).img"
    case .memoryMap: "mm-\(id).img"
    case .fileSystem: "fs-\(id).img"
    case .descriptors: "fdinfo-\(id).img"
    case .pagemap: "pagemap-\(id).img"
    case .sharedPagemap: "pagemap-shmem-\(id).img"
    case .timeNamespace: "timens-\(id).img"
    case .tcpStream: "tcp-stream-\(String(id, radix: 16)).img"
    case .ghostFile: "ghost-file-\(String(id, radix: 16)).img"
    case .taskExtras: "torpor-task-\(id).img"
    }
  }

  /// The raw file with the content of pages.
  public static func pagesFileName(_ id: UInt32) -> String { "pages-\(id).img" }
}

import CLinux
import Linux

/// The steps of the two pipelines at which a test can have Torpor killed, to see that nothing is lost.
///
/// `TORPOR_FAULT=checkpoint.frozen` in the environment makes Torpor kill itself there, with the signal that nothing can
/// catch.
public enum FaultPoint: String, CaseIterable, Sendable {
  /// Only for a job with a cgroup of its own: while it is being frozen, when it stands, when all of it is seized.
  case cageClosing = "cage.closing"
  case cageClosed = "cage.closed"
  case cageSeized = "cage.seized"
  case checkpointSeized = "checkpoint.seized"
  case checkpointFrozen = "checkpoint.frozen"
  case checkpointBorrowed = "checkpoint.borrowed"
  case checkpointProgramStarted = "checkpoint.program-started"
  case checkpointProgramEnded = "checkpoint.program-ended"
  case checkpointReturned = "checkpoint.returned"
  case checkpointCollected = "checkpoint.collected"
  case checkpointMemoryWritten = "checkpoint.memory-written"
  case checkpointImageWritten = "checkpoint.image-written"
  case checkpointCommitted = "checkpoint.committed"
  case restoreChecked = "restore.checked"
  case restoreRootBorn = "restore.root-born"
  case restoreTreeBorn = "restore.tree-born"
  case restoreMemoryBuilt = "restore.memory-built"
  case restoreFilesBuilt = "restore.files-built"
  case restoreThreadsBorn = "restore.threads-born"
  case restoreTasksBuilt = "restore.tasks-built"
  case restoreReady = "restore.ready"
  case restoreReleasing = "restore.releasing"

  public static var allNames: [String] { allCases.map(\.rawValue) }

  private static let chosen: String? = getenv("TORPOR_FAULT").map { String(cString: $0) }

  /// Says that the pipeline has come here.
  static func reach(_ point: FaultPoint) {
    if let chosen, chosen == point.rawValue { kill(getpid(), SIGKILL) }
  }
}

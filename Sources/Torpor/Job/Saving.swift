import Images
import Linux
import Logging
import SystemPackage

/// What the rooms share while a checkpoint is made: the frozen job, the image, the tables of shared objects, and what
/// stands against it.
public final class Saving {
  public let job: Job
  public let log: Logger
  /// Files, by identity: each open file description once, each mapped or otherwise named file once.
  public let files = SavedFiles()
  /// What else processes share.
  var identities = SavedIdentities()
  /// Everything that cannot be saved. With one of these no image is written.
  public private(set) var refusals: [Failure] = []
  /// Where in the image everything goes; nil while only looking.
  public internal(set) var image: ImageWriter?

  public init(job: Job, log: Logger) {
    self.job = job
    self.log = log
  }

  /// Notes that `process` holds something that cannot be saved.
  ///
  /// - Parameters:
  ///   - why: which object, and what is wrong with it: `descriptor 17 is a userfaultfd`.
  ///   - advice: what the user can do: `close it before the checkpoint`.
  public func refuse(_ process: JobProcess, _ why: String, advice: String) {
    refusals.append(Failure(.refused, "Cannot checkpoint \(process.label)", why: why, advice: advice))
  }
}

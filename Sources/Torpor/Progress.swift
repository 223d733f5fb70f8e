/// Told by a long piece of work how far it has come. The command draws a bar from it.
public final class Progress: Sendable {
  private let report: @Sendable (_ stage: String, _ done: UInt64, _ total: UInt64) -> Void

  /// - Parameter report: called with the name of the stage, and bytes done of bytes in all.
  public init(_ report: @escaping @Sendable (String, UInt64, UInt64) -> Void = { _, _, _ in }) { self.report = report }

  public func update(_ stage: String, _ done: UInt64, of total: UInt64) { report(stage, done, total) }
}

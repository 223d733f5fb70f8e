public final class SavedFiles { public init() {} }
public final class RestoredFiles {}
public struct ParkedArea: Sendable {}

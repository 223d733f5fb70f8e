public struct ParkedArea: Sendable {}

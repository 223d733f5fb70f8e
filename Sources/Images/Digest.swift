import CXXHash

/// A running checksum: XXH3 with 128 bits. It finds damage, not malice.
public struct Digest: ~Copyable {
  private let state: OpaquePointer

  public init() {
    guard let state = XXH3_createState() else { fatalError("out of memory for a checksum of 576 bytes") }
    XXH3_128bits_reset(state)
    self.state = state
  }

  deinit { _ = XXH3_freeState(state) }

  public mutating func update(_ bytes: UnsafeRawBufferPointer) {
    _ = XXH3_128bits_update(state, bytes.baseAddress, bytes.count)
  }

  /// 32 hexadecimal digits.
  public borrowing func text() -> String {
    let value = XXH3_128bits_digest(state)
    return Self.padded(value.high64) + Self.padded(value.low64)
  }

  private static func padded(_ value: UInt64) -> String {
    let digits = String(value, radix: 16)
    return String(repeating: "0", count: 16 - digits.count) + digits
  }

  public static func of(_ bytes: UnsafeRawBufferPointer) -> String {
    let value = XXH3_128bits(bytes.baseAddress, bytes.count)
    return padded(value.high64) + padded(value.low64)
  }
}

import CLinux

/// Reads the numbers and words of a /proc file from its bytes, without making strings of them.
///
/// It borrows the bytes: the buffer must outlive it.
public struct TextScanner {
  private let bytes: UnsafeRawBufferPointer
  public private(set) var position = 0

  public init(_ bytes: UnsafeRawBufferPointer) { self.bytes = bytes }

  public var isAtEnd: Bool { position >= bytes.count }
  /// At the end, or at the byte 0 that ends a C string.
  public var isAtZero: Bool { isAtEnd || bytes[position] == 0 }
  public var current: UInt8? { isAtEnd ? nil : bytes[position] }

  public mutating func skip(_ count: Int = 1) { position = Swift.min(position + count, bytes.count) }

  public mutating func skipSpaces() {
    while position < bytes.count, bytes[position] == 0x20 || bytes[position] == 0x09 { position += 1 }
  }

  /// Skips the rest of the line and its end.
  public mutating func skipLine() {
    position = endOfLine
    skip()
  }

  /// True, and past it, where the next bytes are `text`.
  public mutating func accept(_ text: StaticString) -> Bool {
    let count = text.utf8CodeUnitCount
    guard position + count <= bytes.count else { return false }
    for index in 0..<count where bytes[position + index] != text.utf8Start[index] { return false }
    position += count
    return true
  }

  /// A decimal number, with a sign or not.
  public mutating func decimal() -> Int64? {
    var index = position
    let negative = index < bytes.count && bytes[index] == 0x2d
    if negative { index += 1 }
    let first = index
    var value: UInt64 = 0
    while index < bytes.count, case let digit = bytes[index] &- 0x30, digit < 10 {
      value = value &* 10 &+ UInt64(digit)
      index += 1
    }
    guard index > first else { return nil }
    position = index
    return negative ? -Int64(bitPattern: value) : Int64(bitPattern: value)
  }

  /// A number of base 16 without a prefix.
  public mutating func hexadecimal() -> UInt64? { number(bitsPerDigit: 4) }

  /// A number of base 8.
  public mutating func octal() -> UInt64? { number(bitsPerDigit: 3) }

  private mutating func number(bitsPerDigit: UInt64) -> UInt64? {
    let first = position
    var value: UInt64 = 0
    while position < bytes.count {
      let byte = bytes[position]
      let digit: UInt8
      switch byte {
      case 0x30...0x39: digit = byte - 0x30
      case 0x61...0x66: digit = byte - 0x61 + 10
      case 0x41...0x46: digit = byte - 0x41 + 10
      default: digit = 255
      }
      guard UInt64(digit) < 1 << bitsPerDigit else { break }
      value = value << bitsPerDigit | UInt64(digit)
      position += 1
    }
    return position > first ? value : nil
  }

  /// The bytes up to the end of the line, not past it.
  public func restOfLine() -> UnsafeRawBufferPointer {
    UnsafeRawBufferPointer(rebasing: bytes[position..<endOfLine])
  }

  private var endOfLine: Int {
    guard let start = bytes.baseAddress, let found = memchr(start + position, 0x0a, bytes.count - position) else {
      return bytes.count
    }
    return UnsafeRawPointer(found) - start
  }

  /// The bytes up to the next space or end of line, and past them.
  public mutating func word() -> UnsafeRawBufferPointer {
    let first = position
    while position < bytes.count, bytes[position] != 0x20, bytes[position] != 0x0a, bytes[position] != 0x09 {
      position += 1
    }
    return UnsafeRawBufferPointer(rebasing: bytes[first..<position])
  }
}

import Linux
import SystemPackage

/// A run of system calls for a target to make, one after another, with the data they need. See `Workspace`.
///
/// On the wire a call is a record of eight words: number, six arguments, result. The data follows the records.
public struct SyscallProgram: Sendable {
  /// An argument of a call.
  public struct Argument: ExpressibleByIntegerLiteral, Sendable {
    var word: UInt64
    var isDataOffset = false

    public init(integerLiteral value: Int64) { word = UInt64(bitPattern: value) }
    public init(_ value: some BinaryInteger) { word = UInt64(truncatingIfNeeded: value) }
    /// The address, in the target, of the program's data at `offset`.
    public static func data(_ offset: Int) -> Argument {
      var argument = Argument(offset)
      argument.isDataOffset = true
      return argument
    }
  }

  static let recordSize = 64

  /// Eight words for each call.
  private(set) var records: [UInt64] = []
  private(set) var data: [UInt8] = []
  /// Words of the data that hold an offset into the data, to be made an address.
  private var dataPointers: [Int] = []
  /// Indices of the words among `records` that hold an offset into the data.
  private var argumentPointers: [Int] = []

  /// What calls must return, for those whose success shows in more than the lack of an error.
  private var expectations: [Int: Int64] = [:]

  public init() {}

  /// Notes what the call at `index` must return.
  public mutating func expect(_ result: Int64, of index: Int) { expectations[index] = result }
  public var allExpectations: [Int: Int64] { expectations }

  /// How many calls it makes.
  public var count: Int { records.count / 8 }
  public var isEmpty: Bool { records.isEmpty }
  /// What it takes in the target, in bytes.
  public var size: Int { records.count * 8 + data.count }

  /// Adds a call.
  ///
  /// - Parameter tolerant: go on with the next call if this one fails.
  /// - Returns: its index, under which `Results` has what it returned.
  @discardableResult
  public mutating func call(
    _ number: Int32, _ a: Argument = 0, _ b: Argument = 0, _ c: Argument = 0, _ d: Argument = 0, _ e: Argument = 0,
    _ f: Argument = 0, tolerant: Bool = false
  ) -> Int {
    let index = count
    let first = records.count
    records.append(UInt64(number) | (tolerant ? 1 << 32 : 0))
    records.append(a.word)
    records.append(b.word)
    records.append(c.word)
    records.append(d.word)
    records.append(e.word)
    records.append(f.word)
    records.append(UInt64(bitPattern: Results.notRun))
    if a.isDataOffset { argumentPointers.append(first + 1) }
    if b.isDataOffset { argumentPointers.append(first + 2) }
    if c.isDataOffset { argumentPointers.append(first + 3) }
    if d.isDataOffset { argumentPointers.append(first + 4) }
    if e.isDataOffset { argumentPointers.append(first + 5) }
    if f.isDataOffset { argumentPointers.append(first + 6) }
    return index
  }

  /// Reserves `count` bytes of zeros in the data, on a boundary of 16 bytes; gives their offset.
  public mutating func reserve(_ count: Int) -> Int {
    while data.count % 16 != 0 { data.append(0) }
    let offset = data.count
    data.append(contentsOf: repeatElement(0, count: count))
    return offset
  }

  /// Adds the bytes of `value` to the data.
  public mutating func store<Value: BitwiseCopyable>(_ value: Value) -> Argument {
    withUnsafeBytes(of: value) { .data(store(bytes: $0)) }
  }

  /// Adds a C string to the data.
  public mutating func store(string: String) -> Argument {
    let offset = reserve(0)
    data.append(contentsOf: string.utf8)
    data.append(0)
    return .data(offset)
  }

  /// Adds bytes to the data; gives their offset.
  public mutating func store(bytes: UnsafeRawBufferPointer) -> Int {
    let offset = reserve(0)
    data.append(contentsOf: bytes)
    return offset
  }

  public mutating func store(bytes: [UInt8]) -> Int { bytes.withUnsafeBytes { store(bytes: $0) } }

  /// Overwrites the data at `offset`.
  public mutating func patch<Value: BitwiseCopyable>(_ offset: Int, _ value: Value) {
    withUnsafeBytes(of: value) { bytes in
      for index in bytes.indices { data[offset + index] = bytes[index] }
    }
  }

  /// Writes the address that the data at `target` will have into the eight bytes of data at `offset`.
  public mutating func link(from offset: Int, to target: Int) {
    patch(offset, UInt64(target))
    dataPointers.append(offset)
  }

  /// Everything as it shall lie at `address` of the target.
  func placed(at address: UInt64) -> [UInt8] {
    let dataAddress = address + UInt64(records.count * 8)
    return [UInt8](unsafeUninitializedCapacity: size) { buffer, used in
      let bytes = UnsafeMutableRawBufferPointer(start: buffer.baseAddress, count: size)
      records.withUnsafeBytes { bytes.copyMemory(from: $0) }
      let target = UnsafeMutableRawBufferPointer(rebasing: bytes[(records.count * 8)...])
      data.withUnsafeBytes { if !$0.isEmpty { target.copyMemory(from: $0) } }
      for index in argumentPointers {
        bytes.storeBytes(of: records[index] + dataAddress, toByteOffset: index * 8, as: UInt64.self)
      }
      for offset in dataPointers {
        let value = target.loadUnaligned(fromByteOffset: offset, as: UInt64.self)
        target.storeBytes(of: value + dataAddress, toByteOffset: offset, as: UInt64.self)
      }
      used = size
    }
  }

  /// The number of the call at `index`.
  func number(of index: Int) -> Int32 { Int32(truncatingIfNeeded: records[index * 8] & 0xffff_ffff) }

  /// The call at `index`, for an error message: `mmap(0x7f0000000000, 0x1000, ...)`.
  func describe(_ index: Int) -> String {
    let arguments = (1...6).map { "0x" + String(records[index * 8 + $0], radix: 16) }.joined(separator: ", ")
    return "system call \(number(of: index))(\(arguments))"
  }
}

/// What a program's calls returned and wrote.
public struct Results: Sendable {
  /// The result of a call that was not reached.
  static let notRun: Int64 = .min

  private let bytes: [UInt8]
  private let dataOffset: Int

  init(bytes: [UInt8], records: Int) {
    self.bytes = bytes
    dataOffset = records * SyscallProgram.recordSize
  }

  /// What the call at `index` returned: a value, or -errno.
  public subscript(index: Int) -> Int64 {
    bytes.withUnsafeBytes { $0.loadUnaligned(fromByteOffset: index * SyscallProgram.recordSize + 56, as: Int64.self) }
  }

  /// The value at `offset` of the data.
  public func load<Value: BitwiseCopyable>(_ offset: Int, as type: Value.Type) -> Value {
    bytes.withUnsafeBytes { $0.loadUnaligned(fromByteOffset: dataOffset + offset, as: type) }
  }

  /// The bytes of the data in `range`.
  public func data(_ range: Range<Int>) -> ArraySlice<UInt8> {
    bytes[(dataOffset + range.lowerBound)..<(dataOffset + range.upperBound)]
  }
}

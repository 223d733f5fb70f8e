import CLinux
import Images
import Linux
import Testing

@testable import Torpor

/// How descriptors get from where they arrive to their numbers.
@Suite struct DescriptorTableTests {
  /// The calls of a script, played on a table.
  private func play(_ numbers: [UInt32]) -> [UInt32: Int]? {
    let rows = numbers.map { number in
      FdinfoEntry.with { ($0.id, $0.flags, $0.type, $0.fd) = (number, 0, .reg, number) }
    }
    var table: [Int: Int] = [:]
    for index in numbers.indices { table[index] = index }
    for move in RestoredFiles.moves(rows) {
      guard let file = table.removeValue(forKey: move.from), table[Int(move.to)] == nil else { return nil }
      table[Int(move.to)] = file
    }
    return Dictionary(uniqueKeysWithValues: table.map { (UInt32($0.key), $0.value) })
  }

  @Test(arguments: [
    [0, 1, 2], [0, 2, 3, 4], [1, 2, 3], [5, 6, 7], [3, 200, 1000], [0, 1, 5, 6, 7, 8, 9, 10], [], [7], [1], [2, 3, 4, 5],
  ] as [[UInt32]])
  func everyDescriptorFindsItsPlace(_ numbers: [UInt32]) throws {
    let table = try #require(play(numbers))
    #expect(table.count == numbers.count)
    for (index, number) in numbers.enumerated() { #expect(table[number] == index) }
  }
}

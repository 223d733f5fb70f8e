/// Lines with columns of equal width; numbers stand at the right of theirs.
struct Table {
  enum Alignment {
    case left
    case right
  }

  private let alignments: [Alignment]
  private var rows: [[String]]

  init(_ columns: (String, Alignment)...) {
    alignments = columns.map(\.1)
    rows = [columns.map(\.0)]
  }

  mutating func add(_ cells: String...) { rows.append(cells) }

  /// All lines, the one with the titles first.
  var lines: [String] {
    let widths = alignments.indices.map { column in rows.map { $0[column].count }.max() ?? 0 }
    return rows.map { row in
      var line = ""
      for (column, cell) in row.enumerated() {
        let space = String(repeating: " ", count: widths[column] - cell.count)
        let isLast = column == row.count - 1
        line += alignments[column] == .right ? space + cell : isLast ? cell : cell + space
        if !isLast { line += "  " }
      }
      return line
    }
  }
}

extension String {
  /// The text without what would steer the terminal: names in an image are whatever its writer put there.
  var printable: String {
    String(String.UnicodeScalarView(unicodeScalars.map { $0.value < 0x20 || (0x7f..<0xa0).contains($0.value) ? "?" : $0 }))
  }
}

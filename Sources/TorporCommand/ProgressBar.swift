import CLinux
import Linux
import Torpor

/// A bar on the terminal with rate and time left, for work that takes longer than a second.
final class ProgressBar: @unchecked Sendable {
  // Told from one thread at a time: the saver's or the verifier's.
  private let start = Clock.monotonic()
  private var stage = ""
  private var stageStart = 0.0
  private var last = 0.0
  private var isShown = false
  private let isEnabled: Bool

  init(enabled: Bool) { isEnabled = enabled && isatty(2) == 1 }

  var progress: Progress { Progress { [self] stage, done, total in show(stage, done, total) } }

  private func show(_ stage: String, _ done: UInt64, _ total: UInt64) {
    guard isEnabled else { return }
    let now = Clock.monotonic()
    if stage != self.stage { (self.stage, stageStart) = (stage, now) }
    guard now - start > 1, now - last > 0.1 else { return }
    last = now
    isShown = true
    let seconds = now - stageStart
    let rate = seconds > 0 ? Double(done) / seconds : 0
    Console.write("\r" + Self.line(stage, done, total, rate, columns: columns()) + "\u{1b}[K", to: 2)
  }

  /// What stands on the terminal: `Saving  [####----] 1.2 GiB of 2.4 GiB, 600 MiB/s, 2.0 s left`.
  static func line(_ stage: String, _ done: UInt64, _ total: UInt64, _ rate: Double, columns: Int) -> String {
    let speed = "\(Console.size(UInt64(rate)))/s"
    guard total > 0 else { return "\(stage)  \(Console.size(done)), \(speed)" }
    let done = min(done, total)
    var text = "\(Console.size(done)) of \(Console.size(total)), \(speed)"
    if rate > 0 { text += ", \(Console.duration(Double(total - done) / rate)) left" }
    let width = min(30, columns - stage.count - text.count - 6)
    guard width > 4 else { return "\(stage)  \(text)" }
    let filled = Int(Double(done) / Double(total) * Double(width))
    let bar = String(repeating: "#", count: filled) + String(repeating: "-", count: width - filled)
    return "\(stage)  [\(bar)] \(text)"
  }

  private func columns() -> Int {
    var size = winsize()
    let result = withUnsafeMutablePointer(to: &size) {
      clinux_syscall(Int(SYS_ioctl), 2, Int(TIOCGWINSZ), Int(bitPattern: $0), 0, 0, 0)
    }
    return result == 0 && size.ws_col > 0 ? Int(size.ws_col) : 80
  }

  /// Takes the bar off the screen.
  func finish() {
    if isShown { Console.write("\r\u{1b}[K", to: 2) }
  }
}

import Glibc

/// What the tests need of the file system, on bare calls: nothing here opens a descriptor that a child could inherit.
enum Files {
  static func exists(_ path: String) -> Bool { access(path, F_OK) == 0 }

  static func bytes(_ path: String) -> [UInt8]? {
    let descriptor = open(path, O_RDONLY | O_CLOEXEC)
    guard descriptor >= 0 else { return nil }
    defer { close(descriptor) }
    var content: [UInt8] = []
    var buffer = [UInt8](repeating: 0, count: 65536)
    while true {
      let count = read(descriptor, &buffer, buffer.count)
      if count < 0 { return nil }
      if count == 0 { return content }
      content += buffer[..<count]
    }
  }

  static func text(_ path: String) -> String? {
    bytes(path).map { String(decoding: $0, as: UTF8.self) }
  }

  static func write(_ path: String, _ content: some Collection<UInt8>, mode: mode_t = 0o644) throws {
    let descriptor = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode)
    guard descriptor >= 0 else { throw TestFailure("open \(path): \(errorText())") }
    defer { close(descriptor) }
    var left = Array(content)[...]
    while !left.isEmpty {
      let count = left.withUnsafeBytes { Glibc.write(descriptor, $0.baseAddress, $0.count) }
      guard count > 0 else { throw TestFailure("write \(path): \(errorText())") }
      left = left.dropFirst(count)
    }
  }

  static func write(_ path: String, text: String, mode: mode_t = 0o644) throws {
    try write(path, text.utf8, mode: mode)
  }

  static func copy(_ from: String, to: String) throws {
    guard let content = bytes(from) else { throw TestFailure("cannot read \(from): \(errorText())") }
    try write(to, content, mode: 0o755)
  }

  /// The names in a folder, sorted; none when there is no such folder.
  static func names(in folder: String) -> [String] {
    guard let stream = opendir(folder) else { return [] }
    defer { closedir(stream) }
    var names: [String] = []
    while let entry = readdir(stream) {
      let name = withUnsafePointer(to: &entry.pointee.d_name) {
        $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
      }
      if name != "." && name != ".." { names.append(name) }
    }
    return names.sorted()
  }

  static func link(_ path: String) -> String? {
    var buffer = [UInt8](repeating: 0, count: 4096)
    let count = buffer.withUnsafeMutableBytes { bytes -> Int in
      guard let start = bytes.baseAddress else { return -1 }
      return readlink(path, start.assumingMemoryBound(to: CChar.self), bytes.count)
    }
    return count < 0 ? nil : String(decoding: buffer[..<count], as: UTF8.self)
  }

  static func status(_ path: String) -> stat? {
    var status = stat()
    return lstat(path, &status) == 0 ? status : nil
  }

  static func size(_ path: String) -> Int { status(path).map { Int($0.st_size) } ?? -1 }

  static func isFolder(_ path: String) -> Bool {
    status(path).map { $0.st_mode & S_IFMT == S_IFDIR } ?? false
  }

  static func makeFolder(_ path: String, mode: mode_t = 0o755) throws {
    guard mkdir(path, mode) == 0, chmod(path, mode) == 0 else {
      throw TestFailure("mkdir \(path): \(errorText())")
    }
  }

  static func remove(_ path: String) {
    if isFolder(path) {
      for name in names(in: path) { remove("\(path)/\(name)") }
      rmdir(path)
    } else {
      unlink(path)
    }
  }

  /// Every regular file below a folder, as paths relative to it.
  static func tree(_ folder: String) -> [String] {
    names(in: folder).flatMap { name in
      isFolder("\(folder)/\(name)") ? tree("\(folder)/\(name)").map { "\(name)/\($0)" } : [name]
    }
  }

  static func copyTree(_ from: String, to: String) throws {
    try makeFolder(to)
    for name in names(in: from) {
      if isFolder("\(from)/\(name)") {
        try copyTree("\(from)/\(name)", to: "\(to)/\(name)")
      } else {
        try copy("\(from)/\(name)", to: "\(to)/\(name)")
      }
    }
  }
}

struct TestFailure: Error, CustomStringConvertible {
  let description: String
  init(_ description: String) { self.description = description }
}

func errorText(_ code: Int32 = errno) -> String { String(cString: strerror(code)) }

/// Asks again and again until the answer is yes or the time is over; returns the last answer.
func eventually(
  within limit: Duration = .seconds(10), every pause: Duration = .milliseconds(5), _ condition: () throws -> Bool
) async rethrows -> Bool {
  let end = ContinuousClock.now + limit
  while true {
    if try condition() { return true }
    if ContinuousClock.now > end { return false }
    try? await Task.sleep(for: pause)
  }
}

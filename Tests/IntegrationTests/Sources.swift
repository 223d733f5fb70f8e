import Glibc

/// The programs that tests bring along for the languages of the machine.
enum Sources {
  /// Digits of pi in three threads, printed at the end by the main one.
  static let digits = """
    import sys, threading
    def digits(count):
        q, r, t, k, n, l, out = 1, 0, 1, 1, 3, 3, []
        while len(out) < count:
            if 4 * q + r - t < n * t:
                out.append(str(n))
                nr = 10 * (r - n * t)
                n = ((10 * (3 * q + r)) // t) - 10 * n
                q *= 10
                r = nr
            else:
                nr = (2 * q + r) * l
                nn = (q * (7 * k) + 2 + (r * l)) // (t * l)
                q *= k; t *= l; l += 2; k += 1; n = nn; r = nr
        return ''.join(out)
    results = [None] * 3
    def work(i):
        for _ in range(12):
            results[i] = digits(int(sys.argv[1]) + i)
    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    for r in results: print(r)
    """

  static let go = """
    package main

    import ("fmt"; "sync"; "time")

    func main() {
      var mutex sync.Mutex
      work := 0
      for i := 0; i < 8; i++ {
        go func() {
          for {
            x := 0
            for k := 0; k < 100000; k++ { x += k }
            mutex.Lock(); work += x & 1; mutex.Unlock()
            time.Sleep(time.Millisecond)
          }
        }()
      }
      count := 0
      for range time.NewTicker(10 * time.Millisecond).C {
        count++
        fmt.Println("count", count)
      }
    }
    """

  /// Counts in one task while others compute.
  static let swift = """
    import Glibc

    @main struct Counter {
      static func main() async throws {
        setvbuf(stdout, nil, Int32(_IOLBF), 0)
        for seed in 0..<3 {
          Task.detached {
            var value = UInt64(seed)
            while true {
              for _ in 0..<10_000 { value = value &* 6364136223846793005 &+ 1442695040888963407 }
              if value == 0 { print("never") }
              await Task.yield()
              try await Task.sleep(for: .milliseconds(1))
            }
          }
        }
        var count = 0
        while true {
          try await Task.sleep(for: .milliseconds(10))
          count += 1
          print("count \\(count)")
        }
      }
    }
    """

  static let java = """
    import java.util.concurrent.*;

    public class Counter {
      public static void main(String[] arguments) throws Exception {
        var map = new ConcurrentHashMap<Integer, byte[]>();
        for (int t = 0; t < 3; t++) {
          int n = t;
          new Thread(() -> {
            for (int i = 0; ; i++) {
              map.put((i * 7 + n) % 5000, new byte[1000]);
              if (i % 1000 == 0) try { Thread.sleep(5); } catch (InterruptedException e) { return; }
            }
          }).start();
        }
        for (int count = 1; ; count++) {
          Thread.sleep(10);
          System.out.println("count " + count);
          if (count % 50 == 0) System.gc();
        }
      }
    }
    """
}

/// TCP ports for servers of the tests.
enum FreePort {
  /// A free TCP port of 127.0.0.1, below those that the kernel hands out: nobody gets it while a job that has it is away.
  static func find() throws -> Int {
    for _ in 0..<100 {
      let port = Int.random(in: 12000..<32000)
      if try isFree(port) { return port }
    }
    throw TestFailure("no free TCP port was found")
  }

  private static func isFree(_ port: Int) throws -> Bool {
    let descriptor = socket(AF_INET, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
    guard descriptor >= 0 else { throw TestFailure("socket: \(errorText())") }
    defer { close(descriptor) }
    var address = sockaddr_in()
    address.sin_family = sa_family_t(AF_INET)
    address.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
    address.sin_port = UInt16(port).bigEndian
    return withUnsafeMutablePointer(to: &address) { pointer in
      pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { name in
        bind(descriptor, name, socklen_t(MemoryLayout<sockaddr_in>.size)) == 0
      }
    }
  }

  /// Whether somebody has a connection at this port that its owner has not closed yet. (ESTABLISHED, CLOSE_WAIT)
  static func isConnected(_ port: Int) -> Bool {
    (Files.text("/proc/net/tcp") ?? "").split(separator: "\n").dropFirst().contains { line in
      let words = line.split(separator: " ")
      guard words.count > 3, let local = words[1].split(separator: ":").last else { return false }
      return Int(local, radix: 16) == port && (words[3] == "01" || words[3] == "08")
    }
  }
}

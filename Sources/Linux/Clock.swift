import CLinux

/// Time, as the kernel's clocks have it. clock_gettime(2)
public enum Clock {
  /// Seconds of CLOCK_MONOTONIC.
  public static func monotonic() -> Double { Double(nanoseconds(CLOCK_MONOTONIC)) / 1e9 }

  /// Nanoseconds of a clock.
  public static func nanoseconds(_ clock: Int32) -> UInt64 {
    var time = timespec()
    clock_gettime(clock, &time)
    return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
  }
}

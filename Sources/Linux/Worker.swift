import CLinux

/// A thread that does pieces of work one after another, in the order in which they are given to it.
///
/// The first failure is kept, and everything after it is skipped; `wait` throws it.
public final class Worker: @unchecked Sendable {
  // The queue, the counters and the failure are only touched with the mutex held.
  private let mutex = UnsafeMutablePointer<pthread_mutex_t>.allocate(capacity: 1)
  private let changed = UnsafeMutablePointer<pthread_cond_t>.allocate(capacity: 1)
  private var queue: [@Sendable () throws(Failure) -> Void] = []
  private var given = 0
  private var done = 0
  private var isEnding = false
  private var failure: Failure?
  private var thread = pthread_t()

  public init() {
    pthread_mutex_init(mutex, nil)
    pthread_cond_init(changed, nil)
    let context = Unmanaged.passUnretained(self).toOpaque()
    pthread_create(
      &thread, nil,
      { context in
        if let context { Unmanaged<Worker>.fromOpaque(context).takeUnretainedValue().work() }
        return nil
      }, context)
  }

  deinit {
    pthread_mutex_lock(mutex)
    isEnding = true
    pthread_cond_broadcast(changed)
    pthread_mutex_unlock(mutex)
    pthread_join(thread, nil)
    pthread_cond_destroy(changed)
    pthread_mutex_destroy(mutex)
    changed.deallocate()
    mutex.deallocate()
  }

  /// Gives it a piece of work.
  ///
  /// - Returns: its number, for `wait`.
  @discardableResult
  public func submit(_ piece: @escaping @Sendable () throws(Failure) -> Void) -> Int {
    pthread_mutex_lock(mutex)
    defer { pthread_mutex_unlock(mutex) }
    queue.append(piece)
    given += 1
    pthread_cond_broadcast(changed)
    return given
  }

  /// Waits until the piece with this number, or every piece given so far, is done.
  public func wait(for piece: Int? = nil) throws(Failure) {
    pthread_mutex_lock(mutex)
    while done < piece ?? given { pthread_cond_wait(changed, mutex) }
    let failure = failure
    pthread_mutex_unlock(mutex)
    if let failure { throw failure }
  }

  private func work() {
    pthread_mutex_lock(mutex)
    while true {
      while queue.isEmpty && !isEnding { pthread_cond_wait(changed, mutex) }
      if queue.isEmpty { break }
      let piece = queue.removeFirst()
      let skip = failure != nil
      pthread_mutex_unlock(mutex)
      var problem: Failure?
      if !skip { do throws(Failure) { try piece() } catch { problem = error } }
      pthread_mutex_lock(mutex)
      failure = failure ?? problem
      done += 1
      pthread_cond_broadcast(changed)
    }
    pthread_mutex_unlock(mutex)
  }
}

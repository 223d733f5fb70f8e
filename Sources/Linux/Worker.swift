import CLinux

/// A thread that does pieces of work one after another, in the order in which they are given to it.
///
/// The first failure is kept, and everything after it is skipped; `wait` throws it. At the end of its life what has been
/// given to it is done first.
public final class Worker: Sendable {
  private let queue = WorkQueue()
  private let thread: pthread_t

  public init() {
    var thread = pthread_t()
    // The thread holds the queue, not the worker: whose end it would otherwise be itself.
    pthread_create(
      &thread, nil,
      { context in
        if let context { Unmanaged<WorkQueue>.fromOpaque(context).takeRetainedValue().work() }
        return nil
      }, Unmanaged.passRetained(queue).toOpaque())
    self.thread = thread
  }

  deinit {
    queue.end()
    pthread_join(thread, nil)
  }

  /// Gives it a piece of work.
  ///
  /// - Returns: its number, for `wait`.
  @discardableResult
  public func submit(_ piece: @escaping @Sendable () throws(Failure) -> Void) -> Int { queue.add(piece) }

  /// Waits until the piece with this number, or every piece given so far, is done.
  public func wait(for piece: Int? = nil) throws(Failure) { try queue.wait(for: piece) }
}

/// What a worker and its thread share: all of it is only touched with the mutex held.
private final class WorkQueue: @unchecked Sendable {
  private let mutex = UnsafeMutablePointer<pthread_mutex_t>.allocate(capacity: 1)
  private let changed = UnsafeMutablePointer<pthread_cond_t>.allocate(capacity: 1)
  private var pieces: [@Sendable () throws(Failure) -> Void] = []
  private var given = 0
  private var done = 0
  private var isEnding = false
  private var failure: Failure?

  init() {
    pthread_mutex_init(mutex, nil)
    pthread_cond_init(changed, nil)
  }

  deinit {
    pthread_cond_destroy(changed)
    pthread_mutex_destroy(mutex)
    changed.deallocate()
    mutex.deallocate()
  }

  func add(_ piece: @escaping @Sendable () throws(Failure) -> Void) -> Int {
    pthread_mutex_lock(mutex)
    defer { pthread_mutex_unlock(mutex) }
    pieces.append(piece)
    given += 1
    pthread_cond_broadcast(changed)
    return given
  }

  func wait(for piece: Int?) throws(Failure) {
    pthread_mutex_lock(mutex)
    while done < piece ?? given { pthread_cond_wait(changed, mutex) }
    let failure = failure
    pthread_mutex_unlock(mutex)
    if let failure { throw failure }
  }

  func end() {
    pthread_mutex_lock(mutex)
    isEnding = true
    pthread_cond_broadcast(changed)
    pthread_mutex_unlock(mutex)
  }

  func work() {
    pthread_mutex_lock(mutex)
    while true {
      while pieces.isEmpty && !isEnding { pthread_cond_wait(changed, mutex) }
      if pieces.isEmpty { break }
      let piece = pieces.removeFirst()
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

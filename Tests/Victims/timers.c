// Timers of timer_create: every kind of notification, gaps in their numbers, a second thread that is told, more of them than
// one program of calls can ask about. Each tick must come to the right thread with the right value.
#include "victim.h"

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

enum { MANY = 150 };
struct kernel_timer {
  int id;
};
static atomic_ulong ticks, thread_ticks, late_ticks;
static pid_t second_thread;
static int periodic, removed, for_thread, silent, late, disarmed, many[MANY];
static struct timespec started;

static int make(clockid_t clock, int notify, int signal, int value, pid_t thread) {
  struct sigevent event = {.sigev_notify = notify, .sigev_signo = signal};
  event.sigev_value.sival_int = value;
  if (notify == SIGEV_THREAD_ID) event.sigev_notify_thread_id = thread;
  int id = -1;
  MUST(syscall(SYS_timer_create, clock, &event, &id));
  return id;
}

static void set(int id, long first_ms, long interval_ms) {
  struct itimerspec value = {{interval_ms / 1000, interval_ms % 1000 * 1000000}, {first_ms / 1000, first_ms % 1000 * 1000000}};
  MUST(syscall(SYS_timer_settime, id, 0, &value, NULL));
}

static struct itimerspec left(int id) {
  struct itimerspec value = {{-1, -1}, {-1, -1}};
  if (syscall(SYS_timer_gettime, id, &value) != 0) fail("timer %d: %s", id, strerror(errno));
  return value;
}

static void on_tick(int signal, siginfo_t *info, void *context) {
  (void)context;
  int saved = errno;
  if (info->si_code != SI_TIMER) fail("signal %d came with code %d", signal, info->si_code);
  switch (info->si_value.sival_int) {
  case 111: atomic_fetch_add(&ticks, 1); break;
  case 222:
    CHECK_NUMBER("the thread that is told", second_thread, syscall(SYS_gettid));
    atomic_fetch_add(&thread_ticks, 1);
    break;
  case 333: atomic_fetch_add(&late_ticks, 1); break;
  default: fail("a tick came with the value %d", info->si_value.sival_int);
  }
  errno = saved;
}

/// The signals come to two threads, whose sleeps they cut short, as is right; one of these is told by name.
static void *told(void *argument) {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGRTMIN);
  sigaddset(&signals, SIGRTMIN + 1);
  if (argument != NULL) {
    second_thread = (pid_t)syscall(SYS_gettid);
    atomic_store((atomic_int *)argument, 1);
  }
  MUST_ZERO(pthread_sigmask(SIG_UNBLOCK, &signals, NULL));
  while (!finish_requested()) usleep(5000);
  MUST_ZERO(pthread_sigmask(SIG_BLOCK, &signals, NULL));
  return NULL;
}

static void check_numbers(void) {
  CHECK_NUMBER("interval of the periodic timer in ms", 10, left(periodic).it_interval.tv_nsec / 1000000);
  CHECK_NUMBER("interval of the thread's timer in ms", 15, left(for_thread).it_interval.tv_nsec / 1000000);
  struct itimerspec value = left(silent);
  if (value.it_value.tv_sec < 4900 || value.it_value.tv_sec >= 5000) fail("the silent timer has %ld s left of 5000", (long)value.it_value.tv_sec);
  value = left(disarmed);
  CHECK_TRUE("a timer that was never set", value.it_value.tv_sec == 0 && value.it_value.tv_nsec == 0);
  for (int i = 0; i < MANY; i += 37) CHECK_NUMBER("time left of one of many, in hours", (100 + i) - 1, left(many[i]).it_value.tv_sec / 3600);
  struct itimerspec none;
  CHECK_NUMBER("a timer that was deleted", -1, syscall(SYS_timer_gettime, removed, &none));
}

int main(void) {
  victim_start();
  struct sigaction action = {.sa_sigaction = on_tick, .sa_flags = SA_SIGINFO | SA_RESTART};
  MUST(sigaction(SIGRTMIN, &action, NULL));
  MUST(sigaction(SIGRTMIN + 1, &action, NULL));
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGRTMIN);
  sigaddset(&signals, SIGRTMIN + 1);
  MUST_ZERO(pthread_sigmask(SIG_BLOCK, &signals, NULL));
  static atomic_int is_there;
  pthread_t thread, other;
  MUST_ZERO(pthread_create(&thread, NULL, told, &is_there));
  MUST_ZERO(pthread_create(&other, NULL, told, NULL));
  while (!atomic_load(&is_there)) sleep_checked(1000000);
  removed = make(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGRTMIN, 999, 0);
  periodic = make(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGRTMIN, 111, 0);
  MUST(syscall(SYS_timer_delete, removed));
  for_thread = make(CLOCK_REALTIME, SIGEV_THREAD_ID, SIGRTMIN + 1, 222, second_thread);
  silent = make(CLOCK_BOOTTIME, SIGEV_NONE, 0, 0, 0);
  late = make(CLOCK_REALTIME, SIGEV_SIGNAL, SIGRTMIN, 333, 0);
  disarmed = make(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGRTMIN, 444, 0);
  for (int i = 0; i < MANY; i++) {
    many[i] = make(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGRTMIN, 555, 0);
    set(many[i], (100 + i) * 3600L * 1000, 0);
  }
  set(periodic, 10, 10);
  set(for_thread, 15, 15);
  set(silent, 5000000, 0);
  set(late, 2500, 0);
  MUST(clock_gettime(CLOCK_MONOTONIC, &started));
  report("READY %d", getpid());
  unsigned long last = 0, last_of_thread = 0, rounds = 0;
  while (!finish_requested()) {
    tick();
    if (++rounds % 50 == 0) {
      check_numbers();
      if (atomic_load(&ticks) == last) fail("no tick in the last 50 rounds");
      if (atomic_load(&thread_ticks) == last_of_thread) fail("no tick for the thread in the last 50 rounds");
      last = atomic_load(&ticks), last_of_thread = atomic_load(&thread_ticks);
    }
  }
  MUST_ZERO(pthread_join(thread, NULL));
  MUST_ZERO(pthread_join(other, NULL));
  check_numbers();
  // The late one comes once. What is told to a thread that has ended is told to nobody.
  MUST(syscall(SYS_timer_delete, periodic));
  MUST_ZERO(pthread_sigmask(SIG_UNBLOCK, &signals, NULL));
  for (int i = 0; i < 400 && atomic_load(&late_ticks) == 0; i++) usleep(10000);
  usleep(50000);
  CHECK_NUMBER("ticks of the timer that is set once", 1, atomic_load(&late_ticks));
  // A new timer gets a number of its own.
  int fresh = make(CLOCK_MONOTONIC, SIGEV_NONE, 0, 0, 0);
  if (fresh == silent || fresh == late || fresh == disarmed || fresh == for_thread) fail("a new timer got the number %d of another", fresh);
  return victim_end();
}

// Threads, each with everything the kernel and the C library keep per thread: ID, name, TLS, signal mask, alternate stack, robust
// list, rseq area, clear_child_tid. Usage: threads [N]
#include "victim.h"
#include <sys/rseq.h>

enum { MAX_THREADS = 2000 };

struct worker {
  pthread_t handle;
  int index;
  pid_t tid;
  void *stack_for_signals;
  pthread_mutex_t held; // robust, held until the thread ends without unlocking it
  atomic_ulong count;
  uintptr_t local_address;
};

static struct worker workers[MAX_THREADS];
static int worker_count = 24;
static atomic_int ready_count;
static atomic_bool ending;
static __thread int tls_index = -1;
static __thread uint64_t tls_words[128];
static __thread uint64_t tls_zero[64];

// Pairs of threads that hand a token to and fro.
static pthread_mutex_t token_mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t token_moved = PTHREAD_COND_INITIALIZER;
static unsigned long token;

static sigset_t mask_of(int index) {
  sigset_t mask;
  sigemptyset(&mask);
  sigaddset(&mask, SIGRTMIN + index % 20);
  if (index % 2) sigaddset(&mask, SIGUSR1);
  if (index % 3 == 0) sigaddset(&mask, SIGUSR2);
  return mask;
}

static void name_of(int index, char *name) { snprintf(name, 16, "worker %d", index); }

static void check_rseq(int index) {
  if (__rseq_size == 0) return;
  volatile struct rseq *area = (volatile struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset);
  for (int attempt = 0; attempt < 100; attempt++) {
    unsigned before = 0, after = 0;
    syscall(SYS_getcpu, &before, NULL, NULL);
    unsigned seen = area->cpu_id;
    syscall(SYS_getcpu, &after, NULL, NULL);
    if (before != after) continue;
    if (seen != before) fail("rseq of thread %d: the area says CPU %d, the kernel %u", index, (int)seen, before);
    return;
  }
}

static void check_robust_list(int index, void *expected) {
  void *head = NULL;
  size_t length = 0;
  if (syscall(SYS_get_robust_list, 0, &head, &length) != 0) fail("get_robust_list of thread %d: %s", index, strerror(errno));
  else if (head != expected) fail("robust list of thread %d: expected %p, got %p", index, expected, head);
}

static void check_self(struct worker *self, uint64_t round) {
  int index = self->index;
  CHECK_NUMBER("gettid of a thread", self->tid, syscall(SYS_gettid));
  CHECK_NUMBER("TLS variable", index, tls_index);
  if (round % 8 != 0) return;
  check_pattern("TLS array", tls_words, sizeof tls_words, index);
  check_zero("TLS zeros", tls_zero, sizeof tls_zero);
  CHECK_TRUE("pthread_self", pthread_equal(pthread_self(), self->handle));
  char name[16] = "", expected[16];
  name_of(index, expected);
  prctl(PR_GET_NAME, name);
  CHECK_TEXT("thread name", expected, name);
  sigset_t now, wanted = mask_of(index);
  sigemptyset(&now);
  pthread_sigmask(SIG_SETMASK, NULL, &now);
  for (int signal = 1; signal <= 64; signal++)
    if (sigismember(&now, signal) == 1 && sigismember(&wanted, signal) != 1) fail("thread %d blocks signal %d, which it did not", index, signal);
    else if (sigismember(&now, signal) != 1 && sigismember(&wanted, signal) == 1) fail("thread %d no longer blocks signal %d", index, signal);
  stack_t stack;
  MUST(sigaltstack(NULL, &stack));
  if (index % 2 == 0) {
    CHECK_NUMBER("sigaltstack address", self->stack_for_signals, stack.ss_sp);
    CHECK_NUMBER("sigaltstack size", SIGSTKSZ, stack.ss_size);
    CHECK_NUMBER("sigaltstack flags", 0, stack.ss_flags);
  } else CHECK_NUMBER("sigaltstack flags of a thread without one", SS_DISABLE, stack.ss_flags);
  check_rseq(index);
}

static void *work(void *argument) {
  struct worker *self = argument;
  uint64_t local[32];
  fill_pattern(local, sizeof local, self->index + 1000);
  self->local_address = (uintptr_t)local;
  self->tid = syscall(SYS_gettid);
  tls_index = self->index;
  fill_pattern(tls_words, sizeof tls_words, self->index);
  char name[16];
  name_of(self->index, name);
  pthread_setname_np(pthread_self(), name);
  sigset_t mask = mask_of(self->index);
  pthread_sigmask(SIG_SETMASK, &mask, NULL);
  if (self->index % 2 == 0) {
    self->stack_for_signals = malloc(SIGSTKSZ);
    stack_t stack = {.ss_sp = self->stack_for_signals, .ss_size = SIGSTKSZ};
    MUST(sigaltstack(&stack, NULL));
  }
  void *robust = NULL;
  size_t robust_length;
  syscall(SYS_get_robust_list, 0, &robust, &robust_length);
  MUST_ZERO(pthread_mutex_lock(&self->held));
  atomic_fetch_add(&ready_count, 1);
  double sum = 0;
  uint64_t round = 0;
  while (!atomic_load(&ending)) {
    round++;
    switch (self->index % 4) {
    case 0: // busy, then a short sleep
      for (int i = 1; i < 2000; i++) sum += 1.0 / i / i;
      sleep_checked(1000000);
      break;
    case 1: // sleeps
      sleep_checked(3000000);
      break;
    default: // waits for the other one of the pair
      pthread_mutex_lock(&token_mutex);
      token++;
      pthread_cond_broadcast(&token_moved);
      struct timespec until;
      clock_gettime(CLOCK_REALTIME, &until);
      until.tv_sec += 1;
      int result = pthread_cond_timedwait(&token_moved, &token_mutex, &until);
      if (result != 0 && result != ETIMEDOUT) fail("pthread_cond_timedwait: got %d (%s)", result, strerror(result));
      pthread_mutex_unlock(&token_mutex);
      sleep_checked(2000000);
    }
    check_self(self, round);
    if (round % 16 == 0) check_robust_list(self->index, robust);
    if (local != (void *)self->local_address) fail("thread %d: its local variable moved", self->index);
    check_pattern("stack of a thread", local, sizeof local, self->index + 1000);
    atomic_fetch_add(&self->count, 1);
  }
  if (sum < 0) report("NOTE %f", sum);
  return (void *)(uintptr_t)(self->index + 1); // still holding `held`
}

int main(int argc, char **argv) {
  victim_start();
  if (argc > 1) worker_count = atoi(argv[1]);
  if (worker_count > MAX_THREADS) worker_count = MAX_THREADS;
  pthread_mutexattr_t robust;
  pthread_mutexattr_init(&robust);
  pthread_mutexattr_setrobust(&robust, PTHREAD_MUTEX_ROBUST);
  pthread_attr_t small;
  pthread_attr_init(&small);
  pthread_attr_setstacksize(&small, 64 * 1024);
  for (int i = 0; i < worker_count; i++) {
    workers[i].index = i;
    MUST_ZERO(pthread_mutex_init(&workers[i].held, &robust));
    MUST_ZERO(pthread_create(&workers[i].handle, &small, work, &workers[i]));
  }
  while (atomic_load(&ready_count) < worker_count) sleep_checked(1000000);
  report("READY %d", getpid());
  while (!finish_requested()) tick();

  // The end: every thread still moves, ends, is joined (clear_child_tid), and leaves its mutex to the robust list.
  for (int i = 0; i < worker_count; i++) {
    unsigned long before = atomic_load(&workers[i].count);
    int64_t limit = monotonic_ns() + 10000000000LL;
    while (atomic_load(&workers[i].count) == before && monotonic_ns() < limit) sleep_checked(1000000);
    if (atomic_load(&workers[i].count) == before) fail("thread %d does not move any more (count %lu)", i, before);
  }
  cpu_set_t all;
  sched_getaffinity(0, sizeof all, &all);
  for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
    if (CPU_ISSET(cpu, &all)) {
      cpu_set_t one;
      CPU_ZERO(&one);
      CPU_SET(cpu, &one);
      sched_setaffinity(0, sizeof one, &one);
      check_rseq(-1);
    }
  sched_setaffinity(0, sizeof all, &all);
  atomic_store(&ending, true);
  for (int i = 0; i < worker_count; i++) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 10;
    void *result = NULL;
    int joined = pthread_timedjoin_np(workers[i].handle, &result, &until);
    if (joined != 0) {
      fail("pthread_join of thread %d (clear_child_tid): expected 0, got %s", i, strerror(joined));
      continue;
    }
    CHECK_NUMBER("result of a thread", i + 1, (uintptr_t)result);
    int locked = pthread_mutex_timedlock(&workers[i].held, &until);
    if (locked != EOWNERDEAD) fail("robust mutex of thread %d: expected EOWNERDEAD, got %d (%s)", i, locked, strerror(locked));
  }
  return victim_end();
}

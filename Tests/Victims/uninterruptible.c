// A thread in an uninterruptible sleep: it has called vfork, and its child takes its time. The child is another's work, as
// far as the parent's stop is concerned: until it has ended, nothing can bring the parent to a standstill.
#include "victim.h"

static volatile pid_t child;

static void *waiting(void *argument) {
  pid_t born = vfork();
  if (born == 0) {
    child = (pid_t)syscall(SYS_getpid);
    // The stack is the parent's: nothing but bare calls.
    syscall(SYS_pause);
    syscall(SYS_exit_group, 0);
  }
  return argument;
}

int main(void) {
  victim_start();
  pthread_t thread;
  MUST_ZERO(pthread_create(&thread, NULL, waiting, NULL));
  while (!child) sleep_checked(1000000);
  report("READY %d %d", getpid(), child);
  while (!finish_requested()) tick();
  kill(child, SIGKILL);
  MUST_ZERO(pthread_join(thread, NULL));
  waitpid(child, NULL, 0);
  return victim_end();
}

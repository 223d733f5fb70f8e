// A debugger: makes a child, seizes it and lets it run under its eyes. READY own-pid traced-pid.
#include "victim.h"
#include <sys/ptrace.h>

int main(void) {
  victim_start();
  pid_t child = MUST(fork());
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    progress_open("traced");
    while (!finish_requested()) tick();
    _exit(atomic_load(&victim_failures) ? 66 : 0);
  }
  MUST(ptrace(PTRACE_SEIZE, child, 0, 0));
  report("READY %d %d", getpid(), child);
  for (;;) {
    int status;
    pid_t pid = waitpid(child, &status, __WALL);
    if (pid != child) fail("waitpid: %s", strerror(errno));
    if (pid != child || WIFEXITED(status) || WIFSIGNALED(status)) break;
    ptrace(PTRACE_CONT, child, 0, WSTOPSIG(status) == SIGTRAP ? 0 : WSTOPSIG(status));
  }
  return victim_end();
}

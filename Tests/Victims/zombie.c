// Has a child that has ended and that it does not wait for until the end. READY own-pid zombie-pid.
#include "victim.h"

int main(void) {
  victim_start();
  pid_t child = MUST(fork());
  if (child == 0) _exit(3);
  siginfo_t info;
  MUST(waitid(P_PID, child, &info, WEXITED | WNOWAIT));
  report("READY %d %d", getpid(), child);
  while (!finish_requested()) tick();
  int status = 0;
  CHECK_NUMBER("waitpid", child, waitpid(child, &status, 0));
  CHECK_NUMBER("status", 3 << 8, status);
  return victim_end();
}

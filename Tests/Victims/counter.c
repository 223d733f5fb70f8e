// The smallest job: one thread that counts. It checks that its sleeps stay whole and that it stays who it is.
#include "victim.h"

int main(void) {
  victim_start();
  pid_t pid = getpid();
  pid_t session = getsid(0), group = getpgrp();
  uint64_t own = 0;
  report("READY %d", pid);
  while (!finish_requested()) {
    tick();
    own++;
    CHECK_NUMBER("counter", own, atomic_load(&victim_count));
    CHECK_NUMBER("getpid", pid, syscall(SYS_getpid));
    CHECK_NUMBER("gettid", pid, syscall(SYS_gettid));
    if (session == pid) {
      CHECK_NUMBER("getsid", session, getsid(0));
      CHECK_NUMBER("getpgrp", group, getpgrp());
    }
  }
  return victim_end();
}

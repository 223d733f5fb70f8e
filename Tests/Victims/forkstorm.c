// A process whose tree never stands still: four parents that make children all the time, wait for each and check its result.
// About 400 births a second, so that the IDs of the machine do not go round.
#include "victim.h"

static void storm(const char *name, int depth) {
  unsigned long born = 0, reaped = 0;
  progress_open(name);
  while (!finish_requested()) {
    pid_t children[3];
    for (int i = 0; i < 3; i++) {
      children[i] = fork();
      if (children[i] < 0) {
        fail("fork: %s", strerror(errno));
        continue;
      }
      born++;
      if (children[i] == 0) {
        if (depth > 0 && i == 0 && fork() == 0) _exit(0); // sometimes a grandchild, left to the reaper
        if (i == 1) sleep_checked(2000000);
        _exit((born + i) % 100);
      }
    }
    for (int i = 0; i < 3; i++) {
      int status = 0;
      if (children[i] < 0) continue;
      pid_t got = waitpid(children[i], &status, 0);
      if (got != children[i]) fail("waitpid of child %d: got %d (%s)", children[i], got, strerror(errno));
      else reaped++;
      unsigned long number = born - 2 + i;
      if (got == children[i] && status != (int)((number + i) % 100) << 8)
        fail("status of child %lu: expected 0x%x, got 0x%x", number, (int)((number + i) % 100) << 8, status);
    }
    if (born != reaped) fail("born %lu, reaped %lu", born, reaped);
    progress();
    sleep_checked(25000000);
  }
  if (wait(NULL) != -1 || errno != ECHILD) fail("a child is left that nobody made");
  _exit(atomic_load(&victim_failures) ? 66 : 0);
}

int main(void) {
  victim_start();
  pid_t parents[4];
  for (int i = 0; i < 4; i++) {
    parents[i] = MUST(fork());
    if (parents[i] == 0) {
      char name[20];
      snprintf(name, sizeof name, "storm%d", i);
      storm(name, 0);
    }
  }
  sleep_checked(100000000);
  report("READY %d", getpid());
  while (!finish_requested()) tick();
  for (int i = 0; i < 4; i++) {
    int status = 0;
    CHECK_NUMBER("a parent", parents[i], waitpid(parents[i], &status, 0));
    CHECK_NUMBER("status of a parent", 0, status);
  }
  return victim_end();
}

// A process whose threads never stand still: three that make threads all the time and join each.
#include "victim.h"

static atomic_ulong births;

static void *mayfly(void *argument) {
  if ((intptr_t)argument % 3 == 0) sleep_checked(1000000);
  atomic_fetch_add(&births, 1);
  return argument;
}

static void *parent(void *argument) {
  unsigned long rounds = 0;
  while (!finish_requested()) {
    pthread_t handles[3];
    for (intptr_t i = 0; i < 3; i++) MUST_ZERO(pthread_create(&handles[i], NULL, mayfly, (void *)(i + (intptr_t)rounds)));
    for (intptr_t i = 0; i < 3; i++) {
      void *result = NULL;
      MUST_ZERO(pthread_join(handles[i], &result));
      CHECK_NUMBER("result of a thread", i + (intptr_t)rounds, (intptr_t)result);
    }
    rounds++;
    sleep_checked(20000000);
  }
  *(unsigned long *)argument = rounds;
  return NULL;
}

int main(void) {
  victim_start();
  pthread_t handles[3];
  unsigned long rounds[3] = {0};
  for (int i = 0; i < 3; i++) MUST_ZERO(pthread_create(&handles[i], NULL, parent, &rounds[i]));
  sleep_checked(50000000);
  report("READY %d", getpid());
  while (!finish_requested()) tick();
  for (int i = 0; i < 3; i++) MUST_ZERO(pthread_join(handles[i], NULL));
  CHECK_NUMBER("threads born", (rounds[0] + rounds[1] + rounds[2]) * 3, atomic_load(&births));
  return victim_end();
}

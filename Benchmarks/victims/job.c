// The job of a benchmark: job KIND COUNT FILE, where KIND is threads, processes, mappings or memory (in MiB).
//
// FILE holds one 64-bit counter for every thread or process. Each counts on in its own as long as it lives, so an
// onlooker sees that all of them do.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static int progress;

static void die(const char *what) {
  fprintf(stderr, "job: %s: %s\n", what, strerror(errno));
  exit(1);
}

// Counts for ever; quickly when alone, so that many of them do not keep the machine busy.
static void *count(void *slot) {
  uint64_t value = 0;
  const struct timespec pause = {0, slot == NULL ? 20 * 1000 * 1000 : 400 * 1000 * 1000};
  for (;;) {
    value++;
    if (pwrite(progress, &value, sizeof value, (off_t)(uintptr_t)slot * 8) != 8) die("pwrite");
    nanosleep(&pause, NULL);
  }
}

static void start_threads(long number) {
  pthread_attr_t small;
  pthread_attr_init(&small);
  pthread_attr_setstacksize(&small, 64 * 1024);
  for (long slot = 1; slot < number; slot++) {
    pthread_t thread;
    if ((errno = pthread_create(&thread, &small, count, (void *)slot))) die("pthread_create");
  }
}

static void start_children(long number) {
  for (long slot = 1; slot <= number; slot++) {
    pid_t child = fork();
    if (child < 0) die("fork");
    if (child == 0) count((void *)slot);
  }
}

// Every second page can be written and has content; the ones between can only be read.
static void make_mappings(long number) {
  long page = sysconf(_SC_PAGESIZE);
  char *start = mmap(NULL, number * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (start == MAP_FAILED) die("mmap");
  if (madvise(start, number * page, MADV_NOHUGEPAGE)) die("madvise");
  for (long index = 0; index < number; index++) {
    if (index % 2) {
      if (mprotect(start + index * page, page, PROT_READ)) die("mprotect");
    } else {
      *(long *)(start + index * page) = index + 1;
    }
  }
}

// Content that no compression makes smaller and no two pages have in common.
static void fill_memory(long mebibytes) {
  size_t words = (size_t)mebibytes << 17;
  uint64_t *start = mmap(NULL, words * 8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (start == MAP_FAILED) die("mmap");
  uint64_t state = 0x9e3779b97f4a7c15;
  for (size_t index = 0; index < words; index++) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    start[index] = state;
  }
}

int main(int argc, char **argv) {
  if (argc != 4) {
    fprintf(stderr, "usage: job threads|processes|mappings|memory COUNT FILE\n");
    return 64;
  }
  long number = atol(argv[2]);
  progress = open(argv[3], O_RDWR | O_CREAT, 0600);
  if (progress < 0) die(argv[3]);
  if (!strcmp(argv[1], "threads")) start_threads(number);
  else if (!strcmp(argv[1], "processes")) start_children(number);
  else if (!strcmp(argv[1], "mappings")) make_mappings(number);
  else if (!strcmp(argv[1], "memory")) fill_memory(number);
  else die(argv[1]);
  count(NULL);
}

// What every victim shares: where it reports, how it counts, how it is told to end.
//
// stdout is the report: one line per finding, appended. "READY ..." when everything is set up, "FAIL what: ..." for each
// finding, "DONE ok" or "DONE failed" at the end. $VICTIM_DIR holds `progress` (the counter, as text at offset 0) and, once the
// test wants the final checks, a file `finish`.
#ifndef VICTIM_H
#define VICTIM_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define UNUSED __attribute__((unused))

static char victim_directory[PATH_MAX - 64];
static char victim_finish_path[PATH_MAX];
static int victim_progress_fd = -1;
static atomic_uint victim_failures;
static atomic_ulong victim_count;

UNUSED static void report(const char *format, ...) {
  char line[600];
  va_list arguments;
  va_start(arguments, format);
  int length = vsnprintf(line, sizeof line - 1, format, arguments);
  va_end(arguments);
  if (length > (int)sizeof line - 2) length = sizeof line - 2;
  line[length++] = '\n';
  if (write(1, line, length) != length) _exit(99);
}

/// One finding. After forty of them only the count goes on.
UNUSED static void fail(const char *format, ...) {
  if (atomic_fetch_add(&victim_failures, 1) >= 40) return;
  char line[500];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(line, sizeof line, format, arguments);
  va_end(arguments);
  report("FAIL %s", line);
}

#define CHECK_NUMBER(what, expected, got)                                                                                         \
  ({                                                                                                                              \
    long long expected_ = (long long)(expected), got_ = (long long)(got);                                                        \
    if (expected_ != got_) fail("%s: expected %lld (0x%llx), got %lld (0x%llx)", what, expected_, expected_, got_, got_);      \
  })

#define CHECK_TEXT(what, expected, got)                                                                                           \
  do {                                                                                                                            \
    const char *expected_ = (expected), *got_ = (got);                                                                           \
    if (strcmp(expected_, got_) != 0) fail("%s: expected \"%s\", got \"%s\"", what, expected_, got_);                          \
  } while (0)

#define CHECK_TRUE(what, condition)                                                                                               \
  do {                                                                                                                            \
    if (!(condition)) fail("%s: expected %s", what, #condition);                                                                 \
  } while (0)

/// Setting up: anything that does not work there is the machine's fault, not the engine's.
#define MUST(call)                                                                                                                \
  ({                                                                                                                              \
    long must_ = (long)(call);                                                                                                   \
    if (must_ == -1) {                                                                                                            \
      report("BROKEN %s:%d %s: %s", __FILE__, __LINE__, #call, strerror(errno));                                                \
      _exit(98);                                                                                                                  \
    }                                                                                                                             \
    must_;                                                                                                                        \
  })

/// pthread calls, which return the error.
#define MUST_ZERO(call)                                                                                                           \
  do {                                                                                                                            \
    int must_zero_ = (call);                                                                                                     \
    if (must_zero_ != 0) {                                                                                                       \
      report("BROKEN %s:%d %s: %s", __FILE__, __LINE__, #call, strerror(must_zero_));                                           \
      _exit(98);                                                                                                                  \
    }                                                                                                                             \
  } while (0)

UNUSED static int64_t monotonic_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000000000LL + now.tv_nsec;
}

UNUSED static void pin_high(int *fd, int number) {
  int high = MUST(fcntl(*fd, F_DUPFD_CLOEXEC, number));
  close(*fd);
  *fd = high;
}

/// Opens this process's progress file: `progress` for the first process, `progress.NAME` for others.
UNUSED static void progress_open(const char *name) {
  char path[PATH_MAX];
  snprintf(path, sizeof path, name ? "%s/progress.%s" : "%s/progress%s", victim_directory, name ? name : "");
  if (victim_progress_fd >= 0) close(victim_progress_fd);
  victim_progress_fd = MUST(open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666));
  pin_high(&victim_progress_fd, 200);
  atomic_store(&victim_count, 0);
}

UNUSED static void victim_start(void) {
  const char *directory = getenv("VICTIM_DIR");
  if (!directory || strlen(directory) >= sizeof victim_directory) {
    fprintf(stderr, "VICTIM_DIR is not set\n");
    exit(97);
  }
  strcpy(victim_directory, directory);
  snprintf(victim_finish_path, sizeof victim_finish_path, "%s/finish", directory);
  progress_open(NULL);
}

UNUSED static bool finish_requested(void) { return access(victim_finish_path, F_OK) == 0; }

/// Counts on, so that the test sees life.
UNUSED static void progress(void) {
  char text[32];
  unsigned long count = atomic_fetch_add(&victim_count, 1) + 1;
  int length = snprintf(text, sizeof text, "%020lu\n", count);
  ssize_t written = pwrite(victim_progress_fd, text, length, 0);
  if (written != length) fail("pwrite to the progress file: expected %d, got %zd (%s)", length, written, strerror(errno));
}

/// Sleeps by the bare call, which must take its time and come back with 0.
UNUSED static void sleep_checked(long nanoseconds) {
  struct timespec wanted = {nanoseconds / 1000000000, nanoseconds % 1000000000};
  int64_t before = monotonic_ns();
  long result = syscall(SYS_nanosleep, &wanted, NULL);
  int error = errno;
  int64_t took = monotonic_ns() - before;
  if (result != 0) fail("nanosleep: expected 0, got %ld (%s) after %lld us", result, strerror(error), (long long)took / 1000);
  else if (took < nanoseconds) fail("nanosleep of %ld us came back early, after %lld us", nanoseconds / 1000, (long long)took / 1000);
}

/// One round of life: count, then sleep 5 ms.
UNUSED static void tick(void) {
  progress();
  sleep_checked(5000000);
}

UNUSED static int victim_end(void) {
  unsigned failures = atomic_load(&victim_failures);
  if (failures > 40) report("NOTE %u findings in all", failures);
  report(failures ? "DONE failed" : "DONE ok");
  return failures ? 1 : 0;
}

/// The same word for the same seed and place, for patterns in memory.
UNUSED static uint64_t pattern(uint64_t seed, uint64_t place) {
  uint64_t z = seed * 0x9e3779b97f4a7c15ULL + place * 0xbf58476d1ce4e5b9ULL;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
  return z ^ (z >> 31);
}

UNUSED static void fill_pattern(void *start, size_t length, uint64_t seed) {
  uint64_t *words = start;
  for (size_t i = 0; i < length / 8; i++) words[i] = pattern(seed, i);
}

UNUSED static void check_pattern(const char *what, const void *start, size_t length, uint64_t seed) {
  const volatile uint64_t *words = start;
  for (size_t i = 0; i < length / 8; i++)
    if (words[i] != pattern(seed, i)) {
      fail("%s at %p + %zu: expected %llx, got %llx", what, start, i * 8, (unsigned long long)pattern(seed, i),
           (unsigned long long)words[i]);
      return;
    }
}

UNUSED static void check_zero(const char *what, const void *start, size_t length) {
  const volatile uint64_t *words = start;
  for (size_t i = 0; i < length / 8; i++)
    if (words[i] != 0) {
      fail("%s at %p + %zu: expected 0, got %llx", what, start, i * 8, (unsigned long long)words[i]);
      return;
    }
}

/// Reads a whole small file (of /proc, say); returns the length.
UNUSED static ssize_t read_file(const char *path, char *buffer, size_t capacity) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return -1;
  size_t length = 0;
  for (;;) {
    ssize_t got = read(fd, buffer + length, capacity - 1 - length);
    if (got <= 0) break;
    length += got;
  }
  close(fd);
  buffer[length] = 0;
  return length;
}

#endif

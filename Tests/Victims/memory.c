// One of every kind of mapping, filled with patterns and read again and again. What would change the picture from outside (the
// list of mappings) is only tried at the end.
// Usage: memory [fragments] [argument that must come back] ...
#include "victim.h"
#include <elf.h>
#include <setjmp.h>
#include <sys/auxv.h>
#include <sys/time.h>

#ifndef PR_SET_VMA
#define PR_SET_VMA 0x53564d41
#define PR_SET_VMA_ANON_NAME 0
#endif

enum { PAGE = 4096, MIB = 1 << 20, SPARSE_PAGES = 64 };
static const size_t SPARSE_SIZE = 64ULL << 30;

static char *written, *read_only, *write_only, *hidden, *guard, *code, *zeros, *huge, *no_huge, *sparse, *down, *locked, *big;
static char *no_fork, *no_dump, *wipe, *private_file, *shared_file, *shared_read, *tail, *fragmented, *named, *first_break;
static int fragments = 2000;
static uint64_t sparse_places[SPARSE_PAGES];
static char saved_auxv[4096], saved_environ[65536], saved_cmdline[8192], saved_exe[PATH_MAX];
static ssize_t auxv_length, environ_length, cmdline_length;
static uintptr_t stack_mark;
extern char **environ;
static char initialised_data[] = "this is data";
static const char constant_data[] = "this is constant";
static uint64_t bss_words[4096];

static char *map(size_t length, int protection, int flags) {
  void *result = mmap(NULL, length, protection, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
  MUST(result == MAP_FAILED ? -1 : 0);
  return result;
}

static char *workspace_path(const char *name) {
  static char path[PATH_MAX];
  snprintf(path, sizeof path, "%s/%s", victim_directory, name);
  return path;
}

static int data_file(const char *name, size_t length, uint64_t seed) {
  int fd = MUST(open(workspace_path(name), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
  char *content = malloc(length + 8);
  fill_pattern(content, length + 7, seed);
  if (MUST(write(fd, content, length)) != (long)length) _exit(98);
  free(content);
  return fd;
}

static char *map_file(int fd, size_t length, int protection, int flags, off_t offset) {
  void *result = mmap(NULL, length, protection, flags, fd, offset);
  MUST(result == MAP_FAILED ? -1 : 0);
  return result;
}

/// Returns 0 when the access works, else the signal; `address` gets the faulting address.
static sigjmp_buf fault_return;
static void *volatile fault_address;
static void on_fault(int number, siginfo_t *info, void *context) {
  (void)context;
  fault_address = info->si_addr;
  siglongjmp(fault_return, number);
}
static int touch(char *place, bool write_it) {
  struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO}, old_segv, old_bus;
  sigaction(SIGSEGV, &action, &old_segv);
  sigaction(SIGBUS, &action, &old_bus);
  int signal = sigsetjmp(fault_return, 1);
  if (signal == 0) {
    if (write_it) *(volatile char *)place = 1;
    else (void)*(volatile char *)place;
  }
  sigaction(SIGSEGV, &old_segv, NULL);
  sigaction(SIGBUS, &old_bus, NULL);
  return signal;
}

static void set_up(void) {
  written = map(4 * MIB, PROT_READ | PROT_WRITE, 0);
  fill_pattern(written, 4 * MIB, 1);
  read_only = map(MIB, PROT_READ | PROT_WRITE, 0);
  fill_pattern(read_only, MIB, 2);
  MUST(mprotect(read_only, MIB, PROT_READ));
  write_only = map(MIB, PROT_WRITE, 0);
  fill_pattern(write_only, MIB, 3);
  hidden = map(MIB, PROT_READ | PROT_WRITE, 0);
  fill_pattern(hidden, MIB, 4);
  MUST(mprotect(hidden, MIB, PROT_NONE));
  guard = map(3 * PAGE, PROT_READ | PROT_WRITE, 0);
  fill_pattern(guard, PAGE, 5);
  MUST(mprotect(guard + PAGE, PAGE, PROT_NONE));
  code = map(PAGE, PROT_READ | PROT_WRITE, 0);
  memcpy(code, "\xb8\x2a\x00\x00\x00\xc3", 6); // mov $42, %eax; ret
  MUST(mprotect(code, PAGE, PROT_READ | PROT_EXEC));
  zeros = map(8 * MIB, PROT_READ | PROT_WRITE, 0);
  check_zero("new memory", zeros, 8 * MIB);
  big = map(MIB, PROT_READ | PROT_WRITE, 0); // written, then given back: must stay zero
  fill_pattern(big, MIB, 6);
  MUST(madvise(big, MIB, MADV_DONTNEED));

  char *area = map(6 * MIB, PROT_NONE, MAP_NORESERVE);
  huge = (char *)(((uintptr_t)area + 2 * MIB - 1) & ~(uintptr_t)(2 * MIB - 1));
  MUST(mprotect(huge, 4 * MIB, PROT_READ | PROT_WRITE));
  madvise(huge, 4 * MIB, MADV_HUGEPAGE);
  fill_pattern(huge, 2 * MIB, 7);          // a whole huge page
  fill_pattern(huge + 3 * MIB, PAGE, 8);   // a single page of the next
  no_huge = map(2 * MIB, PROT_READ | PROT_WRITE, 0);
  madvise(no_huge, 2 * MIB, MADV_NOHUGEPAGE);
  fill_pattern(no_huge, 2 * MIB, 9);

  sparse = map(SPARSE_SIZE, PROT_READ | PROT_WRITE, MAP_NORESERVE);
  for (int i = 0; i < SPARSE_PAGES; i++) {
    sparse_places[i] = pattern(99, i) % (SPARSE_SIZE / PAGE) * PAGE;
    fill_pattern(sparse + sparse_places[i], PAGE, 100 + i);
  }

  // A stack that grows down; below it some room, and then a reservation that keeps other mappings out of the way.
  area = map(16 * MIB, PROT_NONE, MAP_NORESERVE);
  MUST(munmap(area + 14 * MIB - 8 * PAGE, 2 * MIB + 8 * PAGE));
  void *grown = mmap(area + 15 * MIB, PAGE * 4, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED_NOREPLACE, -1, 0);
  MUST(grown == MAP_FAILED ? -1 : 0);
  for (down = area + 15 * MIB; down > area + 14 * MIB; down -= PAGE) *(volatile char *)down = 1;
  fill_pattern(down, MIB, 10);

  locked = map(16 * PAGE, PROT_READ | PROT_WRITE, 0);
  mlock(locked, 16 * PAGE);
  fill_pattern(locked, 16 * PAGE, 11);
  no_fork = map(PAGE, PROT_READ | PROT_WRITE, 0);
  madvise(no_fork, PAGE, MADV_DONTFORK);
  no_dump = map(PAGE, PROT_READ | PROT_WRITE, 0);
  madvise(no_dump, PAGE, MADV_DONTDUMP);
  wipe = map(PAGE, PROT_READ | PROT_WRITE, 0);
  madvise(wipe, PAGE, MADV_WIPEONFORK);
  fill_pattern(no_fork, PAGE, 12), fill_pattern(no_dump, PAGE, 13), fill_pattern(wipe, PAGE, 14);
  named = map(2 * PAGE, PROT_READ | PROT_WRITE, 0);
  prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, named, 2 * PAGE, "a name for it"); // not every kernel has it
  fill_pattern(named, 2 * PAGE, 15);

  int fd = data_file("private.data", 64 * PAGE, 20);
  private_file = map_file(fd, 64 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, 0);
  for (int page = 0; page < 64; page += 2) fill_pattern(private_file + page * PAGE, PAGE, 200 + page);
  close(fd);
  fd = data_file("shared.data", 64 * PAGE, 21);
  shared_file = map_file(fd, 64 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, 0);
  fill_pattern(shared_file, 32 * PAGE, 22);
  close(fd);
  close(data_file("read.data", 16 * PAGE, 23));
  fd = MUST(open(workspace_path("read.data"), O_RDONLY | O_CLOEXEC));
  shared_read = map_file(fd, 8 * PAGE, PROT_READ, MAP_SHARED, 4 * PAGE);
  close(fd);
  fd = data_file("tail.data", PAGE + 104, 24); // the mapping goes beyond the end of the file
  tail = map_file(fd, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, 0);
  fill_pattern(tail, 512, 25);
  close(fd);

  fragmented = map((size_t)fragments * PAGE, PROT_READ | PROT_WRITE, 0);
  for (int i = 0; i < fragments; i++) {
    fill_pattern(fragmented + (size_t)i * PAGE, 64, 5000 + i);
    if (i % 2) MUST(mprotect(fragmented + (size_t)i * PAGE, PAGE, PROT_READ));
  }

  first_break = sbrk(0);
  first_break = sbrk((16 - (uintptr_t)first_break % 16) % 16 + MIB); // the heap, by hand
  first_break = (char *)(((uintptr_t)first_break + 15) & ~15UL);
  fill_pattern(first_break, MIB - 16, 30);
  fill_pattern(bss_words, sizeof bss_words, 31);

  auxv_length = MUST(read_file("/proc/self/auxv", saved_auxv, sizeof saved_auxv));
  environ_length = MUST(read_file("/proc/self/environ", saved_environ, sizeof saved_environ));
  cmdline_length = MUST(read_file("/proc/self/cmdline", saved_cmdline, sizeof saved_cmdline));
  MUST(readlink("/proc/self/exe", saved_exe, sizeof saved_exe - 1));
}

static void check_identity(int argc, char **argv) {
  char text[65536];
  CHECK_NUMBER("length of /proc/self/auxv", auxv_length, read_file("/proc/self/auxv", text, sizeof text));
  if (memcmp(text, saved_auxv, auxv_length) != 0) fail("/proc/self/auxv has changed");
  for (const Elf64_auxv_t *entry = (void *)saved_auxv; entry->a_type != AT_NULL; entry++)
    if (entry->a_type != AT_IGNORE && entry->a_type != AT_HWCAP) // glibc makes its own AT_HWCAP
      CHECK_NUMBER("getauxval", entry->a_un.a_val, getauxval(entry->a_type));
  CHECK_NUMBER("length of /proc/self/environ", environ_length, read_file("/proc/self/environ", text, sizeof text));
  if (memcmp(text, saved_environ, environ_length) != 0) fail("/proc/self/environ has changed");
  const char *next = text;
  for (char **variable = environ; *variable && environ_length > 0; variable++, next += strlen(next) + 1)
    CHECK_TEXT("environment", next, *variable);
  CHECK_NUMBER("length of /proc/self/cmdline", cmdline_length, read_file("/proc/self/cmdline", text, sizeof text));
  if (memcmp(text, saved_cmdline, cmdline_length) != 0) fail("/proc/self/cmdline has changed");
  next = text;
  for (int i = 0; i < argc; i++, next += strlen(next) + 1) CHECK_TEXT("argument", next, argv[i]);
  memset(text, 0, PATH_MAX);
  readlink("/proc/self/exe", text, PATH_MAX - 1);
  CHECK_TEXT("/proc/self/exe", saved_exe, text);
}

static int64_t last_monotonic;
static void check_clocks(void) {
  struct timespec by_vdso, by_kernel;
  struct timeval day;
  int64_t now = monotonic_ns();
  if (now < last_monotonic) fail("CLOCK_MONOTONIC went back by %lld ns", (long long)(last_monotonic - now));
  last_monotonic = now;
  clock_gettime(CLOCK_REALTIME, &by_vdso);
  syscall(SYS_clock_gettime, CLOCK_REALTIME, &by_kernel);
  double apart = (by_kernel.tv_sec - by_vdso.tv_sec) + (by_kernel.tv_nsec - by_vdso.tv_nsec) / 1e9;
  if (apart < -0.001 || apart > 20) fail("CLOCK_REALTIME through the vDSO is %f s from the kernel's", apart);
  gettimeofday(&day, NULL);
  if (llabs((long long)day.tv_sec - by_kernel.tv_sec) > 20) fail("gettimeofday is %lld, the kernel says %lld", (long long)day.tv_sec, (long long)by_kernel.tv_sec);
  if (sched_getcpu() < 0) fail("sched_getcpu: %s", strerror(errno));
}

static void check_file_pages(void) {
  for (int page = 0; page < 64; page++)
    if (page % 2 == 0) check_pattern("modified page of a private file mapping", private_file + page * PAGE, PAGE, 200 + page);
    else
      for (int i = 0; i < PAGE / 8; i += 64)
        if (((uint64_t *)(private_file + page * PAGE))[i] != pattern(20, page * (PAGE / 8) + i)) {
          fail("untouched page %d of a private file mapping", page);
          break;
        }
  check_pattern("shared file mapping", shared_file, 32 * PAGE, 22);
  for (int i = 0; i < 8 * PAGE / 8; i += 64)
    if (((uint64_t *)shared_read)[i] != pattern(23, 4 * PAGE / 8 + i)) {
      fail("read-only shared file mapping at word %d", i);
      break;
    }
  check_pattern("head of a short file", tail, 512, 25);
  if (((uint64_t *)(tail + PAGE))[5] != pattern(24, PAGE / 8 + 5)) fail("last bytes of a short file");
  check_zero("rest of the last page of a short file", tail + PAGE + 104, PAGE - 104);
}

static void check_round(unsigned long round) {
  check_pattern("anonymous memory", written, 4 * MIB, 1);
  check_pattern("read-only memory", read_only, MIB, 2);
  check_pattern("page before a guard page", guard, PAGE, 5);
  CHECK_NUMBER("function in memory of our own", 42, ((int (*)(void))(void *)code)());
  check_pattern("huge page", huge, 2 * MIB, 7);
  check_pattern("page in a huge area", huge + 3 * MIB, PAGE, 8);
  check_pattern("memory without huge pages", no_huge, 2 * MIB, 9);
  for (int i = 0; i < SPARSE_PAGES; i++) check_pattern("page of the 64 GiB area", sparse + sparse_places[i], PAGE, 100 + i);
  check_pattern("area that grows down", down, MIB, 10);
  check_pattern("locked memory", locked, 16 * PAGE, 11);
  check_pattern("MADV_DONTFORK memory", no_fork, PAGE, 12);
  check_pattern("MADV_DONTDUMP memory", no_dump, PAGE, 13);
  check_pattern("MADV_WIPEONFORK memory", wipe, PAGE, 14);
  check_pattern("named memory", named, 2 * PAGE, 15);
  for (int i = round % 16; i < fragments; i += 16) check_pattern("one of many mappings", fragmented + (size_t)i * PAGE, 64, 5000 + i);
  check_pattern("heap grown with brk", first_break, MIB - 16, 30);
  check_pattern("uninitialised data", bss_words, sizeof bss_words, 31);
  CHECK_TEXT("initialised data", "this is data", initialised_data);
  CHECK_TEXT("constant data", "this is constant", constant_data);
  check_file_pages();
  check_clocks();
}

/// A deep stack: 2 MiB in frames of 16 KiB, checked on the way back.
__attribute__((noinline)) static void deep(int depth, void (*at_bottom)(void)) {
  uint64_t frame[2048];
  fill_pattern(frame, sizeof frame, 7000 + depth);
  __asm__ volatile("" : : "r"(frame) : "memory");
  if (depth > 0) deep(depth - 1, at_bottom);
  else at_bottom();
  check_pattern("frame of a deep stack", frame, sizeof frame, 7000 + depth);
}

static void nothing(void) {}

static int argument_count;
static char **arguments;

static void live(void) {
  uintptr_t here = (uintptr_t)__builtin_frame_address(0);
  stack_mark = here;
  check_round(0);
  check_identity(argument_count, arguments); // the stack is as deep from here on as it gets
  report("READY %d", getpid());
  for (unsigned long round = 0; !finish_requested(); round++) {
    tick();
    check_round(round);
    if (round % 8 == 0) check_identity(argument_count, arguments);
    char *now = sbrk(0);
    if (now < first_break) fail("sbrk(0): expected at least %p, got %p", first_break, now);
  }
  deep(256, nothing); // another 4 MiB: the stack still grows
}

/// What is tried once, at the end.
static void check_end(void) {
  check_pattern("write-only memory", write_only, MIB, 3);
  fill_pattern(write_only, MIB, 33);
  CHECK_NUMBER("reading PROT_NONE memory", SIGSEGV, touch(hidden, false));
  CHECK_NUMBER("mprotect of PROT_NONE memory", 0, mprotect(hidden, MIB, PROT_READ));
  check_pattern("PROT_NONE memory with content", hidden, MIB, 4);
  CHECK_NUMBER("writing to the guard page", SIGSEGV, touch(guard + PAGE, true));
  CHECK_NUMBER("address of the fault", guard + PAGE, fault_address);
  CHECK_NUMBER("writing to read-only memory", SIGSEGV, touch(read_only + PAGE, true));
  CHECK_NUMBER("writing behind the guard page", 0, touch(guard + 2 * PAGE, true));
  CHECK_NUMBER("writing to a read-only shared mapping", SIGSEGV, touch(shared_read, true));
  CHECK_NUMBER("reading beyond the end of the file", SIGBUS, touch(tail + 3 * PAGE, false));
  check_zero("memory read but never written", zeros, 8 * MIB);
  check_zero("memory given back", big, MIB);
  for (int i = 0; i < SPARSE_PAGES; i++) {
    uint64_t neighbour = (sparse_places[i] + PAGE) % SPARSE_SIZE;
    bool taken = false;
    for (int j = 0; j < SPARSE_PAGES; j++) taken |= sparse_places[j] == neighbour;
    if (!taken) check_zero("hole in the 64 GiB area", sparse + neighbour, PAGE);
  }
  for (int i = 0; i < fragments; i++) {
    check_pattern("one of many mappings", fragmented + (size_t)i * PAGE, 64, 5000 + i);
    CHECK_NUMBER("writing to one of many mappings", i % 2 ? SIGSEGV : 0, touch(fragmented + (size_t)i * PAGE + 100, true));
  }
  CHECK_NUMBER("growing the area that grows down", 0, touch(down - 2 * PAGE, true));
  MUST(madvise(written, PAGE, MADV_DONTNEED));
  check_zero("anonymous memory after MADV_DONTNEED", written, PAGE);

  // File mappings are still mappings of the file.
  int fd = MUST(open(workspace_path("private.data"), O_RDWR | O_CLOEXEC));
  MUST(pwrite(fd, "changed!", 8, 33 * PAGE));
  if (memcmp(private_file + 33 * PAGE, "changed!", 8) != 0) fail("an untouched page of a private file mapping no longer follows the file");
  MUST(pwrite(fd, "changed!", 8, 32 * PAGE));
  check_pattern("modified page of a private file mapping", private_file + 32 * PAGE, PAGE, 232);
  MUST(madvise(private_file, PAGE, MADV_DONTNEED));
  CHECK_NUMBER("private file page after MADV_DONTNEED", pattern(20, 1), ((uint64_t *)private_file)[1]);
  close(fd);
  fd = MUST(open(workspace_path("shared.data"), O_RDWR | O_CLOEXEC));
  memcpy(shared_file + 40 * PAGE, "through the mapping", 20);
  char text[20] = "";
  MUST(pread(fd, text, 20, 40 * PAGE));
  CHECK_TEXT("file behind a shared mapping", "through the mapping", text);
  MUST(pwrite(fd, "through the file", 17, 50 * PAGE));
  CHECK_TEXT("shared mapping of a file", "through the file", shared_file + 50 * PAGE);
  close(fd);

  // The heap goes on where it was.
  char *before = sbrk(0);
  char *old = sbrk(64 * 1024);
  CHECK_NUMBER("sbrk continues", before, old);
  if (old != (char *)-1) check_zero("fresh heap", (char *)(((uintptr_t)old + 7) & ~7UL), 64 * 1024 - 8);
  CHECK_NUMBER("brk back", 0, brk(before));
  char *allocated = malloc(300000);
  if (!allocated) fail("malloc: NULL");
  else memset(allocated, 1, 300000);

  // MADV_DONTFORK and MADV_WIPEONFORK still do what they say.
  fflush(NULL);
  pid_t child = fork();
  if (child == 0) {
    int wrong = 0;
    if (touch(no_fork, false) == 0) wrong |= 1;
    for (int i = 0; i < PAGE; i++)
      if (wipe[i] != 0) wrong |= 2;
    _exit(wrong);
  }
  int status = 0;
  CHECK_NUMBER("waitpid", child, waitpid(child, &status, 0));
  CHECK_NUMBER("MADV_DONTFORK (1) and MADV_WIPEONFORK (2) in a child", 0, status);
}

int main(int argc, char **argv) {
  victim_start();
  if (argc > 1) fragments = atoi(argv[1]);
  argument_count = argc;
  arguments = argv;
  set_up();
  deep(128, live);
  check_end();
  return victim_end();
}

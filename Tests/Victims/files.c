// Files, directories, devices and pipes, in one process and shared with a child. The two talk only through what is tested; the
// final checks use every descriptor.
#include "victim.h"

static int plain, append, shared, twice_a, twice_b, directory, read_only, write_only, high_fd, kept_open, sync_fd, excluded;
static int null_fd, zero_fd, full_fd, random_fd;
static int to_child[2], from_child[2], own[2], full[2], sized[2], doubled[2], half_closed[2], empty_nonblocking[2];
static int duplicate, full_length, sized_length;
static pid_t child;
static char saved_cwd[PATH_MAX];

static char *workspace_path(const char *name) {
  static char path[PATH_MAX];
  snprintf(path, sizeof path, "%s/%s", victim_directory, name);
  return path;
}

static int open_here(const char *name, int flags) { return MUST(open(workspace_path(name), flags, 0640)); }
static int flags_of(int fd) { return fcntl(fd, F_GETFL); }
static int descriptor_flags_of(int fd) { return fcntl(fd, F_GETFD); }

static void fill_pipe(int fd, size_t length, uint64_t seed) {
  char *content = malloc(length + 8);
  fill_pattern(content, length + 7, seed);
  if (MUST(write(fd, content, length)) != (long)length) {
    report("BROKEN could not fill a pipe with %zu bytes", length);
    _exit(98);
  }
  free(content);
}

static void drain_pipe(const char *what, int fd, size_t length, uint64_t seed) {
  char *content = calloc(1, length + 8), *wanted = malloc(length + 8);
  fill_pattern(wanted, length + 7, seed);
  size_t got = 0;
  while (got < length) {
    ssize_t now = read(fd, content + got, length - got);
    if (now <= 0) break;
    got += now;
  }
  CHECK_NUMBER(what, length, got);
  if (got == length && memcmp(content, wanted, length) != 0) fail("%s: other bytes came out than went in", what);
  free(content), free(wanted);
}

static void expect_byte(const char *what, int fd, char wanted) {
  char byte = 0;
  ssize_t got = read(fd, &byte, 1);
  if (got != 1 || byte != wanted) fail("%s: expected '%c', got %zd byte(s) '%c' (%s)", what, wanted, got, byte, got < 0 ? strerror(errno) : "");
}

/// The child: shares `shared`'s description, moves it when told, answers over the pipe.
static void child_life(void) {
  for (;;) {
    char order = 0;
    ssize_t got = read(to_child[0], &order, 1);
    if (got == 0) _exit(atomic_load(&victim_failures) ? 66 : 0);
    if (got != 1) {
      fail("read of the child: got %zd (%s)", got, strerror(errno));
      _exit(67);
    }
    switch (order) {
    case 's': // moves the shared offset by 10
      CHECK_NUMBER("lseek of the child", 0, lseek(shared, 10, SEEK_CUR) < 0);
      break;
    case 'a': // sets O_APPEND on the shared description
      fcntl(shared, F_SETFL, flags_of(shared) | O_APPEND);
      break;
    case 'o': // its own description of the same file
      CHECK_NUMBER("offset of the file that the child opened itself", 3, lseek(kept_open, 0, SEEK_CUR));
      break;
    case 'w': { // its own working directory, umask and cloexec
      char cwd[PATH_MAX] = "";
      CHECK_TRUE("getcwd of the child", getcwd(cwd, sizeof cwd) != NULL);
      CHECK_TEXT("working directory of the child", "/", cwd);
      CHECK_NUMBER("umask of the child", 0077, umask(0077));
      break;
    }
    case 'p': // the child's copy of the pipe in one process
      expect_byte("pipe shared with the child", own[0], 'P');
      break;
    case '.': break; // a round of life
    }
    if (write(from_child[1], &order, 1) != 1) fail("write of the child: %s", strerror(errno));
  }
}

static void ask_child(char order) {
  if (write(to_child[1], &order, 1) != 1) fail("write to the child: %s", strerror(errno));
  expect_byte("answer of the child", from_child[0], order);
}

static void set_up(void) {
  MUST(mkdir(workspace_path("inside"), 0755));
  MUST(chdir(workspace_path("inside")));
  MUST(getcwd(saved_cwd, sizeof saved_cwd) ? 0 : -1);
  umask(0027);
  plain = open_here("plain", O_RDWR | O_CREAT | O_TRUNC);
  fill_pipe(plain, 100000, 1);
  MUST(lseek(plain, 12344, SEEK_SET));
  append = open_here("append", O_WRONLY | O_CREAT | O_TRUNC | O_APPEND);
  MUST(write(append, "first line\n", 11));
  shared = open_here("shared", O_RDWR | O_CREAT | O_TRUNC);
  fill_pipe(shared, 4096, 2);
  MUST(lseek(shared, 100, SEEK_SET));
  duplicate = MUST(dup(shared));
  twice_a = open_here("twice", O_RDWR | O_CREAT | O_TRUNC);
  fill_pipe(twice_a, 4096, 3);
  twice_b = open_here("twice", O_RDWR);
  MUST(lseek(twice_a, 50, SEEK_SET));
  MUST(lseek(twice_b, 60, SEEK_SET));
  read_only = open_here("plain", O_RDONLY | O_CLOEXEC);
  MUST(lseek(read_only, 200000, SEEK_SET)); // beyond the end
  write_only = open_here("plain", O_WRONLY | O_NONBLOCK);
  sync_fd = open_here("plain", O_RDWR | O_DSYNC | O_NOATIME);
  excluded = open_here("once", O_RDWR | O_CREAT | O_EXCL | O_TRUNC); // must not be made again or emptied
  MUST(write(excluded, "stays", 5));
  directory = MUST(open(victim_directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  null_fd = MUST(open("/dev/null", O_RDWR));
  zero_fd = MUST(open("/dev/zero", O_RDONLY));
  full_fd = MUST(open("/dev/full", O_WRONLY | O_CLOEXEC));
  random_fd = MUST(open("/dev/urandom", O_RDONLY | O_NONBLOCK));
  high_fd = MUST(fcntl(plain, F_DUPFD_CLOEXEC, 1000)); // same description as `plain`, other flag
  MUST(pipe(to_child));
  MUST(pipe(from_child));
  MUST(pipe2(own, O_CLOEXEC));
  MUST(pipe2(full, O_NONBLOCK));
  MUST(pipe(sized));
  sized_length = MUST(fcntl(sized[1], F_SETPIPE_SZ, 256 * 1024));
  MUST(pipe(doubled));
  doubled[1] = MUST(fcntl(doubled[1], F_DUPFD, 300)); // and 1 more descriptor of the same end
  MUST(pipe(half_closed));
  MUST(pipe2(empty_nonblocking, O_NONBLOCK | O_CLOEXEC));
  full_length = MUST(fcntl(full[1], F_GETPIPE_SZ)) / 4 * 3;
  fill_pipe(full[1], full_length, 4);
  fill_pipe(sized[1], 200000, 5);
  fill_pipe(half_closed[1], 1000, 6);
  close(half_closed[1]);
  MUST(write(own[1], "OP", 2));
  MUST(write(doubled[1], "D", 1));

  child = MUST(fork());
  if (child == 0) {
    close(to_child[1]), close(from_child[0]), close(own[1]);
    close(full[0]), close(full[1]), close(sized[0]), close(sized[1]), close(doubled[0]), close(doubled[1]);
    close(half_closed[0]), close(empty_nonblocking[0]), close(empty_nonblocking[1]);
    kept_open = open_here("shared", O_RDONLY);
    MUST(lseek(kept_open, 3, SEEK_SET));
    MUST(chdir("/"));
    umask(0077);
    if (write(from_child[1], "r", 1) != 1) _exit(98);
    child_life();
  }
  close(to_child[0]), close(from_child[1]);
  expect_byte("first word of the child", from_child[0], 'r');
}

static void check_round(void) {
  ask_child('.');
  CHECK_NUMBER("offset of a regular file", 12344, lseek(plain, 0, SEEK_CUR));
  CHECK_NUMBER("offset beyond the end", 200000, lseek(read_only, 0, SEEK_CUR));
  CHECK_NUMBER("offset of the first opening", 50, lseek(twice_a, 0, SEEK_CUR));
  CHECK_NUMBER("offset of the second opening", 60, lseek(twice_b, 0, SEEK_CUR));
  CHECK_NUMBER("offset of a shared description", 100, lseek(shared, 0, SEEK_CUR));
  char cwd[PATH_MAX] = "";
  CHECK_TRUE("getcwd", getcwd(cwd, sizeof cwd) != NULL);
  CHECK_TEXT("working directory", saved_cwd, cwd);
}

static void check_flags(void) {
  struct { const char *what; int fd, flags, descriptor; } wanted[] = {
      {"plain", plain, O_RDWR, 0},
      {"append", append, O_WRONLY | O_APPEND, 0},
      {"read_only", read_only, O_RDONLY, FD_CLOEXEC},
      {"write_only", write_only, O_WRONLY | O_NONBLOCK, 0},
      {"sync", sync_fd, O_RDWR | O_DSYNC | O_NOATIME, 0},
      {"excluded", excluded, O_RDWR, 0},
      {"directory", directory, O_RDONLY | O_DIRECTORY, FD_CLOEXEC},
      {"/dev/null", null_fd, O_RDWR, 0},
      {"/dev/full", full_fd, O_WRONLY, FD_CLOEXEC},
      {"/dev/urandom", random_fd, O_RDONLY | O_NONBLOCK, 0},
      {"high", high_fd, O_RDWR, FD_CLOEXEC},
      {"own[0]", own[0], O_RDONLY, FD_CLOEXEC},
      {"full[1]", full[1], O_WRONLY | O_NONBLOCK, 0},
      {"doubled[1]", doubled[1], O_WRONLY, 0},
      {"empty_nonblocking[0]", empty_nonblocking[0], O_RDONLY | O_NONBLOCK, FD_CLOEXEC},
  };
  for (unsigned i = 0; i < sizeof wanted / sizeof *wanted; i++) {
    char what[64];
    snprintf(what, sizeof what, "status flags of %s", wanted[i].what);
    CHECK_NUMBER(what, wanted[i].flags, flags_of(wanted[i].fd) & ~0100000 /* O_LARGEFILE */);
    snprintf(what, sizeof what, "descriptor flags of %s", wanted[i].what);
    CHECK_NUMBER(what, wanted[i].descriptor, descriptor_flags_of(wanted[i].fd));
  }
}

static void check_end(void) {
  check_flags();
  char buffer[4096], wanted[100008];
  fill_pattern(wanted, 100007, 1);
  CHECK_NUMBER("read of a regular file", 1000, read(plain, buffer, 1000));
  if (memcmp(buffer, wanted + 12344, 1000) != 0) fail("read of a regular file: not the bytes at its offset");
  CHECK_NUMBER("offset of the duplicate at a high number", 13344, lseek(high_fd, 0, SEEK_CUR));
  CHECK_NUMBER("appending", 12, write(append, "second line\n", 12));
  struct stat status;
  MUST(fstat(append, &status));
  CHECK_NUMBER("size of the appended file", 23, status.st_size);
  MUST(fstat(excluded, &status));
  CHECK_NUMBER("size of a file opened with O_EXCL | O_TRUNC", 5, status.st_size);
  MUST(fstat(plain, &status));
  CHECK_NUMBER("mode of a file made under the umask", 0100640, status.st_mode);

  ask_child('s');
  CHECK_NUMBER("shared offset after the child moved it", 110, lseek(shared, 0, SEEK_CUR));
  CHECK_NUMBER("offset of the duplicate after the child moved it", 110, lseek(duplicate, 0, SEEK_CUR));
  ask_child('a');
  CHECK_TRUE("O_APPEND set by the child on a shared description", flags_of(duplicate) & O_APPEND);
  ask_child('o');
  ask_child('w');
  CHECK_NUMBER("offset of the first opening", 50, lseek(twice_a, 25, SEEK_CUR) - 25);
  CHECK_NUMBER("offset of the second opening after the first moved", 60, lseek(twice_b, 0, SEEK_CUR));

  CHECK_NUMBER("umask", 0027, umask(0027));
  int fresh = openat(directory, "through-the-directory", O_WRONLY | O_CREAT | O_EXCL, 0666);
  CHECK_TRUE("openat through a directory descriptor", fresh >= 0);
  MUST(fstat(fresh, &status));
  CHECK_NUMBER("mode of a new file (umask)", 0100640, status.st_mode);
  CHECK_NUMBER("access relative to the working directory", 0, access("../through-the-directory", F_OK));
  CHECK_NUMBER("/dev/null", 3, write(null_fd, "abc", 3));
  CHECK_NUMBER("/dev/null reads", 0, read(null_fd, buffer, 10));
  memset(buffer, 1, 16);
  CHECK_NUMBER("/dev/zero", 16, read(zero_fd, buffer, 16));
  check_zero("/dev/zero", buffer, 16);
  CHECK_NUMBER("/dev/full", -1, write(full_fd, "abc", 3));
  CHECK_NUMBER("/dev/full errno", ENOSPC, errno);
  CHECK_NUMBER("/dev/urandom", 16, read(random_fd, buffer, 16));

  // Pipes
  expect_byte("pipe with both ends here", own[0], 'O');
  ask_child('p');
  CHECK_NUMBER("size of the pipe", sized_length, fcntl(sized[0], F_GETPIPE_SZ));
  drain_pipe("pipe of 256 KiB with 200,000 bytes", sized[0], 200000, 5);
  drain_pipe("pipe that was three quarters full", full[0], full_length, 4);
  CHECK_NUMBER("non-blocking pipe, empty now", -1, read(full[0], buffer, 1));
  CHECK_NUMBER("errno of a non-blocking pipe", EAGAIN, errno);
  CHECK_NUMBER("non-blocking pipe that was always empty", -1, read(empty_nonblocking[0], buffer, 1));
  CHECK_NUMBER("errno of a non-blocking pipe", EAGAIN, errno);
  drain_pipe("pipe whose writer is gone", half_closed[0], 1000, 6);
  CHECK_NUMBER("end of file of a pipe whose writer is gone", 0, read(half_closed[0], buffer, 1));
  int second = MUST(dup(doubled[1]));
  close(doubled[1]);
  MUST(write(second, "E", 1));
  expect_byte("pipe with two descriptors of one end", doubled[0], 'D');
  expect_byte("pipe with two descriptors of one end", doubled[0], 'E');

  close(to_child[1]);
  int result = 0;
  CHECK_NUMBER("waitpid", child, waitpid(child, &result, 0));
  CHECK_NUMBER("status of the child", 0, result);
}

int main(void) {
  victim_start();
  set_up();
  check_round();
  check_flags();
  report("READY %d %d", getpid(), child);
  while (!finish_requested()) {
    tick();
    check_round();
  }
  check_end();
  return victim_end();
}

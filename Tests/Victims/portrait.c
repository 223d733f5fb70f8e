// A program that tells everything it can learn about itself: for every file `ask-N` in its folder it writes `portrait-N`, a line
// for each fact. What changes by itself from moment to moment (times, counters, resident sizes) is left out.
// Usage: portrait [plain|odd]: odd sets everything to something unusual first.
#include "victim.h"
#include <dirent.h>
#include <linux/capability.h>
#include <sys/personality.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/utsname.h>

static FILE *out;

static bool starts(const char *line, const char *const *words) {
  for (; *words; words++)
    if (strncmp(line, *words, strlen(*words)) == 0) return true;
  return false;
}

/// Every line of a file that does not begin with one of `skip`.
static void tell_file(const char *path, const char *const *skip) {
  FILE *file = fopen(path, "re");
  if (!file) {
    fprintf(out, "%s: %s\n", path, strerror(errno));
    return;
  }
  char *line = NULL;
  size_t room = 0;
  ssize_t length;
  while ((length = getline(&line, &room, file)) > 0) {
    if (skip && starts(line, skip)) continue;
    for (ssize_t i = 0; i < length; i++)
      if (line[i] == 0) line[i] = '|';
    fprintf(out, "%s: %.*s%s", path, (int)length, line, line[length - 1] == '\n' ? "" : "\n");
  }
  free(line);
  fclose(file);
}

static void tell_stat(const char *path) {
  FILE *file = fopen(path, "re");
  char text[4096] = "";
  if (file) {
    if (!fgets(text, sizeof text, file)) text[0] = 0;
    fclose(file);
  }
  // The kernel's flags, which tell of the past (has used a privilege), faults, times, starting time, resident size, where it stands, CPU, delays. proc_pid_stat(5)
  static const int volatile_fields[] = {9, 10, 11, 12, 13, 14, 15, 16, 17, 22, 24, 29, 30, 35, 39, 42, 43, 44};
  char *name_end = strrchr(text, ')');
  if (!name_end) return;
  int field = 3;
  for (char *word = strtok(name_end + 1, " \n"); word; word = strtok(NULL, " \n"), field++) {
    bool skip = false;
    for (size_t i = 0; i < sizeof volatile_fields / sizeof *volatile_fields; i++) skip |= volatile_fields[i] == field;
    if (!skip) fprintf(out, "%s field %d: %s\n", path, field, word);
  }
}

static void tell_binary(const char *path) {
  int file = open(path, O_RDONLY | O_CLOEXEC);
  unsigned long word;
  for (int i = 0; file >= 0 && read(file, &word, sizeof word) == sizeof word; i++) fprintf(out, "%s[%d]: 0x%lx\n", path, i, word);
  close(file);
}

static void tell_links(const char *folder) {
  struct dirent **names;
  int count = scandir(folder, &names, NULL, alphasort);
  for (int i = 0; i < count; i++) {
    char path[400], target[PATH_MAX];
    snprintf(path, sizeof path, "%s/%s", folder, names[i]->d_name);
    ssize_t length = readlink(path, target, sizeof target - 1);
    if (length > 0 && !strstr(path, "fdinfo")) fprintf(out, "%s -> %.*s\n", path, (int)length, target);
    if (strstr(folder, "fdinfo") && names[i]->d_name[0] != '.') {
      static const char *const inode[] = {"ino:", NULL};
      tell_file(path, inode);
    }
    free(names[i]);
  }
  if (count >= 0) free(names);
}

static void number(const char *what, long value) { fprintf(out, "%s: %ld (0x%lx)\n", what, value, value); }

static void tell_prctl(void) {
  static const struct {
    const char *name;
    int option;
    bool by_pointer;
  } getters[] = {{"dumpable", 3, false},         {"keep capabilities", 7, false},  {"timing", 13, false},       {"secure bits", 27, false},
                 {"timer slack", 30, false},     {"no new privileges", 39, false}, {"THP disabled", 42, false}, {"seccomp", 21, false},
                 {"memory kill", 34, false},     {"I/O flusher", 58, false},       {"TSC", 25, true},           {"death signal", 2, true},
                 {"child subreaper", 37, true},  {"tagged addresses", 56, false}, {"memory merge", 68, false},  {"MDWE", 66, false}};
  for (size_t i = 0; i < sizeof getters / sizeof *getters; i++) {
    int value = -1;
    long result = getters[i].by_pointer ? prctl(getters[i].option, &value, 0, 0, 0) : prctl(getters[i].option, 0, 0, 0, 0);
    fprintf(out, "prctl %s: %ld %d\n", getters[i].name, result < 0 ? -errno : result, value);
  }
  for (int capability = 0; capability < 41; capability++)
    fprintf(out, "capability %d: bounding %d, ambient %d\n", capability, prctl(23, capability, 0, 0, 0), prctl(47, 1, capability, 0, 0));
}

static void tell_calls(void) {
  number("pid", getpid()), number("group", getpgrp()), number("session", getsid(0)), number("thread", syscall(SYS_gettid));
  uid_t r, e, s;
  getresuid(&r, &e, &s), fprintf(out, "users: %u %u %u\n", r, e, s);
  getresgid(&r, &e, &s), fprintf(out, "groups: %u %u %u\n", r, e, s);
  gid_t groups[64];
  int count = getgroups(64, groups);
  for (int i = 0; i < count; i++) number("supplementary group", groups[i]);
  mode_t mask = umask(0);
  umask(mask);
  number("umask", mask);
  number("nice", getpriority(PRIO_PROCESS, 0));
  number("I/O priority", syscall(SYS_ioprio_get, 1, 0));
  number("personality", personality(0xffffffff));
  number("policy", sched_getscheduler(0));
  struct sched_param parameter = {0};
  sched_getparam(0, &parameter), number("priority", parameter.sched_priority);
  unsigned long cpus[16] = {0};
  syscall(SYS_sched_getaffinity, 0, sizeof cpus, cpus);
  number("CPUs", (long)cpus[0]);
  for (int kind = 0; kind < 16; kind++) {
    struct rlimit limit = {0, 0};
    getrlimit((__rlimit_resource_t)kind, &limit);
    fprintf(out, "limit %d: %lu %lu\n", kind, limit.rlim_cur, limit.rlim_max);
  }
  for (int signal = 1; signal <= 64; signal++) {
    struct {
      void *handler;
      unsigned long flags;
      void *restorer;
      unsigned long mask;
    } action = {0};
    syscall(SYS_rt_sigaction, signal, NULL, &action, 8);
    fprintf(out, "signal %d: %p 0x%lx %p 0x%lx\n", signal, action.handler, action.flags, action.restorer, action.mask);
  }
  stack_t stack;
  sigaltstack(NULL, &stack), fprintf(out, "signal stack: %p %zu %d\n", stack.ss_sp, stack.ss_size, stack.ss_flags);
  for (int kind = 0; kind < 3; kind++) {
    struct itimerval timer;
    getitimer((__itimer_which_t)kind, &timer);
    fprintf(out, "timer %d: every %ld s %ld us\n", kind, timer.it_interval.tv_sec, timer.it_interval.tv_usec);
  }
  number("break", (long)sbrk(0));
  struct utsname name;
  uname(&name), fprintf(out, "host: %s %s %s\n", name.nodename, name.release, name.machine);
  void *head = NULL;
  size_t length = 0;
  syscall(SYS_get_robust_list, 0, &head, &length), fprintf(out, "robust list: %p %zu\n", head, length);
  number("memory policy", syscall(SYS_get_mempolicy, NULL, NULL, 0, NULL, 0));
}

static void tell_all(const char *path) {
  char temporary[PATH_MAX + 8];
  snprintf(temporary, sizeof temporary, "%s.new", path);
  out = fopen(temporary, "we");
  static const char *const status_skip[] = {"VmPeak", "VmHWM", "VmRSS", "RssAnon", "RssFile", "RssShmem", "VmPTE", "VmSwap",
                                            "voluntary", "nonvoluntary", "State", "SigQ", "PPid", "TracerPid", NULL};
  static const char *const smaps_skip[] = {"Rss", "Pss", "Shared_", "Private_", "Referenced", "Anonymous", "KSM", "LazyFree", "AnonHuge",
                                           "ShmemPmd", "FilePmd", "Swap", "Locked", NULL};
  tell_calls();
  tell_prctl();
  tell_file("/proc/self/status", status_skip);
  tell_stat("/proc/self/stat");
  tell_file("/proc/self/smaps", smaps_skip);
  static const char *const plain[] = {"limits", "comm", "cmdline", "environ", "coredump_filter", "cgroup", "oom_score_adj", "loginuid",
                                      "sessionid", "personality", "timerslack_ns", "mountinfo", "uid_map", "gid_map", "setgroups",
                                      "attr/current", "timers", NULL};
  for (const char *const *name = plain; *name; name++) {
    char file[80];
    snprintf(file, sizeof file, "/proc/self/%s", *name);
    tell_file(file, NULL);
  }
  tell_binary("/proc/self/auxv");
  tell_links("/proc/self/fd"), tell_links("/proc/self/fdinfo"), tell_links("/proc/self/ns"), tell_links("/proc/self");
  fclose(out);
  rename(temporary, path);
}

static void do_nothing(int signal) { (void)signal; }

/// Everything that can be set to something unusual.
static void be_odd(void) {
  cpu_set_t cpus;
  CPU_ZERO(&cpus);
  CPU_SET(0, &cpus);
  MUST(sched_setaffinity(0, sizeof cpus, &cpus));
  MUST(syscall(SYS_ioprio_set, 1, 0, 2 << 13 | 5));
  MUST(setpriority(PRIO_PROCESS, 0, 7));
  MUST(personality(ADDR_NO_RANDOMIZE | UNAME26));
  MUST(prctl(PR_SET_TIMERSLACK, 123456));
  MUST(prctl(41 /* PR_SET_THP_DISABLE */, 1, 0, 0, 0));
  MUST(prctl(PR_SET_CHILD_SUBREAPER, 1));
  MUST(prctl(33 /* PR_MCE_KILL */, 1, 1, 0, 0));
  MUST(prctl(PR_SET_KEEPCAPS, 1));
  MUST(prctl(PR_SET_PDEATHSIG, SIGUSR2));
  umask(0137);
  FILE *filter = fopen("/proc/self/coredump_filter", "we");
  if (filter) fputs("0x7f", filter), fclose(filter);
  filter = fopen("/proc/self/oom_score_adj", "we");
  if (filter) fputs("321", filter), fclose(filter);
  struct rlimit limit = {50, 60};
  MUST(setrlimit(RLIMIT_NOFILE, &limit));
  for (int signal = SIGRTMIN; signal <= SIGRTMAX; signal += 3) {
    struct sigaction action = {.sa_handler = do_nothing, .sa_flags = signal % 2 ? SA_RESTART : SA_NODEFER | SA_ONSTACK};
    sigaddset(&action.sa_mask, signal - 1);
    MUST(sigaction(signal, &action, NULL));
  }
  stack_t stack = {.ss_sp = malloc(65536), .ss_size = 65536};
  MUST(sigaltstack(&stack, NULL));
  struct itimerval timer = {{7000, 5}, {9000, 0}};
  MUST(setitimer(ITIMER_REAL, &timer, NULL));
  MUST(setitimer(ITIMER_PROF, &timer, NULL));
}

int main(int argc, char **argv) {
  victim_start();
  if (argc > 1 && strcmp(argv[1], "odd") == 0) be_odd();
  // Room for what the telling itself needs, so that memory looks the same each time.
  char path[PATH_MAX];
  snprintf(path, sizeof path, "%s/portrait-0", getenv("VICTIM_DIR"));
  tell_all(path), tell_all(path);
  report("READY %d", getpid());
  for (int next = 1; !finish_requested();) {
    tick();
    snprintf(path, sizeof path, "%s/ask-%d", getenv("VICTIM_DIR"), next);
    if (access(path, F_OK) != 0) continue;
    snprintf(path, sizeof path, "%s/portrait-%d", getenv("VICTIM_DIR"), next++);
    tell_all(path);
  }
  return victim_end();
}

// What belongs to tasks. Usage: tasks tree|dead-leaders|zombies|leader-exit|stopped|signals|pending|limits|attributes|ids|chroot
// Every process counts in a progress file of its own and checks itself in every round.
#include "victim.h"
#include <grp.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <sys/resource.h>

struct identity {
  pid_t pid, parent, group, session;
  char comm[16];
};

static struct identity identity_now(void) {
  struct identity now = {getpid(), getppid(), getpgrp(), getsid(0), ""};
  prctl(PR_GET_NAME, now.comm);
  return now;
}

static void check_identity(const char *who, struct identity was) {
  struct identity now = identity_now();
  if (finish_requested()) return; // parents may be gone by now
  char what[80];
#define CHECK_PART(part) snprintf(what, sizeof what, #part " of %s", who), CHECK_NUMBER(what, was.part, now.part)
  CHECK_PART(pid);
  CHECK_PART(parent);
  CHECK_PART(group);
  CHECK_PART(session);
  snprintf(what, sizeof what, "comm of %s", who);
  CHECK_TEXT(what, was.comm, now.comm);
}

/// Lives until `finish`, then ends with status 0 or 66.
static void child_life(const char *who) {
  struct identity was = identity_now();
  while (!finish_requested()) {
    tick();
    check_identity(who, was);
  }
  _exit(atomic_load(&victim_failures) ? 66 : 0);
}

/// For synchronising the set-up: one byte per child that is ready. Gone before READY.
static int ready[2];
static void ready_open(void) { MUST(pipe(ready)); }
static void ready_say(void) {
  MUST(write(ready[1], "r", 1));
  close(ready[0]), close(ready[1]);
}
static void ready_wait(int count) {
  char byte;
  while (count-- > 0)
    if (MUST(read(ready[0], &byte, 1)) != 1) _exit(98);
}
static void ready_close(void) { close(ready[0]), close(ready[1]); }

static pid_t spawn(const char *name, void (*life)(void)) {
  pid_t pid = MUST(fork());
  if (pid != 0) return pid;
  char comm[16];
  snprintf(comm, sizeof comm, "task-%.10s", name);
  prctl(PR_SET_NAME, comm);
  progress_open(name);
  life();
  ready_say();
  child_life(name);
  _exit(0);
}

static void reap_all(int count) {
  for (int i = 0; i < count; i++) {
    int status = 0;
    pid_t pid = wait(&status);
    if (pid < 0) {
      fail("wait for child %d of %d: %s", i + 1, count, strerror(errno));
      return;
    }
    if (status != 0) fail("child %d ended with status 0x%x", pid, status);
  }
}

static void root_life(const char *extra) {
  struct identity was = identity_now();
  report("READY %d%s", getpid(), extra);
  while (!finish_requested()) {
    tick();
    if (was.session == was.pid) check_identity("the first process", (was.parent = getppid(), was));
  }
}

// tree: groups, sessions, grandchildren, children of threads
static pid_t first_group;
static void nothing(void) {}
static void own_group(void) { MUST(setpgid(0, 0)); }
static void join_group(void) { MUST(setpgid(0, first_group)); }
static void own_session(void) {
  MUST(setsid());
  spawn("grandchild", own_group);
  spawn("grandchild2", nothing);
}
static void *forking_thread(void *done) {
  spawn("of-thread", nothing);
  atomic_store((atomic_int *)done, 1);
  for (;;) sleep_checked(4000000);
  return NULL;
}
static void threads_and_child(void) {
  static atomic_int done[2];
  pthread_t handle;
  MUST_ZERO(pthread_create(&handle, NULL, forking_thread, &done[0]));
  MUST_ZERO(pthread_create(&handle, NULL, forking_thread, &done[1]));
  while (!atomic_load(&done[0]) || !atomic_load(&done[1])) sleep_checked(1000000);
}
static void tree(void) {
  ready_open();
  first_group = spawn("group", own_group);
  MUST(setpgid(first_group, first_group));
  spawn("joined", join_group);
  spawn("session", own_session);
  spawn("threads", threads_and_child);
  spawn("plain", nothing);
  ready_wait(9);
  ready_close();
  root_life("");
  reap_all(5);
}

// dead-leaders: a group and a session that outlive their leaders; orphans adopted by the first process
static void dead_leaders(void) {
  prctl(PR_SET_CHILD_SUBREAPER, 1);
  ready_open();
  int hold[2];
  MUST(pipe(hold));
  pid_t leader = MUST(fork()); // leads a group, dies; the member stays
  if (leader == 0) {
    setpgid(0, 0);
    char byte;
    close(hold[1]);
    if (read(hold[0], &byte, 1) < 0) _exit(1);
    _exit(0);
  }
  setpgid(leader, leader);
  close(hold[0]);
  first_group = leader;
  pid_t member = MUST(fork());
  if (member == 0) {
    close(hold[1]);
    setpgid(0, first_group);
    progress_open("member");
    ready_say();
    child_life("a member of a group whose leader is gone");
  }
  ready_wait(1);
  close(hold[1]);
  MUST(waitpid(leader, NULL, 0));
  pid_t daemon = MUST(fork()); // leads a session, leaves a child behind
  if (daemon == 0) {
    setsid();
    pid_t orphan = MUST(fork());
    if (orphan != 0) _exit(0);
    while (getppid() == getsid(0)) usleep(1000);
    progress_open("orphan");
    ready_say();
    child_life("an orphan whose session leader is gone");
  }
  MUST(waitpid(daemon, NULL, 0));
  ready_wait(1);
  ready_close();
  root_life("");
  reap_all(2);
}

// zombies: children that ended and were not waited for yet
static void zombies(void) {
  pid_t exited = MUST(fork());
  if (exited == 0) _exit(9);
  pid_t killed = MUST(fork());
  if (killed == 0)
    for (;;) pause();
  pid_t grandparent = MUST(fork());
  if (grandparent == 0) {
    progress_open("parent");
    if (fork() == 0) _exit(5);
    struct identity was = identity_now();
    while (!finish_requested()) tick(), check_identity("the parent of a zombie", was);
    int status = 0;
    wait(&status);
    if (status != 5 << 8) fail("status of a zombie: expected 0x500, got 0x%x", status);
    _exit(atomic_load(&victim_failures) ? 66 : 0);
  }
  kill(killed, SIGKILL);
  siginfo_t info;
  MUST(waitid(P_PID, exited, &info, WEXITED | WNOWAIT));
  MUST(waitid(P_PID, killed, &info, WEXITED | WNOWAIT));
  usleep(50000);
  root_life("");
  int status = 0;
  CHECK_NUMBER("waiting for a child that had exited", exited, waitpid(exited, &status, WNOHANG));
  CHECK_NUMBER("status of a child that had exited", 9 << 8, status);
  CHECK_NUMBER("waiting for a child that was killed", killed, waitpid(killed, &status, WNOHANG));
  CHECK_NUMBER("status of a child that was killed", SIGKILL, status);
  reap_all(1);
}

// leader-exit: the first thread is gone, others live
static void *surviving_thread(void *argument) {
  int index = (int)(intptr_t)argument;
  pid_t tid = syscall(SYS_gettid), pid = getpid();
  if (index == 0) {
    usleep(50000); // by then the leader has ended
    report("READY %d", pid);
  }
  while (!finish_requested()) {
    if (index == 0) progress();
    sleep_checked(3000000);
    CHECK_NUMBER("gettid of a surviving thread", tid, syscall(SYS_gettid));
    CHECK_NUMBER("getpid of a surviving thread", pid, syscall(SYS_getpid));
  }
  if (index == 0) {
    usleep(100000); // the others end first
    _exit(victim_end());
  }
  return NULL;
}
static void leader_exit(void) {
  for (int i = 0; i < 3; i++) {
    pthread_t handle;
    MUST_ZERO(pthread_create(&handle, NULL, surviving_thread, (void *)(intptr_t)i));
  }
  pthread_exit(NULL);
}

// stopped: a child under SIGSTOP comes back stopped, and continues when told
static char state_of(pid_t pid) {
  char path[64], text[1024];
  snprintf(path, sizeof path, "/proc/%d/stat", pid);
  if (read_file(path, text, sizeof text) <= 0) return '?';
  char *end = strrchr(text, ')');
  return end ? end[2] : '?';
}
static void stopped(void) {
  pid_t child = MUST(fork());
  if (child == 0) {
    progress_open("child");
    raise(SIGSTOP);
    child_life("the stopped child");
  }
  pid_t with_threads = MUST(fork());
  if (with_threads == 0) {
    progress_open("threads");
    static atomic_int done;
    pthread_t handle;
    ready_open(); // the thread's own child has nobody to tell
    MUST_ZERO(pthread_create(&handle, NULL, forking_thread, &done));
    while (!atomic_load(&done)) sleep_checked(1000000);
    ready_close();
    raise(SIGSTOP);
    child_life("the stopped child with threads");
  }
  int status;
  MUST(waitpid(child, &status, WUNTRACED));
  MUST(waitpid(with_threads, &status, WUNTRACED));
  char extra[40];
  snprintf(extra, sizeof extra, " %d %d", child, with_threads);
  report("READY %d%s", getpid(), extra);
  while (!finish_requested()) {
    tick();
    char one = state_of(child), two = state_of(with_threads);
    if (one != 'T' || two != 'T') fail("stopped children: expected state T and T, got %c and %c", one, two);
  }
  kill(child, SIGCONT);
  kill(with_threads, SIGCONT);
  reap_all(2);
}

// signals: what the kernel keeps for each of the 64
struct kernel_action {
  uintptr_t handler;
  unsigned long flags;
  uintptr_t restorer;
  uint64_t mask;
};
static struct kernel_action actions[65];
static void handler_one(int number) { (void)number; }
static void handler_two(int number, siginfo_t *info, void *context) { (void)number, (void)info, (void)context; }
extern void victim_restorer(void);
__asm__(".text\n.globl victim_restorer\nvictim_restorer:\n mov $15, %eax\n syscall\n");

static void check_actions(void) {
  for (int number = 1; number <= 64; number++) {
    struct kernel_action now = {0};
    MUST(syscall(SYS_rt_sigaction, number, NULL, &now, 8));
    char what[60];
#define CHECK_ACTION(part) snprintf(what, sizeof what, #part " of signal %d", number), CHECK_NUMBER(what, actions[number].part, now.part)
    CHECK_ACTION(handler);
    CHECK_ACTION(flags);
    CHECK_ACTION(restorer);
    CHECK_ACTION(mask);
  }
}
static char alternate_stack[32768];
static void signals(void) {
  static const unsigned long extra_flags[] = {0, SA_RESTART, SA_NODEFER, SA_ONSTACK, SA_RESETHAND, SA_NOCLDWAIT, SA_NOCLDSTOP,
                                              SA_RESTART | SA_ONSTACK | SA_NODEFER};
  for (int number = 1; number <= 64; number++) {
    struct kernel_action *action = &actions[number];
    if (number != SIGKILL && number != SIGSTOP && number != SIGCHLD) {
      action->flags = 0x04000000 /* SA_RESTORER */ | extra_flags[number % 8];
      action->restorer = (uintptr_t)victim_restorer;
      action->mask = pattern(1, number) & ~(1ULL << (SIGKILL - 1)) & ~(1ULL << (SIGSTOP - 1));
      switch (number % 4) {
      case 0: action->handler = (uintptr_t)SIG_IGN; break;
      case 1: action->handler = (uintptr_t)handler_one; break;
      case 2: action->handler = (uintptr_t)handler_two, action->flags |= SA_SIGINFO; break;
      case 3: action->handler = (uintptr_t)SIG_DFL; break;
      }
      // Every signal whose default is to be ignored has a handler here: none is free for the use of others.
      if (number == SIGURG || number == SIGWINCH || number == SIGCONT) action->handler = (uintptr_t)handler_one;
      MUST(syscall(SYS_rt_sigaction, number, action, NULL, 8));
    }
  }
  struct kernel_action child = {(uintptr_t)handler_one, 0x04000000 | SA_RESTART, (uintptr_t)victim_restorer, 0};
  MUST(syscall(SYS_rt_sigaction, SIGCHLD, &child, NULL, 8));
  for (int number = 1; number <= 64; number++) MUST(syscall(SYS_rt_sigaction, number, NULL, &actions[number], 8));
  stack_t stack = {.ss_sp = alternate_stack, .ss_size = sizeof alternate_stack};
  MUST(sigaltstack(&stack, NULL));
  uint64_t mask = 0x5555555555555555ULL & ~(1ULL << (SIGKILL - 1)), now = 0;
  MUST(syscall(SYS_rt_sigprocmask, SIG_SETMASK, &mask, NULL, 8));
  MUST(syscall(SYS_rt_sigprocmask, SIG_SETMASK, NULL, &mask, 8));
  report("READY %d", getpid());
  while (!finish_requested()) {
    tick();
    check_actions();
    MUST(syscall(SYS_rt_sigprocmask, SIG_SETMASK, NULL, &now, 8));
    CHECK_NUMBER("signal mask", mask, now);
    MUST(sigaltstack(NULL, &stack));
    CHECK_NUMBER("sigaltstack", alternate_stack, stack.ss_sp);
    CHECK_NUMBER("sigaltstack size", sizeof alternate_stack, stack.ss_size);
  }
}

// pending: signals sent, blocked, not taken yet; they come out in order with all they carry
static atomic_int helper_tid, helper_done;
static void send_queued(pid_t tid, int number, int value) {
  siginfo_t info = {.si_signo = number, .si_code = SI_QUEUE, .si_pid = getpid(), .si_uid = getuid()};
  info.si_value.sival_int = value;
  if (tid) MUST(syscall(SYS_rt_tgsigqueueinfo, getpid(), tid, number, &info));
  else MUST(syscall(SYS_rt_sigqueueinfo, getpid(), number, &info));
}
static void expect_signal(const char *what, int number, int code, int value) {
  sigset_t one;
  sigemptyset(&one);
  sigaddset(&one, number);
  siginfo_t info = {0};
  struct timespec none = {0, 0};
  int got = syscall(SYS_rt_sigtimedwait, &one, &info, &none, 8); // glibc's own would hide SI_TKILL
  if (got != number) {
    fail("%s: signal %d was lost", what, number);
    return;
  }
  char text[100];
  snprintf(text, sizeof text, "%s: si_code of signal %d", what, number);
  CHECK_NUMBER(text, code, info.si_code);
  snprintf(text, sizeof text, "%s: si_pid of signal %d", what, number);
  CHECK_NUMBER(text, getpid(), info.si_pid);
  snprintf(text, sizeof text, "%s: value of signal %d", what, number);
  if (code == SI_QUEUE) CHECK_NUMBER(text, value, info.si_value.sival_int);
}
static void *helper(void *unused) {
  (void)unused;
  pid_t tid = syscall(SYS_gettid);
  for (int i = 0; i < 3; i++) send_queued(tid, SIGRTMIN + 7, 70 + i);
  syscall(SYS_tgkill, getpid(), tid, SIGUSR1);
  atomic_store(&helper_tid, tid);
  while (!finish_requested()) sleep_checked(5000000);
  for (int i = 0; i < 3; i++) expect_signal("pending for a thread", SIGRTMIN + 7, SI_QUEUE, 70 + i);
  expect_signal("pending for a thread", SIGUSR1, SI_TKILL, 0);
  atomic_store(&helper_done, 1);
  return NULL;
}
static void pending(void) {
  sigset_t all;
  sigfillset(&all);
  sigprocmask(SIG_SETMASK, &all, NULL);
  pthread_t handle;
  MUST_ZERO(pthread_create(&handle, NULL, helper, NULL));
  while (!atomic_load(&helper_tid)) sleep_checked(1000000);
  for (int i = 0; i < 5; i++) send_queued(0, SIGRTMIN + 5, 50 + i);
  send_queued(0, SIGRTMIN + 3, 30);
  kill(getpid(), SIGUSR2);
  kill(getpid(), SIGTERM);
  syscall(SYS_tgkill, getpid(), getpid(), SIGINT);
  send_queued(getpid(), SIGRTMIN + 9, 90);
  report("READY %d", getpid());
  while (!finish_requested()) tick();
  pthread_join(handle, NULL);
  expect_signal("pending for the process", SIGUSR2, SI_USER, 0);
  expect_signal("pending for the process", SIGTERM, SI_USER, 0);
  expect_signal("pending for the first thread", SIGINT, SI_TKILL, 0);
  expect_signal("pending for the first thread", SIGRTMIN + 9, SI_QUEUE, 90);
  expect_signal("pending for the process", SIGRTMIN + 3, SI_QUEUE, 30);
  for (int i = 0; i < 5; i++) expect_signal("pending for the process", SIGRTMIN + 5, SI_QUEUE, 50 + i);
  sigset_t left;
  sigpending(&left);
  for (int number = 1; number <= 64; number++)
    if (sigismember(&left, number) == 1) fail("signal %d is pending, nobody sent it", number);
}

// limits: resource limits, nice, umask, comm
static void limits(void) {
  static const struct { int resource; rlim_t soft, hard; } wanted[] = {
      {RLIMIT_NOFILE, 500, 1000},          {RLIMIT_CORE, 4096, 8192},          {RLIMIT_STACK, 4 << 20, 64 << 20},
      {RLIMIT_CPU, 100000, 200000},        {RLIMIT_FSIZE, 1 << 30, 1LL << 31}, {RLIMIT_NPROC, 5000, 6000},
      {RLIMIT_MEMLOCK, 65536, 131072},     {RLIMIT_SIGPENDING, 100, 200},      {RLIMIT_MSGQUEUE, 1000, 2000},
      {RLIMIT_AS, 1LL << 40, 1LL << 41},   {RLIMIT_DATA, 1LL << 38, RLIM_INFINITY},
  };
  enum { COUNT = sizeof wanted / sizeof *wanted };
  for (int i = 0; i < COUNT; i++) {
    struct rlimit limit = {wanted[i].soft, wanted[i].hard};
    MUST(setrlimit(wanted[i].resource, &limit));
  }
  MUST(setpriority(PRIO_PROCESS, 0, 7));
  umask(0137);
  prctl(PR_SET_NAME, "odd (name) \n x");
  report("READY %d", getpid());
  while (!finish_requested()) {
    tick();
    for (int i = 0; i < COUNT; i++) {
      struct rlimit now = {0, 0};
      char what[60];
      MUST(getrlimit(wanted[i].resource, &now));
      snprintf(what, sizeof what, "soft limit %d", wanted[i].resource);
      CHECK_NUMBER(what, wanted[i].soft, now.rlim_cur);
      snprintf(what, sizeof what, "hard limit %d", wanted[i].resource);
      CHECK_NUMBER(what, wanted[i].hard, now.rlim_max);
    }
    CHECK_NUMBER("nice", 7, getpriority(PRIO_PROCESS, 0));
    CHECK_NUMBER("umask", 0137, umask(0137));
    char name[16] = "";
    prctl(PR_GET_NAME, name);
    CHECK_TEXT("comm", "odd (name) \n x", name);
  }
}

// attributes: what prctl keeps
static void attributes(void) {
  MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
  MUST(prctl(PR_SET_DUMPABLE, 0));
  MUST(prctl(PR_SET_PDEATHSIG, 0));
  MUST(prctl(PR_SET_CHILD_SUBREAPER, 1));
  MUST(prctl(PR_SET_TIMERSLACK, 123456));
  MUST(prctl(PR_SET_KEEPCAPS, 1));
  int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
  if (fd >= 0) {
    MUST(write(fd, "123", 3));
    close(fd);
  }
  report("READY %d", getpid());
  while (!finish_requested()) {
    tick();
    int value = 0;
    CHECK_NUMBER("no_new_privs", 1, prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
    CHECK_NUMBER("dumpable", 0, prctl(PR_GET_DUMPABLE));
    prctl(PR_GET_CHILD_SUBREAPER, &value);
    CHECK_NUMBER("child subreaper", 1, value);
    CHECK_NUMBER("timer slack", 123456, prctl(PR_GET_TIMERSLACK));
    CHECK_NUMBER("keep capabilities", 1, prctl(PR_GET_KEEPCAPS));
    char text[40];
    read_file("/proc/self/oom_score_adj", text, sizeof text);
    CHECK_TEXT("oom_score_adj", "123\n", text);
  }
}

// ids: other users and groups, fewer capabilities (only as root)
struct ids {
  uid_t user[3];
  gid_t group[3], groups[8];
  int group_count;
  struct __user_cap_data_struct capabilities[2];
  uint64_t bounding, ambient;
  int secure_bits;
};
static struct ids ids_now(void) {
  struct ids now;
  memset(&now, 0, sizeof now);
  getresuid(&now.user[0], &now.user[1], &now.user[2]);
  getresgid(&now.group[0], &now.group[1], &now.group[2]);
  now.group_count = getgroups(8, now.groups);
  struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
  syscall(SYS_capget, &header, now.capabilities);
  for (int capability = 0; capability < 64; capability++) {
    if (prctl(PR_CAPBSET_READ, capability) == 1) now.bounding |= 1ULL << capability;
    if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, capability, 0, 0) == 1) now.ambient |= 1ULL << capability;
  }
  now.secure_bits = prctl(PR_GET_SECUREBITS);
  return now;
}
static void life_with_ids(const char *who) {
  struct ids was = ids_now();
  ready_say();
  while (!finish_requested()) {
    tick();
    struct ids now = ids_now();
    char what[80];
    for (int i = 0; i < 3; i++) {
      snprintf(what, sizeof what, "user ID %d of %s", i, who);
      CHECK_NUMBER(what, was.user[i], now.user[i]);
      snprintf(what, sizeof what, "group ID %d of %s", i, who);
      CHECK_NUMBER(what, was.group[i], now.group[i]);
    }
    if (was.group_count != now.group_count || memcmp(was.groups, now.groups, sizeof was.groups) != 0)
      fail("supplementary groups of %s: expected %d of them, the first %u, got %d, %u", who, was.group_count, was.groups[0],
           now.group_count, now.groups[0]);
    for (int i = 0; i < 2; i++) {
      snprintf(what, sizeof what, "capabilities %d of %s", i, who);
      CHECK_NUMBER(what, was.capabilities[i].effective, now.capabilities[i].effective);
      CHECK_NUMBER(what, was.capabilities[i].permitted, now.capabilities[i].permitted);
      CHECK_NUMBER(what, was.capabilities[i].inheritable, now.capabilities[i].inheritable);
    }
    snprintf(what, sizeof what, "bounding set of %s", who);
    CHECK_NUMBER(what, was.bounding, now.bounding);
    snprintf(what, sizeof what, "ambient set of %s", who);
    CHECK_NUMBER(what, was.ambient, now.ambient);
    snprintf(what, sizeof what, "secure bits of %s", who);
    CHECK_NUMBER(what, was.secure_bits, now.secure_bits);
  }
  _exit(atomic_load(&victim_failures) ? 66 : 0);
}
static void set_capabilities(uint64_t permitted, uint64_t inheritable) {
  struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
  struct __user_cap_data_struct data[2] = {{permitted, permitted, inheritable}, {permitted >> 32, permitted >> 32, inheritable >> 32}};
  MUST(syscall(SYS_capset, &header, data));
}
static void ids(void) {
  if (geteuid() != 0) {
    report("NOTE not root: nothing to try");
    report("READY %d", getpid());
    while (!finish_requested()) tick();
    return;
  }
  ready_open();
  if (MUST(fork()) == 0) { // nobody, wholly
    progress_open("nobody");
    gid_t groups[] = {65533, 1000, 77};
    MUST(setgroups(3, groups));
    MUST(setresgid(65534, 100, 65534));
    MUST(setresuid(65534, 65534, 65534));
    life_with_ids("the child of user nobody");
  }
  if (MUST(fork()) == 0) { // root that can go back
    progress_open("mixed");
    MUST(setgroups(0, NULL));
    MUST(setresgid(100, 0, 101));
    MUST(setresuid(1000, 65534, 0));
    life_with_ids("the child with three user IDs");
  }
  if (MUST(fork()) == 0) { // root with less
    progress_open("less");
    MUST(prctl(PR_CAPBSET_DROP, CAP_SYS_MODULE));
    MUST(prctl(PR_CAPBSET_DROP, CAP_MKNOD));
    MUST(prctl(PR_SET_SECUREBITS, SECBIT_NOROOT | SECBIT_NO_SETUID_FIXUP));
    set_capabilities(1ULL << CAP_CHOWN | 1ULL << CAP_KILL | 1ULL << CAP_SYSLOG, 1ULL << CAP_KILL);
    MUST(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_KILL, 0, 0));
    life_with_ids("the child with three capabilities");
  }
  if (MUST(fork()) == 0) { // nobody with one capability kept
    progress_open("kept");
    MUST(prctl(PR_SET_KEEPCAPS, 1));
    MUST(setresgid(65534, 65534, 65534));
    MUST(setresuid(65534, 65534, 65534));
    set_capabilities(1ULL << CAP_NET_BIND_SERVICE, 0);
    life_with_ids("the child of user nobody with one capability");
  }
  ready_wait(4);
  ready_close();
  root_life("");
  reap_all(4);
}

// chroot: a child with another root
static void with_chroot(void) {
  ready_open();
  if (MUST(fork()) == 0) {
    progress_open("inside");
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/inner", victim_directory);
    MUST(mkdir(path, 0755));
    MUST(chdir(path));
    MUST(chroot(victim_directory));
    ready_say();
    char cwd[PATH_MAX] = "";
    while (access("/finish", F_OK) != 0) {
      tick();
      CHECK_NUMBER("a file seen from the changed root", 0, access("/progress.inside", F_OK));
      CHECK_NUMBER("the old root seen from the changed root", -1, access("/proc/self", F_OK));
      CHECK_TRUE("getcwd", getcwd(cwd, sizeof cwd) != NULL);
      CHECK_TEXT("working directory under the changed root", "/inner", cwd);
    }
    _exit(atomic_load(&victim_failures) ? 66 : 0);
  }
  ready_wait(1);
  ready_close();
  root_life("");
  reap_all(1);
}

int main(int argc, char **argv) {
  victim_start();
  static const struct { const char *name; void (*live)(void); } modes[] = {
      {"tree", tree},       {"dead-leaders", dead_leaders}, {"zombies", zombies}, {"leader-exit", leader_exit},
      {"stopped", stopped}, {"signals", signals},           {"pending", pending}, {"limits", limits},
      {"attributes", attributes}, {"ids", ids},             {"chroot", with_chroot},
  };
  for (unsigned i = 0; i < sizeof modes / sizeof *modes; i++)
    if (argc > 1 && strcmp(argv[1], modes[i].name) == 0) {
      modes[i].live();
      return victim_end();
    }
  return 97;
}

// Blocks in exactly one system call and says what came out of it. Usage: syscalls CALL [SECONDS] | syscalls --list
//
// READY pid tid NUMBER...  the call numbers in which the test may see the thread wait
// RETURN call result errno milliseconds
// The wait ends when its time runs out, when the test creates `finish` (a thread or child of ours, the "poker", then does what
// the call waits for), or when the test sends the signal the call waits for. EINTR without a handled signal, an early return, or
// anything but the right result is a FAIL.
#include "victim.h"
#include <linux/aio_abi.h>
#include <linux/futex.h>
#include <netinet/in.h>
#include <poll.h>
#include <semaphore.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/un.h>

static double seconds = 3;
static int64_t started;
static volatile sig_atomic_t handled;
static int tube[2];       // a pipe that the poker writes to
static uint32_t word;     // a futex word
static sem_t semaphore;
static int queue = -1, semaphores = -1;
static int pair[2], listener = -1;
static struct sockaddr_un unix_name;
static struct sockaddr_in tcp_name;
static sigset_t blocked_before;

struct call;
static const struct call *current;

struct call {
  const char *name;
  int number, second_number; // where the thread is seen to wait
  enum { BY_TIME, BY_POKE, BY_SIGNAL } end;
  void (*prepare)(void);
  long (*wait)(void); // the bare call: result or -errno
  void (*poke)(void);
  long expected;
  void (*check)(void);
};

static long bare(long result) { return result == -1 ? -errno : result; }
static struct timespec in_seconds(double from_now) {
  return (struct timespec){(time_t)from_now, (long)((from_now - (time_t)from_now) * 1e9)};
}
static struct timespec at_clock(clockid_t clock, double from_now) {
  struct timespec now;
  clock_gettime(clock, &now);
  int64_t ns = now.tv_sec * 1000000000LL + now.tv_nsec + (int64_t)(from_now * 1e9);
  return (struct timespec){ns / 1000000000, ns % 1000000000};
}
static void on_signal(int number, siginfo_t *info, void *context) {
  (void)context, (void)number;
  handled += info->si_code == SI_USER ? 1 : 100;
}

// Pokes: what ends the wait.
static void poke_pipe(void) { MUST(write(tube[1], "!", 1)); }
static void poke_futex(void) {
  __atomic_store_n(&word, 1, __ATOMIC_SEQ_CST);
  MUST(syscall(SYS_futex, &word, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, 1, NULL, NULL, 0));
}
static void poke_semaphore(void) { sem_post(&semaphore); }
static void poke_socket(void) { MUST(write(pair[1], "!", 1)); }
static void poke_message(void) {
  struct { long type; char text[8]; } message = {5, "message"};
  MUST(msgsnd(queue, &message, 8, 0));
}
static void poke_system_v(void) {
  struct sembuf up = {0, 1, 0};
  MUST(semop(semaphores, &up, 1));
}
static int accepted_by_poker = -1;
static void poke_accept(void) { accepted_by_poker = MUST(accept(listener, NULL, NULL)); }
static void poke_connect_unix(void) {
  int fd = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
  MUST(connect(fd, (struct sockaddr *)&unix_name, sizeof unix_name));
}
static void poke_connect_tcp(void) {
  int fd = MUST(socket(AF_INET, SOCK_STREAM, 0));
  MUST(connect(fd, (struct sockaddr *)&tcp_name, sizeof tcp_name));
}
static int event = -1;
static void poke_event(void) {
  uint64_t five = 5;
  MUST(write(event, &five, 8));
}

// nanosleep and its relatives
static long wait_nanosleep(void) {
  struct timespec time = in_seconds(seconds);
  return bare(syscall(SYS_nanosleep, &time, NULL));
}
static struct timespec remaining;
static long wait_nanosleep_rem(void) {
  struct timespec time = in_seconds(seconds);
  return bare(syscall(SYS_nanosleep, &time, &remaining));
}
static long wait_clock_relative(void) {
  struct timespec time = in_seconds(seconds);
  return bare(syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &time, NULL));
}
static long wait_clock_absolute(void) {
  struct timespec time = at_clock(CLOCK_MONOTONIC, seconds);
  return bare(syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, TIMER_ABSTIME, &time, NULL));
}
static long wait_clock_realtime(void) {
  struct timespec time = at_clock(CLOCK_REALTIME, seconds);
  return bare(syscall(SYS_clock_nanosleep, CLOCK_REALTIME, TIMER_ABSTIME, &time, NULL));
}

// poll and select
static void prepare_pipe(void) { MUST(pipe2(tube, O_CLOEXEC)); }
static long poll_tube(int milliseconds) {
  struct pollfd entry = {tube[0], POLLIN, 0x55};
  long result = bare(syscall(SYS_poll, &entry, 1, milliseconds));
  if (result >= 0) CHECK_NUMBER("poll revents", result == 1 ? POLLIN : 0, entry.revents);
  return result;
}
static long wait_poll(void) { return poll_tube(-1); }
static long wait_poll_time(void) { return poll_tube((int)(seconds * 1000)); }
static sigset_t all_but_usr2(void) {
  sigset_t mask;
  sigfillset(&mask);
  sigdelset(&mask, SIGUSR2);
  return mask;
}
static void prepare_signal(void) { // SIGUSR2 is blocked outside the call, and handled
  prepare_pipe();
  sigset_t one;
  sigemptyset(&one);
  sigaddset(&one, SIGUSR2);
  sigaddset(&one, SIGRTMIN + 3);
  sigprocmask(SIG_BLOCK, &one, NULL);
  struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO};
  sigaction(SIGUSR2, &action, NULL);
}
static long ppoll_tube(struct timespec *time) {
  struct pollfd entry = {tube[0], POLLIN, 0x55};
  sigset_t mask = all_but_usr2();
  return bare(syscall(SYS_ppoll, &entry, 1, time, &mask, 8));
}
static long wait_ppoll(void) { return ppoll_tube(NULL); }
static long wait_ppoll_time(void) {
  struct timespec time = in_seconds(seconds);
  return ppoll_tube(&time);
}
static long select_tube(struct timeval *time) {
  fd_set set;
  FD_ZERO(&set);
  FD_SET(tube[0], &set);
  long result = bare(syscall(SYS_select, tube[0] + 1, &set, NULL, NULL, time));
  if (result >= 0) CHECK_NUMBER("select set", result, FD_ISSET(tube[0], &set) ? 1 : 0);
  return result;
}
static long wait_select(void) { return select_tube(NULL); }
static long wait_select_time(void) {
  struct timespec time = in_seconds(seconds);
  struct timeval value = {time.tv_sec, time.tv_nsec / 1000};
  long result = select_tube(&value);
  if (result == 0) CHECK_NUMBER("time left over by select (us)", 0, value.tv_sec * 1000000 + value.tv_usec);
  return result;
}
static long pselect_tube(struct timespec *time) {
  fd_set set;
  FD_ZERO(&set);
  FD_SET(tube[0], &set);
  sigset_t mask = all_but_usr2();
  struct { const sigset_t *mask; size_t size; } argument = {&mask, 8};
  return bare(syscall(SYS_pselect6, tube[0] + 1, &set, NULL, NULL, time, &argument));
}
static long wait_pselect(void) { return pselect_tube(NULL); }
static long wait_pselect_time(void) {
  struct timespec time = in_seconds(seconds);
  return pselect_tube(&time);
}

// epoll
static int epoll = -1;
static void watch(int fd) {
  epoll = MUST(epoll_create1(EPOLL_CLOEXEC));
  struct epoll_event wanted = {.events = EPOLLIN, .data.u64 = 0x1234567890abcdefULL};
  MUST(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &wanted));
}
static void prepare_epoll(void) {
  prepare_signal();
  watch(tube[0]);
}
static void prepare_event(void) {
  event = MUST(eventfd(0, EFD_CLOEXEC));
  watch(event);
}
static long epoll_for(long milliseconds, sigset_t *mask) {
  struct epoll_event seen[4] = {0};
  long result = mask ? syscall(SYS_epoll_pwait, epoll, seen, 4, milliseconds, mask, 8)
                     : syscall(SYS_epoll_wait, epoll, seen, 4, milliseconds);
  result = bare(result);
  if (result == 1) {
    CHECK_NUMBER("epoll events", EPOLLIN, seen[0].events);
    CHECK_NUMBER("epoll data", 0x1234567890abcdefLL, seen[0].data.u64);
  }
  return result;
}
static long wait_epoll(void) { return epoll_for(-1, NULL); }
static long wait_epoll_time(void) { return epoll_for((long)(seconds * 1000), NULL); }
static long wait_epoll_pwait(void) {
  sigset_t mask = all_but_usr2();
  return epoll_for(-1, &mask);
}
static long wait_epoll_pwait_time(void) {
  sigset_t mask = all_but_usr2();
  return epoll_for((long)(seconds * 1000), &mask);
}
static void prepare_eventfd(void) { event = MUST(eventfd(0, EFD_CLOEXEC)); }
static long wait_eventfd(void) {
  uint64_t value = 0;
  long result = bare(syscall(SYS_read, event, &value, 8));
  if (result == 8) CHECK_NUMBER("eventfd value", 5, value);
  return result;
}

// futex
static long futex(int operation, struct timespec *time) {
  return bare(syscall(SYS_futex, &word, operation | FUTEX_PRIVATE_FLAG, 0, time, NULL, FUTEX_BITSET_MATCH_ANY));
}
static long wait_futex(void) { return futex(FUTEX_WAIT, NULL); }
static long wait_futex_time(void) {
  struct timespec time = in_seconds(seconds);
  return futex(FUTEX_WAIT, &time);
}
static long wait_futex_absolute(void) {
  struct timespec time = at_clock(CLOCK_MONOTONIC, seconds);
  return futex(FUTEX_WAIT_BITSET, &time);
}
static void prepare_semaphore(void) { MUST(sem_init(&semaphore, 0, 0)); }
static long wait_semaphore_time(void) {
  struct timespec time = at_clock(CLOCK_REALTIME, seconds);
  return bare(sem_timedwait(&semaphore, &time));
}
static long wait_semaphore(void) {
  struct timespec time = at_clock(CLOCK_REALTIME, 600);
  return bare(sem_timedwait(&semaphore, &time));
}

// a pipe, a child, signals, a lock
static long wait_read(void) {
  char byte = 0;
  long result = bare(syscall(SYS_read, tube[0], &byte, 1));
  if (result == 1) CHECK_NUMBER("byte from the pipe", '!', byte);
  return result;
}
static void prepare_full_pipe(void) {
  prepare_pipe();
  int size = MUST(fcntl(tube[1], F_GETPIPE_SZ));
  char *filler = malloc(size);
  memset(filler, 'x', size);
  MUST(write(tube[1], filler, size));
}
static long wait_write(void) { return bare(syscall(SYS_write, tube[1], "!", 1)); }
static void poke_drain(void) {
  char buffer[4096];
  MUST(read(tube[0], buffer, sizeof buffer));
}
static pid_t child;
static void prepare_child(void) {
  child = MUST(fork());
  if (child != 0) return;
  while (!finish_requested()) sleep_checked(3000000);
  _exit(atomic_load(&victim_failures) ? 66 : 7);
}
static long wait_wait4(void) {
  int status = 0;
  long result = bare(syscall(SYS_wait4, -1, &status, 0, NULL));
  if (result > 0) {
    CHECK_NUMBER("child from wait4", child, result);
    CHECK_NUMBER("status from wait4", 7 << 8, status);
    result = 1;
  }
  return result;
}
static long wait_waitid(void) {
  siginfo_t info = {0};
  long result = bare(syscall(SYS_waitid, P_PID, child, &info, WEXITED, NULL));
  if (result == 0) {
    CHECK_NUMBER("child from waitid", child, info.si_pid);
    CHECK_NUMBER("status from waitid", 7, info.si_status);
  }
  return result;
}
static long wait_pause(void) { return bare(syscall(SYS_pause)); }
static void prepare_pause(void) {
  struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO};
  sigaction(SIGUSR2, &action, NULL);
}
static long wait_sigsuspend(void) {
  sigset_t mask = all_but_usr2();
  return bare(syscall(SYS_rt_sigsuspend, &mask, 8));
}
static long sigtimedwait_for(struct timespec *time) {
  sigset_t wanted;
  sigemptyset(&wanted);
  sigaddset(&wanted, SIGUSR2);
  siginfo_t info = {0};
  long result = bare(syscall(SYS_rt_sigtimedwait, &wanted, &info, time, 8));
  if (result > 0) CHECK_NUMBER("si_code from sigtimedwait", SI_USER, info.si_code);
  return result;
}
static long wait_sigwaitinfo(void) { return sigtimedwait_for(NULL); }
static long wait_sigtimedwait(void) {
  struct timespec time = in_seconds(seconds);
  return sigtimedwait_for(&time);
}
static int lock_fd = -1;
static void prepare_lock(void) { // a child holds the lock until `finish`
  char path[PATH_MAX];
  snprintf(path, sizeof path, "%s/lock", victim_directory);
  int done[2];
  char byte;
  MUST(pipe(done));
  child = MUST(fork());
  if (child == 0) {
    int fd = MUST(open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666));
    MUST(flock(fd, LOCK_EX));
    MUST(write(done[1], "!", 1));
    close(done[0]), close(done[1]);
    while (!finish_requested()) sleep_checked(3000000);
    _exit(atomic_load(&victim_failures) ? 66 : 0);
  }
  MUST(read(done[0], &byte, 1));
  close(done[0]), close(done[1]);
  lock_fd = MUST(open(path, O_RDWR | O_CLOEXEC));
}
static long wait_flock(void) { return bare(syscall(SYS_flock, lock_fd, LOCK_EX)); }

// System V
static void prepare_queue(void) {
  queue = MUST(msgget(IPC_PRIVATE, 0600));
  report("IPC -q %d", queue);
}
static long wait_msgrcv(void) {
  struct { long type; char text[8]; } message = {0};
  long result = bare(syscall(SYS_msgrcv, queue, &message, 8, 5, 0));
  if (result == 8) CHECK_TEXT("message", "message", message.text);
  return result;
}
static void prepare_system_v(void) {
  semaphores = MUST(semget(IPC_PRIVATE, 1, 0600));
  report("IPC -s %d", semaphores);
}
static struct sembuf down = {0, -1, 0};
static long wait_semop(void) { return bare(syscall(SYS_semop, semaphores, &down, 1)); }
static long wait_semtimedop(void) {
  struct timespec time = in_seconds(seconds);
  return bare(syscall(SYS_semtimedop, semaphores, &down, 1, &time));
}
static void remove_ipc(void) {
  if (queue >= 0) msgctl(queue, IPC_RMID, NULL);
  if (semaphores >= 0) semctl(semaphores, 0, IPC_RMID);
}

// sockets
static void listen_unix(void) {
  unix_name.sun_family = AF_UNIX;
  MUST(chdir(victim_directory)); // the whole path may be too long for a socket name
  strcpy(unix_name.sun_path, "socket");
  listener = MUST(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  MUST(bind(listener, (struct sockaddr *)&unix_name, sizeof unix_name));
}
static void prepare_accept(void) {
  listen_unix();
  MUST(listen(listener, 5));
}
static void receive_time(int fd, int option) {
  struct timespec time = in_seconds(seconds);
  struct timeval value = {time.tv_sec, time.tv_nsec / 1000};
  MUST(setsockopt(fd, SOL_SOCKET, option, &value, sizeof value));
}
static void prepare_accept_time(void) {
  prepare_accept();
  receive_time(listener, SO_RCVTIMEO);
}
static void prepare_accept_tcp(void) {
  listener = MUST(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  tcp_name.sin_family = AF_INET;
  tcp_name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof tcp_name;
  MUST(bind(listener, (struct sockaddr *)&tcp_name, length));
  MUST(getsockname(listener, (struct sockaddr *)&tcp_name, &length));
  MUST(listen(listener, 5));
}
static long wait_accept(void) {
  long result = bare(syscall(SYS_accept, listener, NULL, NULL));
  return result >= 0 ? 0 : result;
}
static void prepare_pair(void) { MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair)); }
static void prepare_pair_time(void) {
  prepare_pair();
  receive_time(pair[0], SO_RCVTIMEO);
}
static long wait_recv(void) {
  char byte;
  return bare(syscall(SYS_recvfrom, pair[0], &byte, 1, 0, NULL, NULL));
}
static int connecting = -1;
static void prepare_connect(void) { // a listener whose backlog is full
  listen_unix();
  MUST(listen(listener, 0));
  int fd = MUST(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  MUST(connect(fd, (struct sockaddr *)&unix_name, sizeof unix_name));
  connecting = MUST(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
}
static void prepare_connect_time(void) {
  prepare_connect();
  receive_time(connecting, SO_SNDTIMEO);
}
static long wait_connect(void) { return bare(syscall(SYS_connect, connecting, &unix_name, sizeof unix_name)); }

// the AIO ring
static aio_context_t ring;
static void prepare_aio(void) {
  prepare_pipe();
  MUST(syscall(SYS_io_setup, 8, &ring));
  static struct iocb block;
  static struct iocb *blocks[1] = {&block};
  block = (struct iocb){.aio_data = 77, .aio_lio_opcode = IOCB_CMD_POLL, .aio_fildes = tube[0], .aio_buf = POLLIN};
  if (MUST(syscall(SYS_io_submit, ring, 1, blocks)) != 1) _exit(98);
}
static long getevents(struct timespec *time) {
  struct io_event seen = {0};
  long result = bare(syscall(SYS_io_getevents, ring, 1, 1, &seen, time));
  if (result == 1) CHECK_NUMBER("data of the AIO event", 77, seen.data);
  return result;
}
static long wait_getevents(void) { return getevents(NULL); }
static long wait_getevents_time(void) {
  struct timespec time = in_seconds(seconds);
  return getevents(&time);
}

// What must be so afterwards.
static void check_handled(void) { CHECK_NUMBER("times the handler ran", 1, handled); }
static void check_word(void) { CHECK_NUMBER("futex word", 1, word); }

static const struct call calls[] = {
    {"nanosleep", SYS_nanosleep, 0, BY_TIME, NULL, wait_nanosleep, NULL, 0, NULL},
    {"nanosleep-rem", SYS_nanosleep, 0, BY_TIME, NULL, wait_nanosleep_rem, NULL, 0, NULL},
    {"clock_nanosleep-relative", SYS_clock_nanosleep, 0, BY_TIME, NULL, wait_clock_relative, NULL, 0, NULL},
    {"clock_nanosleep-absolute", SYS_clock_nanosleep, 0, BY_TIME, NULL, wait_clock_absolute, NULL, 0, NULL},
    {"clock_nanosleep-realtime", SYS_clock_nanosleep, 0, BY_TIME, NULL, wait_clock_realtime, NULL, 0, NULL},
    {"poll", SYS_poll, 0, BY_POKE, prepare_pipe, wait_poll, poke_pipe, 1, NULL},
    {"poll-time", SYS_poll, 0, BY_TIME, prepare_pipe, wait_poll_time, NULL, 0, NULL},
    {"ppoll", SYS_ppoll, 0, BY_POKE, prepare_signal, wait_ppoll, poke_pipe, 1, NULL},
    {"ppoll-time", SYS_ppoll, 0, BY_TIME, prepare_signal, wait_ppoll_time, NULL, 0, NULL},
    {"ppoll-signal", SYS_ppoll, 0, BY_SIGNAL, prepare_signal, wait_ppoll, NULL, -EINTR, check_handled},
    {"select", SYS_select, 0, BY_POKE, prepare_pipe, wait_select, poke_pipe, 1, NULL},
    {"select-time", SYS_select, 0, BY_TIME, prepare_pipe, wait_select_time, NULL, 0, NULL},
    {"pselect", SYS_pselect6, 0, BY_POKE, prepare_signal, wait_pselect, poke_pipe, 1, NULL},
    {"pselect-time", SYS_pselect6, 0, BY_TIME, prepare_signal, wait_pselect_time, NULL, 0, NULL},
    {"pselect-signal", SYS_pselect6, 0, BY_SIGNAL, prepare_signal, wait_pselect, NULL, -EINTR, check_handled},
    {"epoll_wait", SYS_epoll_wait, 0, BY_POKE, prepare_epoll, wait_epoll, poke_pipe, 1, NULL},
    {"epoll_wait-time", SYS_epoll_wait, 0, BY_TIME, prepare_epoll, wait_epoll_time, NULL, 0, NULL},
    {"epoll_wait-eventfd", SYS_epoll_wait, 0, BY_POKE, prepare_event, wait_epoll, poke_event, 1, NULL},
    {"epoll_pwait", SYS_epoll_pwait, 0, BY_POKE, prepare_epoll, wait_epoll_pwait, poke_pipe, 1, NULL},
    {"epoll_pwait-time", SYS_epoll_pwait, 0, BY_TIME, prepare_epoll, wait_epoll_pwait_time, NULL, 0, NULL},
    {"epoll_pwait-signal", SYS_epoll_pwait, 0, BY_SIGNAL, prepare_epoll, wait_epoll_pwait, NULL, -EINTR, check_handled},
    {"read-eventfd", SYS_read, 0, BY_POKE, prepare_eventfd, wait_eventfd, poke_event, 8, NULL},
    {"futex", SYS_futex, 0, BY_POKE, NULL, wait_futex, poke_futex, 0, check_word},
    {"futex-time", SYS_futex, 0, BY_TIME, NULL, wait_futex_time, NULL, -ETIMEDOUT, NULL},
    {"futex-absolute", SYS_futex, 0, BY_TIME, NULL, wait_futex_absolute, NULL, -ETIMEDOUT, NULL},
    {"sem_timedwait", SYS_futex, 0, BY_POKE, prepare_semaphore, wait_semaphore, poke_semaphore, 0, NULL},
    {"sem_timedwait-time", SYS_futex, 0, BY_TIME, prepare_semaphore, wait_semaphore_time, NULL, -ETIMEDOUT, NULL},
    {"read", SYS_read, 0, BY_POKE, prepare_pipe, wait_read, poke_pipe, 1, NULL},
    {"write", SYS_write, 0, BY_POKE, prepare_full_pipe, wait_write, poke_drain, 1, NULL},
    {"wait4", SYS_wait4, 0, BY_POKE, prepare_child, wait_wait4, NULL, 1, NULL},
    {"waitid", SYS_waitid, 0, BY_POKE, prepare_child, wait_waitid, NULL, 0, NULL},
    {"pause", SYS_pause, 0, BY_SIGNAL, prepare_pause, wait_pause, NULL, -EINTR, check_handled},
    {"sigsuspend", SYS_rt_sigsuspend, 0, BY_SIGNAL, prepare_signal, wait_sigsuspend, NULL, -EINTR, check_handled},
    {"sigwaitinfo", SYS_rt_sigtimedwait, 0, BY_SIGNAL, prepare_signal, wait_sigwaitinfo, NULL, SIGUSR2, NULL},
    {"sigtimedwait-time", SYS_rt_sigtimedwait, 0, BY_TIME, prepare_signal, wait_sigtimedwait, NULL, -EAGAIN, NULL},
    {"flock", SYS_flock, 0, BY_POKE, prepare_lock, wait_flock, NULL, 0, NULL},
    {"msgrcv", SYS_msgrcv, 0, BY_POKE, prepare_queue, wait_msgrcv, poke_message, 8, remove_ipc},
    {"semop", SYS_semop, SYS_semtimedop, BY_POKE, prepare_system_v, wait_semop, poke_system_v, 0, remove_ipc},
    {"semtimedop-time", SYS_semtimedop, 0, BY_TIME, prepare_system_v, wait_semtimedop, NULL, -EAGAIN, remove_ipc},
    {"accept", SYS_accept, 0, BY_POKE, prepare_accept, wait_accept, poke_connect_unix, 0, NULL},
    {"accept-time", SYS_accept, 0, BY_TIME, prepare_accept_time, wait_accept, NULL, -EAGAIN, NULL},
    {"accept-tcp", SYS_accept, 0, BY_POKE, prepare_accept_tcp, wait_accept, poke_connect_tcp, 0, NULL},
    {"recv", SYS_recvfrom, 0, BY_POKE, prepare_pair, wait_recv, poke_socket, 1, NULL},
    {"recv-time", SYS_recvfrom, 0, BY_TIME, prepare_pair_time, wait_recv, NULL, -EAGAIN, NULL},
    {"connect", SYS_connect, 0, BY_POKE, prepare_connect, wait_connect, poke_accept, 0, NULL},
    {"connect-time", SYS_connect, 0, BY_TIME, prepare_connect_time, wait_connect, NULL, -EAGAIN, NULL},
    {"io_getevents", SYS_io_getevents, 0, BY_POKE, prepare_aio, wait_getevents, poke_pipe, 1, NULL},
    {"io_getevents-time", SYS_io_getevents, 0, BY_TIME, prepare_aio, wait_getevents_time, NULL, 0, NULL},
};

static void *poker(void *unused) {
  (void)unused;
  while (!finish_requested()) sleep_checked(3000000);
  current->poke();
  return NULL;
}

int main(int argc, char **argv) {
  const int count = sizeof calls / sizeof *calls;
  if (argc > 1 && strcmp(argv[1], "--list") == 0) {
    static const char *ends[] = {"time", "poke", "signal"};
    for (int i = 0; i < count; i++) printf("%s %s\n", calls[i].name, ends[calls[i].end]);
    return 0;
  }
  victim_start();
  for (int i = 0; i < count; i++)
    if (argc > 1 && strcmp(argv[1], calls[i].name) == 0) current = &calls[i];
  if (argc > 2) seconds = atof(argv[2]);
  if (!current) return 97;
  if (current->prepare) current->prepare();
  if (current->poke) { // beside the waiting thread, deaf to every signal
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_t handle;
    MUST_ZERO(pthread_create(&handle, NULL, poker, NULL));
    pthread_sigmask(SIG_SETMASK, &before, NULL);
  }
  sigprocmask(SIG_SETMASK, NULL, &blocked_before);
  report("READY %d %ld %d %d", getpid(), syscall(SYS_gettid), current->number, current->second_number);

  started = monotonic_ns();
  long result = current->wait();
  int64_t took = monotonic_ns() - started;

  report("RETURN %s %ld %s %lld", current->name, result, result < 0 ? strerrorname_np(-result) : "0", (long long)took / 1000000);
  if (result != current->expected)
    fail("%s: expected %ld, got %ld (%s) after %lld ms", current->name, current->expected, result,
         result < 0 ? strerror(-result) : "no error", (long long)took / 1000000);
  // poll and epoll count in milliseconds of a coarse clock; nothing may be early by more than that.
  if (current->end == BY_TIME && took < (int64_t)(seconds * 1e9) - 1000000)
    fail("%s: expected %.0f ms, came back after %lld ms", current->name, seconds * 1000, (long long)took / 1000000);
  if (current->end == BY_POKE && !finish_requested()) fail("%s: came back although nothing had happened", current->name);
  if (current->end != BY_SIGNAL) CHECK_NUMBER("times the handler ran", 0, handled);
  sigset_t blocked_after;
  sigprocmask(SIG_SETMASK, NULL, &blocked_after);
  for (int signal = 1; signal <= 64; signal++)
    if (sigismember(&blocked_before, signal) != sigismember(&blocked_after, signal))
      fail("%s: signal %d is %s after the call, before it was not", current->name, signal,
           sigismember(&blocked_after, signal) == 1 ? "blocked" : "open");
  if (current->check) current->check();
  return victim_end();
}

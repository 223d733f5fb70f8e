// Event counters, timers and signals as descriptors, epoll instances over all of them, FIFOs, pipes in packet mode, listening
// sockets, and locks on files.
#include "victim.h"
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>

static int counter, semaphore, far_timer, ticking, idle_timer, signals;
static int poll_set, inner_set, moved, packets[2], fifo_reading, fifo_writing;
static int listening, listening6, fresh, owned[2];
static int posix_locked, flocked, description_locked;
static int watched[2], moved_pipe[2];
static struct sockaddr_in address;

static int open_here(const char *name, int flags) {
  char path[PATH_MAX];
  snprintf(path, sizeof path, "%s/%s", victim_directory, name);
  return MUST(open(path, flags, 0600));
}

static void watch(int set, int fd, uint32_t events, uint64_t data) {
  struct epoll_event event = {.events = events, .data.u64 = data};
  MUST(epoll_ctl(set, EPOLL_CTL_ADD, fd, &event));
}

static void set_up_sockets(void) {
  int one = 1;
  struct timeval timeout = {.tv_sec = 7};
  listening = MUST(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  MUST(setsockopt(listening, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one));
  MUST(setsockopt(listening, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one));
  MUST(setsockopt(listening, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout));
  MUST(setsockopt(listening, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one));
  address = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  MUST(bind(listening, (struct sockaddr *)&address, sizeof address));
  socklen_t length = sizeof address;
  MUST(getsockname(listening, (struct sockaddr *)&address, &length));
  MUST(listen(listening, 77));
  listening6 = MUST(socket(AF_INET6, SOCK_STREAM, 0));
  MUST(setsockopt(listening6, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof one));
  struct sockaddr_in6 address6 = {.sin6_family = AF_INET6, .sin6_port = address.sin_port};
  MUST(bind(listening6, (struct sockaddr *)&address6, sizeof address6));
  MUST(listen(listening6, 5));
  fresh = MUST(socket(AF_INET, SOCK_STREAM, 0));
  int size = 50000;
  MUST(setsockopt(fresh, SOL_SOCKET, SO_SNDBUF, &size, sizeof size));
}

static void set_up(void) {
  counter = MUST(eventfd(0, EFD_NONBLOCK));
  uint64_t value = 0x123456789aULL;
  MUST(write(counter, &value, 8));
  semaphore = MUST(eventfd(3, EFD_SEMAPHORE | EFD_CLOEXEC));
  far_timer = MUST(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC));
  MUST(timerfd_settime(far_timer, 0, &(struct itimerspec){.it_value = {3000, 5}, .it_interval = {40, 6}}, NULL));
  ticking = MUST(timerfd_create(CLOCK_REALTIME, TFD_NONBLOCK));
  MUST(timerfd_settime(ticking, 0, &(struct itimerspec){.it_value = {0, 1}, .it_interval = {0, 1000000}}, NULL));
  idle_timer = MUST(timerfd_create(CLOCK_BOOTTIME, 0));
  sigset_t mask;
  sigemptyset(&mask);
  sigaddset(&mask, SIGUSR1), sigaddset(&mask, SIGRTMIN + 3);
  MUST(sigprocmask(SIG_BLOCK, &mask, NULL));
  signals = MUST(signalfd(-1, &mask, SFD_NONBLOCK));
  set_up_sockets();

  MUST(pipe2(packets, O_DIRECT | O_NONBLOCK));
  MUST(write(packets[1], "one", 3)), MUST(write(packets[1], "three", 5)), MUST(write(packets[1], "x", 1));
  char path[PATH_MAX];
  snprintf(path, sizeof path, "%s/fifo", victim_directory);
  MUST(mkfifo(path, 0600));
  fifo_reading = open_here("fifo", O_RDONLY | O_NONBLOCK);
  fifo_writing = open_here("fifo", O_WRONLY | O_CLOEXEC);
  MUST(write(fifo_writing, "left in the fifo", 16));

  posix_locked = open_here("posix", O_RDWR | O_CREAT);
  MUST(fcntl(posix_locked, F_SETLK, &(struct flock){.l_type = F_WRLCK, .l_start = 100, .l_len = 50}));
  MUST(fcntl(posix_locked, F_SETLK, &(struct flock){.l_type = F_RDLCK, .l_start = 4000}));
  flocked = open_here("flock", O_RDWR | O_CREAT);
  MUST(flock(flocked, LOCK_EX));
  description_locked = open_here("description", O_RDWR | O_CREAT);
  MUST(fcntl(description_locked, F_OFD_SETLK, &(struct flock){.l_type = F_WRLCK, .l_start = 1, .l_len = 9}));

  poll_set = MUST(epoll_create1(EPOLL_CLOEXEC));
  inner_set = MUST(epoll_create1(0));
  MUST(pipe(watched)), MUST(pipe(moved_pipe)), MUST(pipe(owned));
  watch(inner_set, watched[0], EPOLLIN | EPOLLET, 0xfedcba9876543210);
  watch(poll_set, inner_set, EPOLLIN, 1);
  watch(poll_set, signals, EPOLLIN, 2);
  watch(poll_set, far_timer, EPOLLIN | EPOLLONESHOT, 3);
  watch(poll_set, listening, EPOLLIN, 4);
  watch(poll_set, moved_pipe[0], EPOLLIN, 5);
  // The watched number is closed; the file lives on under another.
  moved = MUST(fcntl(moved_pipe[0], F_DUPFD, 200));
  close(moved_pipe[0]);
  MUST(fcntl(owned[0], F_SETSIG, SIGRTMIN + 3));
  MUST(fcntl(owned[0], F_SETOWN, getpid()));
  MUST(fcntl(owned[0], F_SETFL, O_ASYNC | O_NONBLOCK));
}

static void check_round(void) {
  struct itimerspec left;
  MUST(timerfd_gettime(far_timer, &left));
  CHECK_TRUE("time left", left.it_value.tv_sec < 3001 && left.it_value.tv_sec > 2800);
  struct epoll_event events[8];
  CHECK_NUMBER("epoll_wait while nothing has happened", 0, epoll_wait(poll_set, events, 8, 0));
}

static void *lock_prober(void *argument) {
  int *result = argument;
  pid_t child = fork();
  if (child == 0) {
    struct flock probe = {.l_type = F_WRLCK, .l_start = 120, .l_len = 1}, probe2 = {.l_type = F_RDLCK, .l_start = 0, .l_len = 100};
    struct flock probe3 = {.l_type = F_RDLCK, .l_start = 5000, .l_len = 1}, probe4 = {.l_type = F_WRLCK, .l_start = 5000, .l_len = 1};
    int bits = 0, other = open_here("flock", O_RDWR), description = open_here("description", O_RDWR);
    if (fcntl(posix_locked, F_SETLK, &probe) == -1) bits |= 1;
    if (fcntl(posix_locked, F_SETLK, &probe2) == 0) bits |= 2;
    if (fcntl(posix_locked, F_SETLK, &probe3) == 0) bits |= 4;
    if (fcntl(posix_locked, F_SETLK, &probe4) == -1) bits |= 8;
    if (flock(other, LOCK_SH | LOCK_NB) == -1) bits |= 16;
    struct flock probe5 = {.l_type = F_RDLCK, .l_start = 5, .l_len = 1};
    if (fcntl(description, F_OFD_SETLK, &probe5) == -1) bits |= 32;
    _exit(bits);
  }
  waitpid(child, result, 0);
  *result = WEXITSTATUS(*result);
  return NULL;
}

static void check_sockets(void) {
  int value = 0;
  socklen_t length = sizeof value;
  MUST(getsockopt(listening, SOL_SOCKET, SO_REUSEADDR, &value, &length));
  CHECK_NUMBER("SO_REUSEADDR", 1, value);
  MUST(getsockopt(listening6, SOL_SOCKET, SO_REUSEADDR, &value, &length));
  CHECK_NUMBER("SO_REUSEADDR that is not set", 0, value);
  MUST(getsockopt(listening, SOL_SOCKET, SO_KEEPALIVE, &value, &length));
  CHECK_NUMBER("SO_KEEPALIVE", 1, value);
  MUST(getsockopt(listening, IPPROTO_TCP, TCP_NODELAY, &value, &length));
  CHECK_NUMBER("TCP_NODELAY", 1, value);
  MUST(getsockopt(listening6, IPPROTO_IPV6, IPV6_V6ONLY, &value, &length));
  CHECK_NUMBER("IPV6_V6ONLY", 1, value);
  MUST(getsockopt(fresh, SOL_SOCKET, SO_SNDBUF, &value, &length));
  CHECK_NUMBER("SO_SNDBUF", 100000, value);
  struct timeval timeout;
  length = sizeof timeout;
  MUST(getsockopt(listening, SOL_SOCKET, SO_RCVTIMEO, &timeout, &length));
  CHECK_NUMBER("SO_RCVTIMEO", 7, timeout.tv_sec);
  struct tcp_info information;
  length = sizeof information;
  MUST(getsockopt(listening, IPPROTO_TCP, TCP_INFO, &information, &length));
  CHECK_NUMBER("backlog", 77, information.tcpi_sacked);
  CHECK_NUMBER("connect with the socket that was fresh", 0, connect(fresh, (struct sockaddr *)&address, sizeof address));
  struct epoll_event event;
  CHECK_NUMBER("epoll_wait for a connection", 1, epoll_wait(poll_set, &event, 1, 1000));
  CHECK_NUMBER("data of the connection's event", 4, event.data.u64);
  int connection = accept(listening, NULL, NULL);
  CHECK_TRUE("accept", connection >= 0);
  close(connection), close(fresh);
}

static void check_end(void) {
  uint64_t value = 0;
  CHECK_NUMBER("read of the counter", 8, read(counter, &value, 8));
  CHECK_NUMBER("value of the counter", 0x123456789a, value);
  CHECK_NUMBER("read of the counter at zero", -1, read(counter, &value, 8));
  for (int i = 0; i < 3; i++) {
    CHECK_NUMBER("read of the semaphore", 8, read(semaphore, &value, 8));
    CHECK_NUMBER("value of the semaphore", 1, value);
  }
  CHECK_NUMBER("ticks", 8, read(ticking, &value, 8));
  CHECK_TRUE("ticks", value > 100);
  struct itimerspec left;
  MUST(timerfd_gettime(far_timer, &left));
  CHECK_NUMBER("interval", 40, left.it_interval.tv_sec);
  MUST(timerfd_gettime(idle_timer, &left));
  CHECK_NUMBER("timer that is not set", 0, left.it_value.tv_sec + left.it_value.tv_nsec);

  struct epoll_event event;
  MUST(kill(getpid(), SIGUSR1));
  CHECK_NUMBER("epoll_wait for a signal", 1, epoll_wait(poll_set, &event, 1, 1000));
  CHECK_NUMBER("data of the signal's event", 2, event.data.u64);
  struct signalfd_siginfo information;
  CHECK_NUMBER("read of a signal", sizeof information, read(signals, &information, sizeof information));
  CHECK_NUMBER("signal", SIGUSR1, information.ssi_signo);
  check_sockets();
  MUST(write(moved_pipe[1], "m", 1));
  CHECK_NUMBER("epoll_wait for a file whose number has changed", 1, epoll_wait(poll_set, &event, 1, 1000));
  CHECK_NUMBER("data of its event", 5, event.data.u64);
  char buffer[64];
  CHECK_NUMBER("read", 1, read(moved, buffer, sizeof buffer));
  MUST(write(watched[1], "w", 1));
  CHECK_NUMBER("epoll_wait for an epoll instance", 1, epoll_wait(poll_set, &event, 1, 1000));
  CHECK_NUMBER("data of its event", 1, event.data.u64);
  CHECK_NUMBER("epoll_wait of the inner instance", 1, epoll_wait(inner_set, &event, 1, 1000));
  CHECK_TRUE("data of 64 bits", event.data.u64 == 0xfedcba9876543210);
  MUST(write(owned[1], "o", 1));
  CHECK_NUMBER("epoll_wait for the signal of a file", 1, epoll_wait(poll_set, &event, 1, 1000));
  CHECK_NUMBER("read of a signal", sizeof information, read(signals, &information, sizeof information));
  CHECK_NUMBER("signal of a file", SIGRTMIN + 3, information.ssi_signo);

  CHECK_NUMBER("first packet", 3, read(packets[0], buffer, sizeof buffer));
  CHECK_NUMBER("second packet", 5, read(packets[0], buffer, sizeof buffer));
  CHECK_NUMBER("third packet", 1, read(packets[0], buffer, sizeof buffer));
  CHECK_NUMBER("no packet", -1, read(packets[0], buffer, sizeof buffer));
  CHECK_NUMBER("read of the FIFO", 16, read(fifo_reading, buffer, sizeof buffer));
  CHECK_TRUE("content of the FIFO", memcmp(buffer, "left in the fifo", 16) == 0);
  CHECK_NUMBER("FIFO, empty now", -1, read(fifo_reading, buffer, sizeof buffer));
  close(fifo_writing);
  CHECK_NUMBER("FIFO without a writer", 0, read(fifo_reading, buffer, sizeof buffer));
  int bits = 0;
  lock_prober(&bits);
  CHECK_NUMBER("locks", 63, bits);
}

int main(void) {
  victim_start();
  set_up();
  check_round();
  report("READY %d", getpid());
  while (!finish_requested()) {
    tick();
    check_round();
  }
  check_end();
  return victim_end();
}

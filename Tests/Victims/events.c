// Event counters, timers and signals as descriptors, epoll instances over all of them, FIFOs, pipes in packet mode, listening
// sockets, and locks on files.
#include "victim.h"
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
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
static int deleted, deleted_reading, deleted_large, changes, file_watch, directory_watch;
static char *deleted_map;

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

static void set_up_deleted(void) {
  char path[PATH_MAX];
  deleted = open_here("deleted", O_RDWR | O_CREAT | O_EXCL);
  MUST(write(deleted, "deleted, not gone", 17));
  deleted_reading = open_here("deleted", O_RDONLY);
  MUST(ftruncate(deleted, 4096));
  deleted_map = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, deleted, 0);
  if (deleted_map == MAP_FAILED) _exit(98);
  snprintf(path, sizeof path, "%s/deleted", victim_directory);
  MUST(unlink(path));
  deleted_large = open_here("deleted", O_RDWR | O_CREAT | O_EXCL);
  for (int i = 0; i < 100; i++) MUST(pwrite(deleted_large, &i, sizeof i, i * 70000L));
  MUST(unlink(path));
  MUST(lseek(deleted_reading, 9, SEEK_SET));
}

static void set_up_watches(void) {
  char path[PATH_MAX];
  changes = MUST(inotify_init1(IN_NONBLOCK | IN_CLOEXEC));
  snprintf(path, sizeof path, "%s/flock", victim_directory);
  MUST(inotify_rm_watch(changes, MUST(inotify_add_watch(changes, path, IN_MODIFY))));
  char event[4096];
  MUST(read(changes, event, sizeof event)); // IN_IGNORED
  file_watch = MUST(inotify_add_watch(changes, path, IN_MODIFY | IN_ONESHOT));
  snprintf(path, sizeof path, "%s/watched", victim_directory);
  MUST(mkdir(path, 0700));
  directory_watch = MUST(inotify_add_watch(changes, path, IN_CREATE | IN_OPEN | IN_EXCL_UNLINK));
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
  set_up_deleted();
  set_up_watches();
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

static void check_deleted(void) {
  char buffer[32] = "";
  CHECK_NUMBER("read of a deleted file", 8, read(deleted_reading, buffer, 8));
  CHECK_TEXT("content of a deleted file", "not gone", buffer);
  MUST(pwrite(deleted, "DELETED", 7, 0));
  CHECK_TRUE("mapping and descriptor of a deleted file", memcmp(deleted_map, "DELETED, not gone", 17) == 0);
  deleted_map[1000] = 'm';
  CHECK_NUMBER("read through the other descriptor", 1, pread(deleted_reading, buffer, 1, 1000));
  CHECK_NUMBER("byte written through the mapping", 'm', buffer[0]);
  struct stat status;
  MUST(fstat(deleted, &status));
  CHECK_NUMBER("links to a deleted file", 0, status.st_nlink);
  CHECK_NUMBER("mode of a deleted file", 0100600, status.st_mode);
  CHECK_NUMBER("size of a deleted file", 4096, status.st_size);
  MUST(fstat(deleted_large, &status));
  CHECK_NUMBER("size of a large deleted file", 99 * 70000L + 4, status.st_size);
  CHECK_TRUE("holes in a large deleted file", status.st_blocks < 99 * 70000L / 512 / 2);
  for (int i = 0; i < 100; i++) {
    int number = -1;
    MUST(pread(deleted_large, &number, sizeof number, i * 70000L));
    CHECK_NUMBER("content of a large deleted file", i, number);
  }
}

static void expect_event(int watch, uint32_t mask, const char *name) {
  char buffer[sizeof(struct inotify_event) + NAME_MAX + 1] __attribute__((aligned(8)));
  struct inotify_event *event = (struct inotify_event *)buffer;
  ssize_t got = read(changes, buffer, name ? sizeof(struct inotify_event) + 16 : sizeof(struct inotify_event));
  if (got < 0) return fail("inotify event of watch %d: %s", watch, strerror(errno));
  CHECK_NUMBER("watch of an inotify event", watch, event->wd);
  CHECK_NUMBER("kind of an inotify event", mask, event->mask);
  if (name) CHECK_TEXT("name of an inotify event", name, event->name);
}

static void check_watches(void) {
  char buffer[64];
  CHECK_NUMBER("inotify while nothing has changed", -1, read(changes, buffer, sizeof buffer));
  close(open_here("watched/new", O_RDWR | O_CREAT));
  expect_event(directory_watch, IN_CREATE, "new");
  expect_event(directory_watch, IN_OPEN, "new");
  MUST(write(flocked, "x", 1));
  expect_event(file_watch, IN_MODIFY, NULL);
  expect_event(file_watch, IN_IGNORED, NULL);
  CHECK_NUMBER("inotify at the end", -1, read(changes, buffer, sizeof buffer));
  CHECK_NUMBER("number of the next watch", directory_watch + 1, inotify_add_watch(changes, victim_directory, IN_MODIFY));
}

static void check_end(void) {
  check_deleted();
  check_watches();
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

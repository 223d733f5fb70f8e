// Descriptors that stand for processes, living and ended, sockets to the kernel, and sockets with packet filters.
#include "victim.h"
#include <linux/filter.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <poll.h>
#include <sys/socket.h>

static int of_child, of_child_again, of_self, of_dead, of_dead_again, of_zombie, route, unbound, connected, events, filtered[2];
static pid_t child, dead, zombie;
static uint32_t route_port;

static int open_process(pid_t pid, unsigned flags) { return MUST(syscall(SYS_pidfd_open, pid, flags)); }
static bool has_ended(int fd) {
  struct pollfd request = {.fd = fd, .events = POLLIN};
  return poll(&request, 1, 0) == 1;
}

static ino_t inode(int fd) {
  struct stat status;
  MUST(fstat(fd, &status));
  return status.st_ino;
}

static void set_up_processes(void) {
  dead = MUST(fork());
  if (dead == 0) _exit(3);
  of_dead = open_process(dead, 0);
  of_dead_again = open_process(dead, 0);
  MUST(waitpid(dead, NULL, 0));
  zombie = MUST(fork());
  if (zombie == 0) _exit(4);
  of_zombie = open_process(zombie, 0);
  siginfo_t info;
  MUST(waitid(P_PID, zombie, &info, WEXITED | WNOWAIT)); // it is one from now on
  child = MUST(fork());
  if (child == 0)
    for (;;) pause();
  of_child = open_process(child, O_NONBLOCK);
  of_child_again = open_process(child, 0);
  of_self = open_process(getpid(), 0);
}

static struct sockaddr_nl name_of(int fd) {
  struct sockaddr_nl name = {0};
  socklen_t length = sizeof name;
  MUST(getsockname(fd, (struct sockaddr *)&name, &length));
  return name;
}

static void set_up_sockets(void) {
  int one = 1;
  struct sockaddr_nl name = {.nl_family = AF_NETLINK};
  route = MUST(socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC, NETLINK_ROUTE));
  MUST(bind(route, (struct sockaddr *)&name, sizeof name));
  route_port = name_of(route).nl_pid;
  MUST(setsockopt(route, SOL_NETLINK, NETLINK_EXT_ACK, &one, sizeof one));
  unbound = MUST(socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE));
  connected = MUST(socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE));
  name.nl_groups = 0;
  MUST(connect(connected, (struct sockaddr *)&name, sizeof name));
  events = MUST(socket(AF_NETLINK, SOCK_RAW, NETLINK_KOBJECT_UEVENT));
  struct sockaddr_nl groups = {.nl_family = AF_NETLINK, .nl_groups = 2};
  MUST(bind(events, (struct sockaddr *)&groups, sizeof groups));

  // Takes only what starts with 'y'.
  struct sock_filter code[] = {
      BPF_STMT(BPF_LD | BPF_B | BPF_ABS, 0), BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 'y', 0, 1), BPF_STMT(BPF_RET | BPF_K, 0xffff), BPF_STMT(BPF_RET | BPF_K, 0)};
  struct sock_fprog program = {.len = 4, .filter = code};
  MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, filtered));
  MUST(setsockopt(filtered[1], SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program));
  MUST(send(filtered[0], "yes, this", 9, 0));
}

/// Asks the kernel for the loopback interface.
static void check_request(const char *what, int fd) {
  struct {
    struct nlmsghdr header;
    struct ifinfomsg body;
  } request = {.header = {.nlmsg_len = sizeof request, .nlmsg_type = RTM_GETLINK, .nlmsg_flags = NLM_F_REQUEST, .nlmsg_seq = 77},
               .body = {.ifi_family = AF_UNSPEC, .ifi_index = if_nametoindex("lo")}};
  char answer[8192];
  CHECK_NUMBER(what, sizeof request, send(fd, &request, sizeof request, 0));
  ssize_t got = recv(fd, answer, sizeof answer, 0);
  CHECK_TRUE(what, got > (ssize_t)sizeof(struct nlmsghdr));
  CHECK_NUMBER(what, RTM_NEWLINK, ((struct nlmsghdr *)answer)->nlmsg_type);
  CHECK_NUMBER(what, 77, ((struct nlmsghdr *)answer)->nlmsg_seq);
}

static void check_round(void) {
  check_request("a bound netlink socket", route);
  CHECK_TRUE("a pidfd of a process that lives", !has_ended(of_child));
}

static void check_end(void) {
  int value = 0;
  socklen_t length = sizeof value;
  CHECK_NUMBER("port of a netlink socket", route_port, name_of(route).nl_pid);
  MUST(getsockopt(route, SOL_SOCKET, SO_TYPE, &value, &length));
  CHECK_NUMBER("type of a netlink socket", SOCK_DGRAM, value);
  MUST(getsockopt(route, SOL_NETLINK, NETLINK_EXT_ACK, &value, &length));
  CHECK_NUMBER("NETLINK_EXT_ACK", 1, value);
  CHECK_NUMBER("port of an unbound netlink socket", 0, name_of(unbound).nl_pid);
  CHECK_NUMBER("groups of a netlink socket", 2, name_of(events).nl_groups);
  check_request("an unbound netlink socket", unbound);
  check_request("a connected netlink socket", connected);
  char text[16] = "";
  CHECK_NUMBER("what had passed the filter", 9, recv(filtered[1], text, sizeof text, MSG_DONTWAIT));
  MUST(send(filtered[0], "no", 2, 0));
  MUST(send(filtered[0], "yes", 3, 0));
  CHECK_NUMBER("what passes the filter", 3, recv(filtered[1], text, sizeof text, MSG_DONTWAIT));

  CHECK_TRUE("a pidfd of this process", !has_ended(of_self));
  CHECK_TRUE("a pidfd of an ended process", has_ended(of_dead));
  CHECK_TRUE("two pidfds of an ended process", inode(of_dead) == inode(of_dead_again) && inode(of_dead) != inode(of_child));
  CHECK_NUMBER("signal to an ended process", -1, syscall(SYS_pidfd_send_signal, of_dead, 0, NULL, 0));
  CHECK_NUMBER("signal to an ended process", ESRCH, errno);
  CHECK_TRUE("two pidfds of a process", inode(of_child) == inode(of_child_again));
  CHECK_NUMBER("flags of a pidfd", O_NONBLOCK, fcntl(of_child, F_GETFL) & O_NONBLOCK);
  siginfo_t info = {0};
  CHECK_TRUE("a pidfd of a zombie", has_ended(of_zombie));
  CHECK_NUMBER("waiting for a zombie by its pidfd", 0, waitid(P_PIDFD, of_zombie, &info, WEXITED));
  CHECK_NUMBER("status of a zombie", 4, info.si_status);
  CHECK_NUMBER("signal through a pidfd", 0, syscall(SYS_pidfd_send_signal, of_child_again, SIGTERM, NULL, 0));
  CHECK_NUMBER("waiting by a pidfd", 0, waitid(P_PIDFD, of_child_again, &info, WEXITED));
  CHECK_NUMBER("who has ended", child, info.si_pid);
  CHECK_NUMBER("by which signal", SIGTERM, info.si_status);
}

int main(void) {
  victim_start();
  set_up_processes();
  set_up_sockets();
  check_round();
  report("READY %d %d", getpid(), child);
  while (!finish_requested()) {
    tick();
    check_round();
  }
  check_end();
  return victim_end();
}

// UDP sockets over IPv4 and IPv6: bound, connected, unused, with waiting datagrams from several senders, options, groups and shut
// halves.
#include "victim.h"
#include <arpa/inet.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

static int receiver, sender, other_sender, connected, echo, receiver6, sender6, both, unused, options, group, shut, lite, echo_to;
static struct sockaddr_in receiver_name, sender_name, other_name, echo_name, connected_name;
static struct sockaddr_in6 receiver6_name, sender6_name, both_name;

static int open_bound(int type, int protocol, struct sockaddr_in *name) {
  int fd = MUST(socket(AF_INET, type | SOCK_CLOEXEC, protocol));
  *name = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t length = sizeof *name;
  MUST(bind(fd, (struct sockaddr *)name, length));
  MUST(getsockname(fd, (struct sockaddr *)name, &length));
  return fd;
}

static int open_bound6(struct in6_addr address, struct sockaddr_in6 *name) {
  int fd = MUST(socket(AF_INET6, SOCK_DGRAM, 0));
  *name = (struct sockaddr_in6){.sin6_family = AF_INET6, .sin6_addr = address};
  socklen_t length = sizeof *name;
  MUST(bind(fd, (struct sockaddr *)name, length));
  MUST(getsockname(fd, (struct sockaddr *)name, &length));
  return fd;
}

static void send_to(int fd, const char *text, const void *name, socklen_t length) {
  MUST(sendto(fd, text, strlen(text), 0, name, length));
}

static void expect_from(const char *what, int fd, const char *wanted, const void *name, socklen_t name_length) {
  char text[256] = "";
  struct sockaddr_storage from = {0};
  socklen_t length = sizeof from;
  struct pollfd request = {.fd = fd, .events = POLLIN};
  if (poll(&request, 1, 2000) != 1) fail("%s: nothing has come", what);
  ssize_t got = recvfrom(fd, text, sizeof text, MSG_DONTWAIT, (struct sockaddr *)&from, &length);
  if (got < 0) {
    fail("%s: %s", what, strerror(errno));
    return;
  }
  CHECK_TEXT(what, wanted, text);
  if (name && (length != name_length || memcmp(name, &from, name_length) != 0)) fail("%s: it has another sender", what);
}

static void expect_option(const char *what, int fd, int level, int name, int wanted) {
  int value = -1;
  socklen_t length = sizeof value;
  CHECK_NUMBER(what, 0, getsockopt(fd, level, name, &value, &length));
  CHECK_NUMBER(what, wanted, value);
}

static void set_option(int fd, int level, int name, int value) { MUST(setsockopt(fd, level, name, &value, sizeof value)); }

static struct ip_mreqn membership(void) {
  struct ip_mreqn request = {.imr_ifindex = if_nametoindex("lo")};
  request.imr_multiaddr.s_addr = htonl(0xe0000177 + getpid() % 256); // 224.0.1.119 and above
  return request;
}

static void set_up(void) {
  receiver = open_bound(SOCK_DGRAM, 0, &receiver_name);
  sender = open_bound(SOCK_DGRAM, 0, &sender_name);
  other_sender = open_bound(SOCK_DGRAM, 0, &other_name);
  echo = open_bound(SOCK_DGRAM, 0, &echo_name);
  connected = open_bound(SOCK_DGRAM, 0, &connected_name);
  MUST(connect(connected, (struct sockaddr *)&sender_name, sizeof sender_name));
  echo_to = MUST(socket(AF_INET, SOCK_DGRAM, 0));
  MUST(connect(echo_to, (struct sockaddr *)&echo_name, sizeof echo_name));
  receiver6 = open_bound6(in6addr_loopback, &receiver6_name);
  sender6 = open_bound6(in6addr_loopback, &sender6_name);
  both = open_bound6(in6addr_any, &both_name);
  unused = MUST(socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0));
  lite = MUST(socket(AF_INET, SOCK_DGRAM, IPPROTO_UDPLITE));

  send_to(sender, "one", &receiver_name, sizeof receiver_name);
  send_to(other_sender, "two two", &receiver_name, sizeof receiver_name);
  send_to(sender, "three", &receiver_name, sizeof receiver_name);
  send_to(sender, "for the connected", &connected_name, sizeof connected_name);
  send_to(sender6, "six", &receiver6_name, sizeof receiver6_name);
  struct sockaddr_in mapped = {.sin_family = AF_INET, .sin_port = both_name.sin6_port, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  send_to(sender, "four over six", &mapped, sizeof mapped);

  options = open_bound(SOCK_DGRAM, 0, &(struct sockaddr_in){0});
  set_option(options, IPPROTO_IP, IP_RECVTTL, 1);
  set_option(options, IPPROTO_IP, IP_MULTICAST_TTL, 7);
  set_option(options, IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO);
  set_option(options, SOL_SOCKET, SO_BROADCAST, 1);
  set_option(options, SOL_SOCKET, SO_TIMESTAMP, 1);
  set_option(options, SOL_SOCKET, SO_RCVBUF, 50000);
  set_option(receiver6, IPPROTO_IPV6, IPV6_UNICAST_HOPS, 9);
  set_option(receiver6, IPPROTO_IPV6, IPV6_RECVPKTINFO, 1);
  group = MUST(socket(AF_INET, SOCK_DGRAM, 0));
  set_option(group, SOL_SOCKET, SO_REUSEADDR, 1);
  struct ip_mreqn request = membership();
  MUST(setsockopt(group, IPPROTO_IP, IP_ADD_MEMBERSHIP, &request, sizeof request));
  shut = open_bound(SOCK_DGRAM, 0, &(struct sockaddr_in){0});
  MUST(connect(shut, (struct sockaddr *)&sender_name, sizeof sender_name));
  MUST(shutdown(shut, SHUT_WR));
}

static void check_round(void) {
  MUST(send(echo_to, "ping", 4, 0));
  expect_from("a datagram", echo, "ping", NULL, 0);
}

static void check_end(void) {
  expect_from("a waiting datagram", receiver, "one", &sender_name, sizeof sender_name);
  expect_from("a waiting datagram of another sender", receiver, "two two", &other_name, sizeof other_name);
  expect_from("the third waiting datagram", receiver, "three", &sender_name, sizeof sender_name);
  expect_from("a datagram in a connected socket", connected, "for the connected", &sender_name, sizeof sender_name);
  expect_from("a datagram over IPv6", receiver6, "six", &sender6_name, sizeof sender6_name);
  expect_from("a datagram over IPv4 in an IPv6 socket", both, "four over six", NULL, 0);
  char byte;
  CHECK_NUMBER("an empty queue", -1, recv(receiver, &byte, 1, MSG_DONTWAIT));
  send_to(other_sender, "from a stranger", &connected_name, sizeof connected_name);
  send_to(sender, "from the friend", &connected_name, sizeof connected_name);
  expect_from("a connected socket", connected, "from the friend", &sender_name, sizeof sender_name);
  expect_option("IP_RECVTTL", options, IPPROTO_IP, IP_RECVTTL, 1);
  expect_option("IP_MULTICAST_TTL", options, IPPROTO_IP, IP_MULTICAST_TTL, 7);
  expect_option("IP_MTU_DISCOVER", options, IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO);
  expect_option("SO_BROADCAST", options, SOL_SOCKET, SO_BROADCAST, 1);
  expect_option("SO_TIMESTAMP", options, SOL_SOCKET, SO_TIMESTAMP, 1);
  expect_option("SO_RCVBUF", options, SOL_SOCKET, SO_RCVBUF, 100000);
  expect_option("IPV6_UNICAST_HOPS", receiver6, IPPROTO_IPV6, IPV6_UNICAST_HOPS, 9);
  expect_option("IPV6_RECVPKTINFO", receiver6, IPPROTO_IPV6, IPV6_RECVPKTINFO, 1);
  expect_option("SO_REUSEADDR of a socket without", receiver, SOL_SOCKET, SO_REUSEADDR, 0);
  expect_option("SO_PROTOCOL", lite, SOL_SOCKET, SO_PROTOCOL, IPPROTO_UDPLITE);
  CHECK_NUMBER("flags", O_RDWR | O_NONBLOCK, fcntl(unused, F_GETFL));
  struct ip_mreqn request = membership();
  CHECK_NUMBER("joining a group again", -1, setsockopt(group, IPPROTO_IP, IP_ADD_MEMBERSHIP, &request, sizeof request));
  CHECK_NUMBER("joining a group again", EADDRINUSE, errno);
  CHECK_NUMBER("sending through a shut half", -1, send(shut, "x", 1, MSG_NOSIGNAL));
  CHECK_NUMBER("sending through a shut half", EPIPE, errno);
  send_to(unused, "first use", &receiver_name, sizeof receiver_name);
  expect_from("a socket that was unused", receiver, "first use", NULL, 0);
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

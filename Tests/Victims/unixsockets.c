// Unix sockets of every type: pairs, named, abstract, unnamed and deleted names, waiting data and connections, descriptors and
// credentials in flight, ends that are closed or shut. A child answers over some of them.
#include "victim.h"
#include <stddef.h>
#include <sys/socket.h>
#include <sys/un.h>

#define SO_PEEK_OFF_ 42

static int stream[2], datagram[2], packet[2], half[2], shut[2], reset_end, forgotten, dead_peer, life[2], big[2];
static int listening, listening_abstract, listening_deleted;
static int accepted, client, accepted_abstract, client_abstract, accepted_deleted, client_deleted, waiting[3], accepted_only;
static int receiver, sender, connected_sender, one_way;
static int flights[2], cycle[2], credentials[2], options[2], by_child, by_dead_child, bare_stream, bare_datagram, bound_only;
static pid_t child, dead_child;
static char abstract_name[64];
static int tiny_flight[2];
static bool is_strict;

static socklen_t path_address(struct sockaddr_un *address, const char *name) {
  memset(address, 0, sizeof *address);
  address->sun_family = AF_UNIX;
  if (strlen(name) >= sizeof address->sun_path) _exit(98);
  strcpy(address->sun_path, name);
  return offsetof(struct sockaddr_un, sun_path) + strlen(name) + 1;
}

static socklen_t abstract_address(struct sockaddr_un *address, const char *name) {
  memset(address, 0, sizeof *address);
  address->sun_family = AF_UNIX;
  memcpy(address->sun_path + 1, name, strlen(name));
  return offsetof(struct sockaddr_un, sun_path) + 1 + strlen(name);
}

static int bound(int type, const struct sockaddr_un *address, socklen_t length) {
  int fd = MUST(socket(AF_UNIX, type | SOCK_CLOEXEC, 0));
  MUST(bind(fd, (const struct sockaddr *)address, length));
  return fd;
}

static int connected(int type, const struct sockaddr_un *address, socklen_t length) {
  int fd = MUST(socket(AF_UNIX, type | SOCK_CLOEXEC, 0));
  MUST(connect(fd, (const struct sockaddr *)address, length));
  return fd;
}

static void expect_text(const char *what, int fd, const char *wanted, int flags) {
  char buffer[4096] = "";
  ssize_t got = recv(fd, buffer, sizeof buffer - 1, MSG_DONTWAIT | flags);
  if (got < 0) fail("%s: expected \"%s\", got %s", what, wanted, strerror(errno));
  else if ((size_t)got != strlen(wanted) || memcmp(buffer, wanted, got) != 0) fail("%s: expected \"%s\", got \"%.*s\"", what, wanted, (int)got, buffer);
}

static void expect_error(const char *what, int fd, int error) {
  char byte;
  ssize_t got = recv(fd, &byte, 1, MSG_DONTWAIT);
  if (error == 0) CHECK_NUMBER(what, 0, got);
  else {
    int seen = errno;
    CHECK_NUMBER(what, -1, got);
    if (got < 0) CHECK_TEXT(what, strerror(error), strerror(seen));
  }
}

static void send_text(int fd, const char *text) { MUST(send(fd, text, strlen(text), MSG_NOSIGNAL)); }

static void send_descriptors(int fd, const char *text, const int *numbers, int count) {
  char control[CMSG_SPACE(sizeof(int) * 8)] = "";
  struct iovec vector = {(void *)text, strlen(text)};
  struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = control, .msg_controllen = CMSG_SPACE(sizeof(int) * count)};
  struct cmsghdr *header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int) * count);
  memcpy(CMSG_DATA(header), numbers, sizeof(int) * count);
  MUST(sendmsg(fd, &message, 0));
}

/// Receives text with descriptors and credentials; returns how many descriptors came.
static int receive_all(const char *what, int fd, const char *wanted, int *numbers, struct ucred *user, struct sockaddr_un *from, socklen_t *length) {
  char control[CMSG_SPACE(sizeof(int) * 8) + CMSG_SPACE(sizeof(struct ucred))] = "", text[256] = "";
  struct iovec vector = {text, wanted ? strlen(wanted) : sizeof text};
  struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control, .msg_name = from,
                           .msg_namelen = from ? sizeof *from : 0};
  ssize_t got = recvmsg(fd, &message, MSG_DONTWAIT);
  if (got < 0) {
    fail("%s: %s", what, strerror(errno));
    return 0;
  }
  if (wanted && (strlen(wanted) != (size_t)got || memcmp(text, wanted, got) != 0)) fail("%s: expected \"%s\", got \"%.*s\"", what, wanted, (int)got, text);
  if (length) *length = message.msg_namelen;
  int count = 0;
  for (struct cmsghdr *header = CMSG_FIRSTHDR(&message); header; header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_type == SCM_RIGHTS) {
      count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
      if (numbers) memcpy(numbers, CMSG_DATA(header), sizeof(int) * count);
    }
    if (header->cmsg_type == SCM_CREDENTIALS && user) memcpy(user, CMSG_DATA(header), sizeof *user);
  }
  return count;
}

static void expect_name(const char *what, int fd, const struct sockaddr_un *wanted, socklen_t wanted_length, bool of_peer) {
  struct sockaddr_un address = {0};
  socklen_t length = sizeof address;
  int result = of_peer ? getpeername(fd, (struct sockaddr *)&address, &length) : getsockname(fd, (struct sockaddr *)&address, &length);
  CHECK_NUMBER(what, 0, result);
  CHECK_NUMBER(what, wanted_length, length);
  if (memcmp(&address, wanted, wanted_length) != 0) fail("%s: another name, %s", what, address.sun_path[0] ? address.sun_path : address.sun_path + 1);
}

static void expect_peer(const char *what, int fd, pid_t pid, uid_t user, gid_t group) {
  struct ucred peer = {0};
  socklen_t length = sizeof peer;
  CHECK_NUMBER(what, 0, getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length));
  CHECK_NUMBER(what, pid, peer.pid);
  CHECK_NUMBER(what, user, peer.uid);
  CHECK_NUMBER(what, group, peer.gid);
}

static int take_descriptor(int fd) {
  int number = -1;
  char byte[CMSG_SPACE(sizeof(int))];
  char data;
  struct iovec vector = {&data, 1};
  struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = byte, .msg_controllen = sizeof byte};
  MUST(recvmsg(fd, &message, 0));
  memcpy(&number, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof number);
  return number;
}

static void child_life(int channel) {
  char byte;
  // As another user, who is known to the other side by that from now on.
  MUST(setresgid(-1, 2345, -1));
  MUST(setresuid(-1, 1234, -1));
  struct sockaddr_un address;
  socklen_t length = abstract_address(&address, abstract_name);
  int fd = connected(SOCK_STREAM, &address, length);
  MUST(setresuid(-1, getuid(), -1));
  MUST(setresgid(-1, getgid(), -1));
  MUST(write(channel, "c", 1));
  MUST(send(credentials[1], "from the child", 14, 0));
  MUST(write(channel, "m", 1));
  for (;;) {
    ssize_t got = read(channel, &byte, 1);
    if (got == 0) _exit(atomic_load(&victim_failures) ? 66 : 0);
    if (got != 1) {
      fail("read of the child: %zd (%s)", got, strerror(errno));
      _exit(67);
    }
    if (byte == 's' && write(fd, "still here", 10) != 10) fail("write of the child: %s", strerror(errno));
    if (write(channel, &byte, 1) != 1) fail("write of the child: %s", strerror(errno));
  }
}

static void ask_child(char order) {
  char byte = 0;
  if (write(life[0], &order, 1) != 1) fail("write to the child: %s", strerror(errno));
  ssize_t got = read(life[0], &byte, 1);
  if (got != 1 || byte != order) fail("answer of the child: %zd (%s)", got, strerror(errno));
}

static void set_up_pairs(void) {
  MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, stream));
  send_text(stream[0], "first, ");
  send_text(stream[0], "second");
  send_text(stream[1], "back");
  MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, big));
  int size = 1 << 20;
  MUST(setsockopt(big[0], SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof size));
  char *content = malloc(400000);
  fill_pattern(content, 400000, 7);
  CHECK_NUMBER("filling a stream", 400000, send(big[0], content, 400000, MSG_DONTWAIT));
  free(content);
  MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, datagram));
  for (int i = 0; i < 30; i++) { // more than a socket takes that is not connected back
    char text[32];
    snprintf(text, sizeof text, "datagram %d", i);
    send_text(datagram[0], text);
  }
  MUST(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, packet));
  send_text(packet[0], "one");
  send_text(packet[0], "two two");
  MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, half));
  send_text(half[1], "last words");
  close(half[1]);
  MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, shut));
  send_text(shut[0], "before the end");
  MUST(shutdown(shut[0], SHUT_WR));
  int pair[2];
  MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
  send_text(pair[0], "never read");
  close(pair[1]);
  reset_end = pair[0];
  MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair));
  close(pair[1]);
  dead_peer = pair[0];
  MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, options));
  struct timeval timeout = {.tv_sec = 3, .tv_usec = 500000};
  int one = 1, offset = 5, low = 3;
  size = 30000;
  MUST(setsockopt(options[0], SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout));
  MUST(setsockopt(options[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof size));
  MUST(setsockopt(options[0], SOL_SOCKET, SO_PASSCRED, &one, sizeof one));
  MUST(setsockopt(options[0], SOL_SOCKET, SO_PEEK_OFF_, &offset, sizeof offset));
  MUST(setsockopt(options[0], SOL_SOCKET, SO_RCVLOWAT, &low, sizeof low));
  MUST(fcntl(options[0], F_SETFL, O_NONBLOCK | O_ASYNC));
  send_text(options[1], "0123456789");
  MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, credentials));
  MUST(setsockopt(credentials[0], SOL_SOCKET, SO_PASSCRED, &one, sizeof one));
}

static void set_up_names(void) {
  struct sockaddr_un address;
  socklen_t length = path_address(&address, "listening");
  listening = bound(SOCK_STREAM, &address, length);
  MUST(chmod("listening", 0640));
  MUST(listen(listening, 7));
  client = connected(SOCK_STREAM, &address, length);
  accepted = MUST(accept4(listening, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK));
  send_text(client, "question");
  send_text(accepted, "answer");
  for (int i = 0; i < 2; i++) waiting[i] = connected(SOCK_STREAM, &address, length);
  MUST(shutdown(waiting[1], SHUT_WR));

  snprintf(abstract_name, sizeof abstract_name, "torpor-victim-%d", getpid());
  length = abstract_address(&address, abstract_name);
  listening_abstract = bound(SOCK_STREAM, &address, length);
  MUST(listen(listening_abstract, 5));
  client_abstract = connected(SOCK_STREAM, &address, length);
  accepted_abstract = MUST(accept(listening_abstract, NULL, NULL));

  length = path_address(&address, "deleted");
  listening_deleted = bound(SOCK_SEQPACKET, &address, length);
  MUST(listen(listening_deleted, 5));
  client_deleted = connected(SOCK_SEQPACKET, &address, length);
  accepted_deleted = MUST(accept(listening_deleted, NULL, NULL));
  MUST(unlink("deleted"));
  send_text(client_deleted, "to a socket without a name");
  // Another socket takes the name that was freed; its first owner still listens.
  bound_only = bound(SOCK_SEQPACKET, &address, length);

  length = path_address(&address, "gone");
  int gone = bound(SOCK_STREAM, &address, length);
  MUST(listen(gone, 5));
  forgotten = connected(SOCK_STREAM, &address, length);
  accepted_only = MUST(accept(gone, NULL, NULL));
  close(gone);

  length = path_address(&address, "receiver");
  receiver = bound(SOCK_DGRAM, &address, length);
  struct sockaddr_un own;
  socklen_t own_length = path_address(&own, "sender");
  sender = bound(SOCK_DGRAM, &own, own_length);
  MUST(sendto(sender, "with a name", 11, 0, (struct sockaddr *)&address, length));
  connected_sender = connected(SOCK_DGRAM, &address, length);
  send_text(connected_sender, "without a name");
  own_length = abstract_address(&own, abstract_name);
  own.sun_path[own_length++ - offsetof(struct sockaddr_un, sun_path)] = 'x';
  int passing = bound(SOCK_DGRAM, &own, own_length);
  MUST(sendto(passing, "from one who left", 17, 0, (struct sockaddr *)&address, length));
  close(passing);
  one_way = bound(SOCK_DGRAM, &own, own_length);
  MUST(connect(one_way, (struct sockaddr *)&address, length));
  bare_stream = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
  bare_datagram = MUST(socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0));
}

static void set_up_flights(void) {
  int ends[2], numbers[4];
  MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, flights));
  MUST(pipe(ends));
  MUST(write(ends[1], "in a pipe", 9));
  int file = MUST(open("flying", O_RDWR | O_CREAT | O_TRUNC, 0600));
  MUST(write(file, "0123456789", 10));
  MUST(lseek(file, 4, SEEK_SET));
  int inner[2];
  MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, inner));
  send_text(inner[0], "inner");
  numbers[0] = ends[0], numbers[1] = file, numbers[2] = inner[1], numbers[3] = ends[1];
  send_text(flights[0], "before ");
  send_descriptors(flights[0], "with", numbers, 3);
  send_text(flights[0], " after ");
  send_descriptors(flights[0], "again", numbers + 3, 1);
  // A socket within a socket within a socket.
  int outer[2];
  MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, tiny_flight));
  MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, outer));
  send_descriptors(outer[0], "file inside", &file, 1);
  send_descriptors(tiny_flight[0], "socket inside", &outer[1], 1);
  close(outer[0]), close(outer[1]);
  close(ends[0]), close(ends[1]), close(file), close(inner[0]), close(inner[1]);
  // One that is on its way to itself.
  MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, cycle));
  send_descriptors(cycle[0], "myself", &cycle[1], 1);
  send_descriptors(cycle[0], "you", &cycle[0], 1);
}

static void set_up_children(void) {
  char byte;
  int ends[2];
  MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, ends));
  dead_child = MUST(fork());
  if (dead_child == 0) {
    int pair[2];
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    send_descriptors(ends[1], "d", &pair[0], 1);
    send_text(pair[1], "a legacy");
    MUST(write(ends[1], "!", 1));
    _exit(0);
  }
  by_dead_child = take_descriptor(ends[0]);
  MUST(read(ends[0], &byte, 1));
  MUST(waitpid(dead_child, NULL, 0));
  close(ends[0]), close(ends[1]);
  MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, life));
  child = MUST(fork());
  if (child == 0) {
    close(life[0]);
    child_life(life[1]);
  }
  close(life[1]);
  MUST(read(life[0], &byte, 1));
  by_child = MUST(accept(listening_abstract, NULL, NULL));
  MUST(read(life[0], &byte, 1));
}

static void check_round(void) {
  ask_child('.');
  expect_text("a look at the first datagram", datagram[1], "datagram 0", MSG_PEEK);
  expect_text("a look at the first packet", packet[1], "one", MSG_PEEK);
  send_text(accepted_abstract, "ping");
  expect_text("connection over an abstract name", client_abstract, "ping", 0);
  send_text(client_abstract, "pong");
  expect_text("connection over an abstract name", accepted_abstract, "pong", 0);
}

static void check_pairs(void) {
  CHECK_NUMBER("flags of a pair", O_RDWR | O_NONBLOCK, fcntl(stream[0], F_GETFL));
  CHECK_NUMBER("close-on-exec of a pair", FD_CLOEXEC, fcntl(stream[0], F_GETFD));
  expect_text("stream", stream[1], "first, second", 0);
  expect_text("stream, other direction", stream[0], "back", 0);
  expect_error("stream that is empty", stream[0], EAGAIN);
  char *content = malloc(400000), *wanted = malloc(400000);
  fill_pattern(wanted, 400000, 7);
  CHECK_NUMBER("bytes in a full stream", 400000, recv(big[1], content, 400000, MSG_WAITALL));
  CHECK_NUMBER("content of a full stream", 0, memcmp(content, wanted, 400000));
  free(content), free(wanted);
  for (int i = 0; i < 30; i++) {
    char text[32];
    snprintf(text, sizeof text, "datagram %d", i);
    expect_text("datagrams", datagram[1], text, 0);
  }
  expect_text("packets", packet[1], "one", 0);
  expect_text("packets", packet[1], "two two", 0);
  expect_error("packets that are all read", packet[1], EAGAIN);
  expect_text("stream whose other end is closed", half[0], "last words", 0);
  expect_error("end of a stream", half[0], 0);
  CHECK_NUMBER("sending to a closed end", -1, send(half[0], "x", 1, MSG_NOSIGNAL));
  CHECK_NUMBER("sending to a closed end", EPIPE, errno);
  expect_text("stream that is shut", shut[1], "before the end", 0);
  expect_error("end of a stream that is shut", shut[1], 0);
  send_text(shut[1], "the other way");
  expect_text("the half that is not shut", shut[0], "the other way", 0);
  CHECK_NUMBER("the half that is shut", -1, send(shut[0], "x", 1, MSG_NOSIGNAL));
  expect_error("stream whose other end was closed unread", reset_end, ECONNRESET);
  CHECK_NUMBER("datagram to a closed socket", -1, send(dead_peer, "x", 1, MSG_NOSIGNAL));
  CHECK_NUMBER("datagram to a closed socket", ECONNREFUSED, errno);
  expect_peer("maker of a pair", stream[0], getpid(), geteuid(), getegid());

  struct timeval timeout;
  int value = 0;
  socklen_t length = sizeof timeout;
  MUST(getsockopt(options[0], SOL_SOCKET, SO_RCVTIMEO, &timeout, &length));
  CHECK_NUMBER("SO_RCVTIMEO", 3500000, timeout.tv_sec * 1000000 + timeout.tv_usec);
  length = sizeof value;
  MUST(getsockopt(options[0], SOL_SOCKET, SO_SNDBUF, &value, &length));
  CHECK_NUMBER("SO_SNDBUF", 60000, value);
  MUST(getsockopt(options[0], SOL_SOCKET, SO_PASSCRED, &value, &length));
  CHECK_NUMBER("SO_PASSCRED", 1, value);
  MUST(getsockopt(options[0], SOL_SOCKET, SO_PEEK_OFF_, &value, &length));
  CHECK_NUMBER("SO_PEEK_OFF", 5, value);
  MUST(getsockopt(options[0], SOL_SOCKET, SO_RCVLOWAT, &value, &length));
  CHECK_NUMBER("SO_RCVLOWAT", 3, value);
  CHECK_NUMBER("flags", O_RDWR | O_NONBLOCK | O_ASYNC, fcntl(options[0], F_GETFL));
  expect_text("peek at an offset", options[0], "56789", MSG_PEEK);
  expect_text("after the peek", options[0], "0123456789", 0);
}

static void check_names(void) {
  struct sockaddr_un address, other;
  socklen_t length = path_address(&address, "listening"), other_length;
  expect_name("name of a listening socket", listening, &address, length, false);
  expect_name("name of an accepted socket", accepted, &address, length, false);
  expect_name("name of the other end", client, &address, length, true);
  struct stat status;
  MUST(stat("listening", &status));
  CHECK_NUMBER("mode of the file of a socket", S_IFSOCK | 0640, status.st_mode);
  expect_text("question", accepted, "question", 0);
  expect_text("answer", client, "answer", 0);
  for (int i = 0; i < 2; i++) {
    int fd = accept(listening, NULL, NULL);
    CHECK_TRUE("accepting a connection that has waited", fd >= 0);
    if (i == 1) expect_error("a waiting connection that is shut", fd, 0);
    send_text(fd, "late answer");
    expect_text("a connection that has waited", waiting[i], "late answer", 0);
    expect_peer("who has waited", fd, getpid(), geteuid(), getegid());
    close(fd);
  }
  int fresh = connected(SOCK_STREAM, &address, length), fresh_accepted = accept(listening, NULL, NULL);
  send_text(fresh, "new");
  expect_text("a new connection", fresh_accepted, "new", 0);

  length = abstract_address(&address, abstract_name);
  expect_name("abstract name", listening_abstract, &address, length, false);
  expect_name("abstract name of an accepted socket", accepted_abstract, &address, length, false);
  expect_peer("another user", by_child, child, 1234, 2345);
  ask_child('s');
  expect_text("the child's connection", by_child, "still here", 0);
  // Its PID may be somebody else's by now.
  struct ucred peer = {0};
  socklen_t peer_length = sizeof peer;
  MUST(getsockopt(by_dead_child, SOL_SOCKET, SO_PEERCRED, &peer, &peer_length));
  expect_peer("a process that has ended", by_dead_child, is_strict ? dead_child : peer.pid, geteuid(), getegid());
  expect_text("what a process that has ended left", by_dead_child, "a legacy", 0);

  length = path_address(&address, "deleted");
  expect_name("deleted name", listening_deleted, &address, length, false);
  expect_name("deleted name of the other end", client_deleted, &address, length, true);
  expect_name("a name that was freed", bound_only, &address, length, false);
  expect_text("a socket whose name is deleted", accepted_deleted, "to a socket without a name", 0);
  MUST(listen(bound_only, 3));
  fresh = connected(SOCK_SEQPACKET, &address, length);
  CHECK_TRUE("accepting under a name that was freed", accept(bound_only, NULL, NULL) >= 0);
  length = path_address(&address, "gone");
  expect_name("name whose owner is gone", accepted_only, &address, length, false);
  send_text(forgotten, "still connected");
  expect_text("connection whose listener is gone", accepted_only, "still connected", 0);

  length = path_address(&address, "sender");
  receive_all("datagram from a named sender", receiver, "with a name", NULL, NULL, &other, &other_length);
  CHECK_NUMBER("length of the sender's name", length, other_length);
  CHECK_TEXT("the sender's name", "sender", other.sun_path);
  receive_all("datagram from an unnamed sender", receiver, "without a name", NULL, NULL, &other, &other_length);
  CHECK_NUMBER("length of no name", 0, other_length);
  receive_all("datagram from a sender that is gone", receiver, "from one who left", NULL, NULL, &other, &other_length);
  length = abstract_address(&address, abstract_name);
  CHECK_NUMBER("length of the name of one who left", length + 1, other_length);
  send_text(connected_sender, "again");
  expect_text("connected sender", receiver, "again", 0);
  send_text(one_way, "one way");
  expect_text("one way", receiver, "one way", 0);
  length = path_address(&address, "receiver");
  MUST(sendto(bare_datagram, "unconnected", 11, 0, (struct sockaddr *)&address, length));
  expect_text("unconnected sender", receiver, "unconnected", 0);
  length = path_address(&address, "listening");
  MUST(connect(bare_stream, (struct sockaddr *)&address, length));
}

static void check_flights(void) {
  int numbers[8] = {0};
  char text[64] = "";
  struct ucred user = {0};
  int count = receive_all("text before descriptors", flights[1], "before ", numbers, NULL, NULL, NULL);
  CHECK_NUMBER("descriptors before their time", 0, count);
  count = receive_all("text with descriptors", flights[1], "with", numbers, NULL, NULL, NULL);
  CHECK_NUMBER("descriptors in flight", 3, count);
  CHECK_NUMBER("pipe in flight", 9, read(numbers[0], text, sizeof text));
  CHECK_TEXT("pipe in flight", "in a pipe", text);
  CHECK_NUMBER("offset of a file in flight", 4, lseek(numbers[1], 0, SEEK_CUR));
  expect_text("socket in flight", numbers[2], "inner", 0);
  expect_error("its other end was closed", numbers[2], 0);
  count = receive_all("text between", flights[1], " after ", numbers, NULL, NULL, NULL);
  CHECK_NUMBER("descriptors between", 0, count);
  int pipe_end = numbers[0];
  count = receive_all("the second descriptors", flights[1], "again", numbers, NULL, NULL, NULL);
  CHECK_NUMBER("descriptors in flight, the second time", 1, count);
  CHECK_NUMBER("the other end of the pipe", 1, write(numbers[0], "x", 1));
  CHECK_NUMBER("the pipe", 1, read(pipe_end, text, 1));

  count = receive_all("socket in a socket", tiny_flight[1], "socket inside", numbers, NULL, NULL, NULL);
  CHECK_NUMBER("socket in a socket", 1, count);
  count = receive_all("file in a socket in a socket", numbers[0], "file inside", numbers, NULL, NULL, NULL);
  CHECK_NUMBER("file in a socket in a socket", 1, count);
  CHECK_NUMBER("shared offset of a file in flight", 4, lseek(numbers[0], 0, SEEK_CUR));

  count = receive_all("cycle", cycle[1], "myself", numbers, NULL, NULL, NULL);
  CHECK_NUMBER("cycle", 1, count);
  count = receive_all("cycle", numbers[0], "you", numbers + 1, NULL, NULL, NULL);
  CHECK_NUMBER("cycle", 1, count);
  send_text(numbers[1], "through the cycle");
  expect_text("cycle", cycle[1], "through the cycle", 0);

  receive_all("credentials", credentials[0], "from the child", NULL, &user, NULL, NULL);
  CHECK_NUMBER("PID with a message", child, user.pid);
  CHECK_NUMBER("user with a message", getuid(), user.uid);
}

/// A message of no length, and what stands around it.
static int empty_messages(void) {
  int seqpacket[2];
  MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, datagram));
  MUST(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, seqpacket));
  const char *texts[] = {"", "one", "", "", "two", ""};
  for (int i = 0; i < 6; i++) {
    MUST(send(datagram[0], texts[i], strlen(texts[i]), 0));
    MUST(send(seqpacket[0], texts[i], strlen(texts[i]), 0));
  }
  report("READY %d", getpid());
  while (!finish_requested()) tick();
  for (int i = 0; i < 6; i++) {
    expect_text("empty datagrams", datagram[1], texts[i], 0);
    expect_text("empty packets", seqpacket[1], texts[i], 0);
  }
  return victim_end();
}

int main(int argc, char **argv) {
  victim_start();
  signal(SIGPIPE, SIG_IGN);
  signal(SIGIO, SIG_IGN);
  MUST(chdir(victim_directory)); // the whole path may be too long for a socket name
  if (argc > 1 && strcmp(argv[1], "empty") == 0) return empty_messages();
  is_strict = argc > 1 && strcmp(argv[1], "strict") == 0;
  set_up_pairs();
  set_up_names();
  set_up_flights();
  set_up_children();
  check_round();
  report("READY %d %d", getpid(), child);
  while (!finish_requested()) {
    tick();
    check_round();
  }
  check_pairs();
  check_names();
  check_flights();
  close(life[0]);
  int result = 0;
  CHECK_NUMBER("waitpid", child, waitpid(child, &result, 0));
  CHECK_NUMBER("status of the child", 0, result);
  return victim_end();
}

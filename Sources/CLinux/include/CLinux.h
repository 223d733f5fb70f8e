// The kernel interfaces that Swift cannot see: variadic calls, function-like macros, and structures newer than
// the headers of the distribution. Nothing here decides anything.
#ifndef TORPOR_CLINUX_H
#define TORPOR_CLINUX_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
#include <dirent.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <linux/kcmp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/auxv.h>
#include <time.h>
#include <stdlib.h>
#include <signal.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/user.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

/// syscall(2): the result, or -errno.
static inline long clinux_syscall(long number, long a, long b, long c, long d, long e, long f) {
  long result = syscall(number, a, b, c, d, e, f);
  return result == -1 ? -errno : result;
}

/// ptrace(2) through the bare system call: the result, or -errno.
static inline long clinux_ptrace(long request, int32_t tid, uintptr_t address, uintptr_t data) {
  return clinux_syscall(SYS_ptrace, request, tid, (long)address, (long)data, 0, 0);
}

/// errno(3), a macro.
static inline int clinux_errno(void) { return errno; }

static inline int clinux_wifexited(int status) { return WIFEXITED(status); }
static inline int clinux_wexitstatus(int status) { return WEXITSTATUS(status); }
static inline int clinux_wifsignaled(int status) { return WIFSIGNALED(status); }
static inline int clinux_wtermsig(int status) { return WTERMSIG(status); }
static inline int clinux_wifstopped(int status) { return WIFSTOPPED(status); }

static inline uint32_t clinux_major(uint64_t device) { return gnu_dev_major(device); }
static inline uint32_t clinux_minor(uint64_t device) { return gnu_dev_minor(device); }
static inline uint64_t clinux_makedev(uint32_t major, uint32_t minor) { return gnu_dev_makedev(major, minor); }

// ptrace(2). glibc has these as an enum behind a variadic prototype.
enum {
  CLINUX_PTRACE_CONT = 7,
  CLINUX_PTRACE_DETACH = 17,
  CLINUX_PTRACE_SYSCALL = 24,
  CLINUX_PTRACE_SETOPTIONS = 0x4200,
  CLINUX_PTRACE_GETEVENTMSG = 0x4201,
  CLINUX_PTRACE_GETSIGINFO = 0x4202,
  CLINUX_PTRACE_GETREGSET = 0x4204,
  CLINUX_PTRACE_SETREGSET = 0x4205,
  CLINUX_PTRACE_SEIZE = 0x4206,
  CLINUX_PTRACE_INTERRUPT = 0x4207,
  CLINUX_PTRACE_PEEKSIGINFO = 0x4209,
  CLINUX_PTRACE_GETSIGMASK = 0x420a,
  CLINUX_PTRACE_SETSIGMASK = 0x420b,
  CLINUX_PTRACE_GET_RSEQ_CONFIGURATION = 0x420f,
  CLINUX_PTRACE_EVENT_EXEC = 4,
  CLINUX_PTRACE_EVENT_STOP = 128,
  CLINUX_PTRACE_O_TRACESYSGOOD = 1,
  CLINUX_PTRACE_O_TRACEEXEC = 1 << 4,
  CLINUX_PTRACE_O_EXITKILL = 1 << 20,
  CLINUX_PTRACE_O_SUSPEND_SECCOMP = 1 << 21,
};

/// struct ptrace_rseq_configuration of linux/ptrace.h.
struct clinux_rseq_configuration {
  uint64_t rseq_abi_pointer;
  uint32_t rseq_abi_size;
  uint32_t signature;
  uint32_t flags;
  uint32_t pad;
};

/// struct ptrace_peeksiginfo_args of linux/ptrace.h.
struct clinux_peeksiginfo {
  uint64_t offset;
  uint32_t flags;
  int32_t count;
};

/// struct clone_args of linux/sched.h, up to and including `cgroup` (Linux 5.7).
struct clinux_clone_args {
  uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size, cgroup;
};

/// struct page_region and struct pm_scan_arg of linux/fs.h (Linux 6.7).
struct clinux_page_region {
  uint64_t start, end, categories;
};
struct clinux_pm_scan_arg {
  uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
  uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
#define CLINUX_PAGEMAP_SCAN 0xc0606610UL // _IOWR('f', 16, struct pm_scan_arg)
enum {
  CLINUX_PAGE_IS_WPALLOWED = 1 << 0,
  CLINUX_PAGE_IS_WRITTEN = 1 << 1,
  CLINUX_PAGE_IS_FILE = 1 << 2,
  CLINUX_PAGE_IS_PRESENT = 1 << 3,
  CLINUX_PAGE_IS_SWAPPED = 1 << 4,
  CLINUX_PAGE_IS_PFNZERO = 1 << 5,
  CLINUX_PAGE_IS_HUGE = 1 << 6,
  CLINUX_PAGE_IS_GUARD = 1 << 8,
};

/// struct prctl_mm_map of linux/prctl.h.
struct clinux_prctl_mm_map {
  uint64_t start_code, end_code, start_data, end_data, start_brk, brk, start_stack, arg_start, arg_end, env_start, env_end;
  uint64_t auxv;
  uint32_t auxv_size;
  uint32_t exe_fd;
};

#ifdef __x86_64__
/// CPUID: eax, ebx, ecx, edx of a leaf, in this order.
static inline void clinux_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t *result) {
  __asm__ volatile("cpuid"
                   : "=a"(result[0]), "=b"(result[1]), "=c"(result[2]), "=d"(result[3])
                   : "a"(leaf), "c"(subleaf));
}
#endif

/// struct sigaction as the kernel has it.
struct clinux_sigaction {
  uint64_t handler, flags, restorer, mask;
};

/// struct sched_attr of linux/sched/types.h, first version.
struct clinux_sched_attr {
  uint32_t size, policy;
  uint64_t flags;
  int32_t nice;
  uint32_t priority;
  uint64_t runtime, deadline, period;
};

// Control messages (cmsg(3)): the macros are not imported.
static inline unsigned long clinux_cmsg_space(unsigned long length) { return CMSG_SPACE(length); }
static inline unsigned long clinux_cmsg_len(unsigned long length) { return CMSG_LEN(length); }

#endif

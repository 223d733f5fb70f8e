// Registers with distinctive values, kept in a busy loop without any call: x87 stack and control word, MXCSR, XMM/YMM, and where
// the CPU has them ZMM and mask registers, the flags, the general registers, fs and gs bases. One thread per unit.
#include "victim.h"
#include <cpuid.h>

static atomic_bool ending;
static atomic_ulong rounds[5];
static bool has_avx, has_avx512;

/// Runs until `ending`; returns how many lanes differed from `value`.
__attribute__((target("avx"), noinline)) static long spin_avx(uint64_t seed, atomic_ulong *count) {
  uint64_t in[16][4], out[16][4];
  for (int i = 0; i < 16; i++)
    for (int j = 0; j < 4; j++) in[i][j] = pattern(seed, i * 4 + j);
  memset(out, 0, sizeof out);
  __asm__ volatile(
#define LOAD(n) "vmovdqu " #n "*32(%[in]), %%ymm" #n "\n"
      LOAD(0) LOAD(1) LOAD(2) LOAD(3) LOAD(4) LOAD(5) LOAD(6) LOAD(7) LOAD(8) LOAD(9) LOAD(10) LOAD(11) LOAD(12) LOAD(13) LOAD(14) LOAD(15)
      "1: lock incq (%[count])\n"
      "mov $1000, %%rcx\n"
      "2: dec %%rcx\n"
      "jnz 2b\n"
      "cmpb $0, (%[ending])\n"
      "je 1b\n"
#define STORE(n) "vmovdqu %%ymm" #n ", " #n "*32(%[out])\n"
      STORE(0) STORE(1) STORE(2) STORE(3) STORE(4) STORE(5) STORE(6) STORE(7) STORE(8) STORE(9) STORE(10) STORE(11) STORE(12) STORE(13) STORE(14) STORE(15)
      "vzeroupper\n"
      :
      : [in] "r"(in), [out] "r"(out), [count] "r"(count), [ending] "r"(&ending)
      : "memory", "rcx", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12",
        "xmm13", "xmm14", "xmm15");
  long wrong = 0;
  for (int i = 0; i < 16; i++)
    for (int j = 0; j < 4; j++) wrong += in[i][j] != out[i][j];
  return wrong;
}

__attribute__((target("avx512f,avx512bw"), noinline)) static long spin_avx512(uint64_t seed, atomic_ulong *count) {
  uint64_t in[32][8], out[32][8], masks_in[8], masks_out[8];
  for (int i = 0; i < 32; i++)
    for (int j = 0; j < 8; j++) in[i][j] = pattern(seed, i * 8 + j);
  for (int i = 0; i < 8; i++) masks_in[i] = pattern(seed + 1, i);
  memset(out, 0, sizeof out), memset(masks_out, 0, sizeof masks_out);
  __asm__ volatile(
#define LOAD_Z(n) "vmovdqu64 " #n "*64(%[in]), %%zmm" #n "\n"
      LOAD_Z(0) LOAD_Z(1) LOAD_Z(2) LOAD_Z(3) LOAD_Z(4) LOAD_Z(5) LOAD_Z(6) LOAD_Z(7) LOAD_Z(8) LOAD_Z(9) LOAD_Z(10)
      LOAD_Z(11) LOAD_Z(12) LOAD_Z(13) LOAD_Z(14) LOAD_Z(15) LOAD_Z(16) LOAD_Z(17) LOAD_Z(18) LOAD_Z(19) LOAD_Z(20)
      LOAD_Z(21) LOAD_Z(22) LOAD_Z(23) LOAD_Z(24) LOAD_Z(25) LOAD_Z(26) LOAD_Z(27) LOAD_Z(28) LOAD_Z(29) LOAD_Z(30) LOAD_Z(31)
#define LOAD_K(n) "kmovq " #n "*8(%[masks_in]), %%k" #n "\n"
      LOAD_K(0) LOAD_K(1) LOAD_K(2) LOAD_K(3) LOAD_K(4) LOAD_K(5) LOAD_K(6) LOAD_K(7)
      "1: lock incq (%[count])\n"
      "mov $1000, %%rcx\n"
      "2: dec %%rcx\n"
      "jnz 2b\n"
      "cmpb $0, (%[ending])\n"
      "je 1b\n"
#define STORE_Z(n) "vmovdqu64 %%zmm" #n ", " #n "*64(%[out])\n"
      STORE_Z(0) STORE_Z(1) STORE_Z(2) STORE_Z(3) STORE_Z(4) STORE_Z(5) STORE_Z(6) STORE_Z(7) STORE_Z(8) STORE_Z(9) STORE_Z(10)
      STORE_Z(11) STORE_Z(12) STORE_Z(13) STORE_Z(14) STORE_Z(15) STORE_Z(16) STORE_Z(17) STORE_Z(18) STORE_Z(19) STORE_Z(20)
      STORE_Z(21) STORE_Z(22) STORE_Z(23) STORE_Z(24) STORE_Z(25) STORE_Z(26) STORE_Z(27) STORE_Z(28) STORE_Z(29) STORE_Z(30) STORE_Z(31)
#define STORE_K(n) "kmovq %%k" #n ", " #n "*8(%[masks_out])\n"
      STORE_K(0) STORE_K(1) STORE_K(2) STORE_K(3) STORE_K(4) STORE_K(5) STORE_K(6) STORE_K(7)
      "vzeroupper\n"
      :
      : [in] "r"(in), [out] "r"(out), [masks_in] "r"(masks_in), [masks_out] "r"(masks_out), [count] "r"(count), [ending] "r"(&ending)
      : "memory", "rcx", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12",
        "xmm13", "xmm14", "xmm15", "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23", "xmm24", "xmm25",
        "xmm26", "xmm27", "xmm28", "xmm29", "xmm30", "xmm31", "k0", "k1", "k2", "k3", "k4", "k5", "k6", "k7");
  long wrong = 0;
  for (int i = 0; i < 32; i++)
    for (int j = 0; j < 8; j++) wrong += in[i][j] != out[i][j];
  for (int i = 0; i < 8; i++) wrong += masks_in[i] != masks_out[i];
  return wrong;
}

static void *avx_thread(void *unused) {
  (void)unused;
  if (has_avx) CHECK_NUMBER("lanes of YMM registers that changed", 0, spin_avx(11, &rounds[0]));
  return NULL;
}
static void *avx512_thread(void *unused) {
  (void)unused;
  if (has_avx512) CHECK_NUMBER("lanes of ZMM and mask registers that changed", 0, spin_avx512(12, &rounds[1]));
  return NULL;
}

/// Eight values on the x87 stack, an unusual precision and rounding, an unusual MXCSR.
static void *x87_thread(void *unused) {
  (void)unused;
  long double in[8], out[8];
  for (int i = 0; i < 8; i++) in[i] = 1.0L / (3 + i);
  uint16_t control = 0x0b7f /* round up, extended precision */, control_now = 0;
  uint32_t mxcsr = 0xdfa0 /* flush to zero, round down, denormals are zero... with a flag raised */, mxcsr_now = 0, mxcsr_old;
  __asm__ volatile("stmxcsr %0" : "=m"(mxcsr_old));
  __asm__ volatile("fninit\n fldcw %[control]\n ldmxcsr %[mxcsr]\n"
                   "fldt 0(%[in])\n fldt 16(%[in])\n fldt 32(%[in])\n fldt 48(%[in])\n"
                   "fldt 64(%[in])\n fldt 80(%[in])\n fldt 96(%[in])\n fldt 112(%[in])\n"
                   "1: lock incq (%[count])\n"
                   "mov $1000, %%rcx\n"
                   "2: dec %%rcx\n"
                   "jnz 2b\n"
                   "cmpb $0, (%[ending])\n"
                   "je 1b\n"
                   "fstpt 112(%[out])\n fstpt 96(%[out])\n fstpt 80(%[out])\n fstpt 64(%[out])\n"
                   "fstpt 48(%[out])\n fstpt 32(%[out])\n fstpt 16(%[out])\n fstpt 0(%[out])\n"
                   "fnstcw %[control_now]\n stmxcsr %[mxcsr_now]\n fninit\n ldmxcsr %[mxcsr_old]\n"
                   : [control_now] "=m"(control_now), [mxcsr_now] "=m"(mxcsr_now)
                   : [in] "r"(in), [out] "r"(out), [count] "r"(&rounds[2]), [ending] "r"(&ending), [control] "m"(control),
                     [mxcsr] "m"(mxcsr), [mxcsr_old] "m"(mxcsr_old)
                   : "memory", "rcx", "cc", "st", "st(1)", "st(2)", "st(3)", "st(4)", "st(5)", "st(6)", "st(7)");
  for (int i = 0; i < 8; i++)
    if (memcmp(&in[i], &out[i], 10) != 0) fail("x87 register %d: expected %.20Lf, got %.20Lf", i, in[i], out[i]);
  CHECK_NUMBER("x87 control word", control, control_now);
  CHECK_NUMBER("MXCSR", mxcsr, mxcsr_now);
  return NULL;
}

/// General registers, the direction flag, and a gs base of our own.
static void *general_thread(void *unused) {
  (void)unused;
  static uint64_t through_gs = 0x6d6f6f74687971ULL;
  uint64_t out[9] = {0};
  MUST(syscall(SYS_arch_prctl, 0x1001 /* ARCH_SET_GS */, &through_gs));
  __asm__ volatile("mov $0x1111111111111111, %%rax\n mov $0x2222222222222222, %%rdx\n mov $0x3333333333333333, %%r8\n"
                   "mov $0x4444444444444444, %%r9\n mov $0x5555555555555555, %%r10\n mov $0x6666666666666666, %%r11\n"
                   "mov $0x7777777777777777, %%r12\n mov $0x0888888888888888, %%r13\n"
                   "1: lock incq (%[count])\n"
                   "std\n"
                   "mov $1000, %%rcx\n"
                   "2: dec %%rcx\n"
                   "jnz 2b\n"
                   "pushf\n pop %%rcx\n and $0x400, %%rcx\n"
                   "cld\n"
                   "jz 3f\n"
                   "cmpb $0, (%[ending])\n"
                   "je 1b\n"
                   "3: mov %%rax, 0(%[out])\n mov %%rdx, 8(%[out])\n mov %%r8, 16(%[out])\n mov %%r9, 24(%[out])\n"
                   "mov %%r10, 32(%[out])\n mov %%r11, 40(%[out])\n mov %%r12, 48(%[out])\n mov %%r13, 56(%[out])\n"
                   "mov %%rcx, 64(%[out])\n"
                   :
                   : [out] "r"(out), [count] "r"(&rounds[3]), [ending] "r"(&ending)
                   : "memory", "cc", "rax", "rcx", "rdx", "r8", "r9", "r10", "r11", "r12", "r13");
  static const uint64_t wanted[9] = {0x1111111111111111, 0x2222222222222222, 0x3333333333333333, 0x4444444444444444, 0x5555555555555555,
                                     0x6666666666666666, 0x7777777777777777, 0x0888888888888888, 0x400};
  for (int i = 0; i < 9; i++) CHECK_NUMBER(i == 8 ? "direction flag" : "general register", wanted[i], out[i]);
  uint64_t seen = 0;
  __asm__ volatile("mov %%gs:0, %0" : "=r"(seen));
  CHECK_NUMBER("word behind the gs base", through_gs, seen);
  return NULL;
}

/// The same in calls: values in callee-saved and vector registers across blocking system calls, and a long sum.
static void *sleeping_thread(void *unused) {
  (void)unused;
  double sum = 0, wanted = 0;
  for (unsigned long round = 1; !atomic_load(&ending); round++) {
    sum += 1.0 / round;
    sleep_checked(2000000);
    atomic_fetch_add(&rounds[4], 1);
  }
  for (unsigned long round = 1; round <= atomic_load(&rounds[4]); round++) wanted += 1.0 / round;
  if (sum != wanted) fail("a sum over sleeps: expected %.17g, got %.17g", wanted, sum);
  return NULL;
}

int main(void) {
  victim_start();
  __builtin_cpu_init();
  has_avx = __builtin_cpu_supports("avx");
  has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
  static void *(*const lives[])(void *) = {avx_thread, avx512_thread, x87_thread, general_thread, sleeping_thread};
  pthread_t handles[5];
  for (int i = 0; i < 5; i++) MUST_ZERO(pthread_create(&handles[i], NULL, lives[i], NULL));
  for (int i = 0; i < 5; i++)
    while ((i != 0 || has_avx) && (i != 1 || has_avx512) && atomic_load(&rounds[i]) < 2) sleep_checked(1000000);
  report("NOTE avx %d avx512 %d", has_avx, has_avx512);
  report("READY %d", getpid());
  while (!finish_requested()) tick();
  for (int i = 0; i < 5; i++) {
    if ((i == 0 && !has_avx) || (i == 1 && !has_avx512)) continue;
    unsigned long before = atomic_load(&rounds[i]);
    int64_t limit = monotonic_ns() + 10000000000LL;
    while (atomic_load(&rounds[i]) < before + 2 && monotonic_ns() < limit) sleep_checked(1000000);
    if (atomic_load(&rounds[i]) < before + 2) fail("loop %d does not run any more", i);
  }
  atomic_store(&ending, true);
  for (int i = 0; i < 5; i++) pthread_join(handles[i], NULL);
  return victim_end();
}

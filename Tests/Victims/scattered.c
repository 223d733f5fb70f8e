// Memory of any size in which every so-many-th page has content: scattered [MiB] [stride in pages].
// Each page holds its own number throughout; all of them are looked at again and again, and the holes stay holes.
#include "victim.h"

enum { PAGE = 4096 };
static uint64_t *start;
static size_t pages, stride = 3;

static uint64_t value(size_t page, size_t word) { return page * 0x9e3779b97f4a7c15 + word; }

static void check_page(size_t page) {
  uint64_t *words = start + page * (PAGE / 8);
  bool full = page % stride == 0;
  for (size_t word = 0; word < PAGE / 8; word++)
    if (words[word] != (full ? value(page, word) : 0)) {
      fail("page %zu, word %zu: expected 0x%llx, got 0x%llx", page, word, full ? (long long)value(page, word) : 0LL,
           (long long)words[word]);
      return;
    }
}

int main(int argc, char **argv) {
  victim_start();
  pages = (argc > 1 ? (size_t)atoi(argv[1]) : 64) << 8;
  if (argc > 2) stride = (size_t)atoi(argv[2]);
  start = (uint64_t *)MUST(mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  MUST(madvise(start, pages * PAGE, MADV_NOHUGEPAGE));
  for (size_t page = 0; page < pages; page += stride)
    for (size_t word = 0; word < PAGE / 8; word++) start[page * (PAGE / 8) + word] = value(page, word);
  report("READY %d", getpid());
  for (size_t next = 0; !finish_requested(); next = (next + stride) % pages) {
    if (next % stride) next -= next % stride;
    check_page(next);
    tick();
  }
  // Reading a hole gives zeros.
  for (size_t page = 0; page < pages; page++) check_page(page);
  return victim_end();
}

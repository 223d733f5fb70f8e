// What the test harness needs of glibc's extensions and Swift cannot see. Defining _GNU_SOURCE here would give structures
// that differ from those of Swift's own Glibc module, so the extensions are declared one by one.
#ifndef TORPOR_CVICTIMS_H
#define TORPOR_CVICTIMS_H

#include <spawn.h>
#include <sys/prctl.h>

extern int posix_spawn_file_actions_addclosefrom_np(posix_spawn_file_actions_t *actions, int from);
extern int posix_spawn_file_actions_addchdir_np(posix_spawn_file_actions_t *actions, const char *path);

/// prctl(2), which is variadic.
static inline int clinux_become_subreaper(void) { return prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); }

#endif

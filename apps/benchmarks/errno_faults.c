/* Lets one system call fail: preloaded into a process, counts the calls that write below
 * a folder, and fails the one that `errno_faults_arm` names. Built by `errno_faults.py`.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sendfile.h>
#include <sys/uio.h>
#include <unistd.h>

static char folder[PATH_MAX];
static atomic_long seen, target;
static atomic_int error_number, lasts, armed;
static int log_descriptor = -1;

/* Count calls below `below`; fail call `at` (from 1; 0: none) with `error`, and all later
 * ones too if `forever`. Calls are logged to `log`, -1 for no log. */
void errno_faults_arm(const char *below, long at, int error, int forever, int log) {
  snprintf(folder, sizeof folder, "%s", below);
  seen = 0;
  target = at;
  error_number = error;
  lasts = forever;
  log_descriptor = log;
  armed = 1;
}

static int is_below(const char *path) {
  char whole[2 * PATH_MAX];
  if (path[0] != '/') {
    char here[PATH_MAX];
    if (!getcwd(here, sizeof here)) return 0;
    snprintf(whole, sizeof whole, "%s/%s", here, path);
    path = whole;
  }
  size_t length = strlen(folder);
  return !strncmp(path, folder, length) && (path[length] == '/' || !path[length]);
}

/* Whether this call is to fail; sets errno. Logs the call, with a ! if it fails. */
static int fails(const char *call, const char *path) {
  if (!armed || !path || !is_below(path)) return 0;
  long number = atomic_fetch_add(&seen, 1) + 1;
  int is_hit = target && (number == target || (number > target && lasts));
  /* Later, on a full disk, space can still be given back; a read-only one has no room
   * for that either. */
  int gives_back = !strcmp(call, "unlink") || !strcmp(call, "truncate");
  if (number > target && gives_back && error_number != EROFS) is_hit = 0;
  if (log_descriptor >= 0)
    dprintf(log_descriptor, "%s%s %s\n", is_hit ? "!" : "", call, path);
  if (is_hit) errno = error_number;
  return is_hit;
}

static int descriptor_fails(const char *call, int descriptor) {
  char link[64], path[PATH_MAX];
  if (!armed || descriptor == log_descriptor) return 0;
  int saved = errno;
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  ssize_t length = readlink(link, path, sizeof path - 1);
  errno = saved;
  if (length <= 0) return 0;
  path[length] = 0;
  return fails(call, path);
}

static int entry_fails(const char *call, int directory, const char *name) {
  if (!armed || !name) return 0;
  if (name[0] == '/' || directory == AT_FDCWD) return fails(call, name);
  char link[64], path[2 * PATH_MAX];
  snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
  ssize_t length = readlink(link, path, PATH_MAX);
  if (length <= 0) return 0;
  snprintf(path + length, sizeof path - length, "/%s", name);
  return fails(call, path);
}

#define REAL(name) \
  static __typeof__(&name) real; \
  if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

#define ON_DESCRIPTOR(result, name, call, parameters, arguments) \
  result name parameters { \
    REAL(name); \
    return descriptor_fails(call, descriptor) ? -1 : real arguments; \
  }

ON_DESCRIPTOR(ssize_t, write, "write", (int descriptor, const void *data, size_t size),
              (descriptor, data, size))
ON_DESCRIPTOR(ssize_t, pwrite, "write",
              (int descriptor, const void *data, size_t size, off_t at),
              (descriptor, data, size, at))
ON_DESCRIPTOR(ssize_t, pwrite64, "write",
              (int descriptor, const void *data, size_t size, off64_t at),
              (descriptor, data, size, at))
ON_DESCRIPTOR(ssize_t, writev, "write",
              (int descriptor, const struct iovec *parts, int count),
              (descriptor, parts, count))
ON_DESCRIPTOR(ssize_t, copy_file_range, "write",
              (int from, off64_t *start, int descriptor, off64_t *at, size_t size,
               unsigned flags),
              (from, start, descriptor, at, size, flags))
ON_DESCRIPTOR(ssize_t, sendfile, "write",
              (int descriptor, int from, off_t *start, size_t size),
              (descriptor, from, start, size))
ON_DESCRIPTOR(ssize_t, sendfile64, "write",
              (int descriptor, int from, off64_t *start, size_t size),
              (descriptor, from, start, size))
ON_DESCRIPTOR(int, fsync, "fsync", (int descriptor), (descriptor))
ON_DESCRIPTOR(int, fdatasync, "fsync", (int descriptor), (descriptor))
ON_DESCRIPTOR(int, ftruncate, "truncate", (int descriptor, off_t size),
              (descriptor, size))
ON_DESCRIPTOR(int, ftruncate64, "truncate", (int descriptor, off64_t size),
              (descriptor, size))
/* Returns its error instead of setting errno. */
int posix_fallocate(int descriptor, off_t at, off_t size) {
  REAL(posix_fallocate);
  return descriptor_fails("write", descriptor) ? errno : real(descriptor, at, size);
}

int posix_fallocate64(int descriptor, off64_t at, off64_t size) {
  REAL(posix_fallocate64);
  return descriptor_fails("write", descriptor) ? errno : real(descriptor, at, size);
}

#define ON_PATH(result, name, call, parameters, arguments) \
  result name parameters { \
    REAL(name); \
    return fails(call, path) ? -1 : real arguments; \
  }

ON_PATH(int, rename, "rename", (const char *old, const char *path), (old, path))
ON_PATH(int, mkdir, "mkdir", (const char *path, mode_t mode), (path, mode))
ON_PATH(int, unlink, "unlink", (const char *path), (path))
ON_PATH(int, rmdir, "unlink", (const char *path), (path))
ON_PATH(int, truncate, "truncate", (const char *path, off_t size), (path, size))
ON_PATH(int, truncate64, "truncate", (const char *path, off64_t size), (path, size))
ON_PATH(int, symlink, "rename", (const char *to, const char *path), (to, path))
ON_PATH(int, link, "rename", (const char *old, const char *path), (old, path))

int renameat(int from, const char *old, int to, const char *new) {
  REAL(renameat);
  return entry_fails("rename", to, new) ? -1 : real(from, old, to, new);
}

int renameat2(int from, const char *old, int to, const char *new, unsigned flags) {
  REAL(renameat2);
  return entry_fails("rename", to, new) ? -1 : real(from, old, to, new, flags);
}

int mkdirat(int directory, const char *name, mode_t mode) {
  REAL(mkdirat);
  return entry_fails("mkdir", directory, name) ? -1 : real(directory, name, mode);
}

int unlinkat(int directory, const char *name, int flags) {
  REAL(unlinkat);
  return entry_fails("unlink", directory, name) ? -1 : real(directory, name, flags);
}

#define WRITES(flags) (((flags) & O_ACCMODE) != O_RDONLY || ((flags) & O_CREAT))
#define MODE(flags) \
  mode_t mode = 0; \
  if ((flags) & (O_CREAT | O_TMPFILE)) { \
    va_list rest; \
    va_start(rest, flags); \
    mode = va_arg(rest, mode_t); \
    va_end(rest); \
  }

#define OPEN(name) \
  int name(const char *path, int flags, ...) { \
    REAL(name); \
    MODE(flags); \
    return WRITES(flags) && fails("open", path) ? -1 : real(path, flags, mode); \
  }
#define OPEN_AT(name) \
  int name(int directory, const char *path, int flags, ...) { \
    REAL(name); \
    MODE(flags); \
    if (WRITES(flags) && entry_fails("open", directory, path)) return -1; \
    return real(directory, path, flags, mode); \
  }
#define FOPEN(name) \
  FILE *name(const char *path, const char *mode) { \
    REAL(name); \
    int writes = strpbrk(mode, "wa+") != NULL; \
    return writes && fails("open", path) ? NULL : real(path, mode); \
  }

OPEN(open)
OPEN(open64)
OPEN_AT(openat)
OPEN_AT(openat64)
FOPEN(fopen)
FOPEN(fopen64)

// LD_PRELOAD: counts the C library's calls about files below a directory, and lets one of them fail.
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { kShort = -1 };

static char below[PATH_MAX];
static long wanted;  // the number of the call that fails, from 1; 0: none
static int error;    // its errno, or kShort
static int log_fd = -1;
static atomic_long calls;

// From now on the `nth` call about a file below `directory` fails with `number`; every call is a line in the file `log`.
void fault_arm(const char* directory, long nth, int number, int log) {
  snprintf(below, sizeof(below), "%s", directory);
  wanted = nth, error = number, log_fd = log;
  atomic_store(&calls, 0);
}

static void path_of(int fd, char* path) {
  char name[64];
  snprintf(name, sizeof(name), "/proc/self/fd/%d", fd);
  const long n = syscall(SYS_readlinkat, AT_FDCWD, name, path, PATH_MAX - 1);
  path[n > 0 ? n : 0] = 0;
}

// Counts a call about `path`, seen from the directory `fd`, or about `fd` itself. Returns the error to make of it, or 0.
static int fault(const char* call, int fd, const char* path) {
  if (log_fd < 0) return 0;
  const int before = errno;
  char whole[2 * PATH_MAX] = "";
  if (path && (path[0] == '/' || fd == AT_FDCWD)) {
    snprintf(whole, sizeof(whole), "%s", path);
  } else {
    path_of(fd, whole);
    if (path && path[0]) snprintf(whole + strlen(whole), PATH_MAX, "/%s", path);
  }
  errno = before;
  if (!below[0] || strncmp(whole, below, strlen(below)) != 0) return 0;
  const long number = atomic_fetch_add(&calls, 1) + 1;
  char line[3 * PATH_MAX];
  const int n = snprintf(line, sizeof(line), "%s %s\n", call, whole);
  syscall(SYS_write, log_fd, line, n);
  return number == wanted ? error : 0;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

// A call that fails instead of being made. No call but those that move bytes can be short.
#define FAIL(result, name, fd, path)                 \
  do {                                               \
    const int found = fault(#name, fd, path);        \
    if (found > 0) return errno = found, (result);   \
  } while (0)

#define BY_PATH(type, name, args, fd, path, ...) \
  type name args {                               \
    FAIL(-1, name, fd, path);                    \
    return REAL(name)(__VA_ARGS__);              \
  }

static mode_t mode_of(int flags, va_list more) {
  return flags & (O_CREAT | __O_TMPFILE) ? va_arg(more, mode_t) : 0;
}

int open64(const char* path, int flags, ...) {
  va_list more;
  va_start(more, flags);
  const mode_t mode = mode_of(flags, more);
  va_end(more);
  FAIL(-1, open64, AT_FDCWD, path);
  return REAL(open64)(path, flags, mode);
}

int openat64(int fd, const char* path, int flags, ...) {
  va_list more;
  va_start(more, flags);
  const mode_t mode = mode_of(flags, more);
  va_end(more);
  FAIL(-1, openat64, fd, path);
  return REAL(openat64)(fd, path, flags, mode);
}

// As Linux does, it closes the file and then says what went wrong.
int close(int fd) {
  const int found = fault("close", fd, 0), result = (int)syscall(SYS_close, fd);
  if (found > 0) return errno = found, -1;
  return result;
}

BY_PATH(int, stat64, (const char* path, struct stat64* s), AT_FDCWD, path, path, s)
BY_PATH(int, lstat64, (const char* path, struct stat64* s), AT_FDCWD, path, path, s)
BY_PATH(int, fstat64, (int fd, struct stat64* s), fd, 0, fd, s)
BY_PATH(int, fstatat64, (int fd, const char* path, struct stat64* s, int flags), fd, path, fd, path, s, flags)
BY_PATH(int, statvfs64, (const char* path, struct statvfs64* s), AT_FDCWD, path, path, s)
BY_PATH(int, fstatvfs64, (int fd, struct statvfs64* s), fd, 0, fd, s)
BY_PATH(int, access, (const char* path, int mode), AT_FDCWD, path, path, mode)
BY_PATH(int, faccessat, (int fd, const char* path, int mode, int flags), fd, path, fd, path, mode, flags)
BY_PATH(ssize_t, readlink, (const char* path, char* to, size_t n), AT_FDCWD, path, path, to, n)
BY_PATH(ssize_t, readlinkat, (int fd, const char* path, char* to, size_t n), fd, path, fd, path, to, n)
BY_PATH(int, mkdir, (const char* path, mode_t mode), AT_FDCWD, path, path, mode)
BY_PATH(int, mkdirat, (int fd, const char* path, mode_t mode), fd, path, fd, path, mode)
BY_PATH(int, rmdir, (const char* path), AT_FDCWD, path, path)
BY_PATH(int, unlink, (const char* path), AT_FDCWD, path, path)
BY_PATH(int, unlinkat, (int fd, const char* path, int flags), fd, path, fd, path, flags)
BY_PATH(int, rename, (const char* from, const char* to), AT_FDCWD, from, from, to)
BY_PATH(int, renameat, (int a, const char* from, int b, const char* to), a, from, a, from, b, to)
BY_PATH(int, renameat2, (int a, const char* from, int b, const char* to, unsigned flags), a, from, a, from, b, to, flags)
BY_PATH(int, ftruncate64, (int fd, off64_t size), fd, 0, fd, size)
BY_PATH(off64_t, lseek64, (int fd, off64_t offset, int whence), fd, 0, fd, offset, whence)

// Counted, and not done: a disk's time.
int fsync(int fd) {
  FAIL(-1, fsync, fd, 0);
  return 0;
}

int fdatasync(int fd) {
  FAIL(-1, fdatasync, fd, 0);
  return 0;
}

int flock(int fd, int operation) {
  FAIL(-1, flock, fd, 0);
  return (int)syscall(SYS_flock, fd, operation);
}

// These two return the error.
int posix_fallocate64(int fd, off64_t offset, off64_t n) {
  const int found = fault("posix_fallocate64", fd, 0);
  return found > 0 ? found : REAL(posix_fallocate64)(fd, offset, n);
}

int posix_fadvise64(int fd, off64_t offset, off64_t n, int advice) {
  const int found = fault("posix_fadvise64", fd, 0);
  return found > 0 ? found : REAL(posix_fadvise64)(fd, offset, n, advice);
}

DIR* opendir(const char* path) {
  FAIL(NULL, opendir, AT_FDCWD, path);
  return REAL(opendir)(path);
}

struct dirent64* readdir64(DIR* directory) {
  FAIL(NULL, readdir64, dirfd(directory), 0);
  return REAL(readdir64)(directory);
}

// Calls that move bytes: a short one moves half of them.
#define MOVES(name, args, fd, n, ...)                     \
  ssize_t name args {                                     \
    const int found = fault(#name, fd, 0);                \
    if (found > 0) return errno = found, -1;              \
    if (found == kShort && n > 1) n /= 2;                 \
    return REAL(name)(__VA_ARGS__);                       \
  }

MOVES(read, (int fd, void* to, size_t n), fd, n, fd, to, n)
MOVES(write, (int fd, const void* from, size_t n), fd, n, fd, from, n)
MOVES(pread64, (int fd, void* to, size_t n, off64_t offset), fd, n, fd, to, n, offset)
MOVES(pread, (int fd, void* to, size_t n, off_t offset), fd, n, fd, to, n, offset)
MOVES(pwrite64, (int fd, const void* from, size_t n, off64_t offset), fd, n, fd, from, n, offset)
MOVES(sendfile64, (int to, int from, off64_t* offset, size_t n), from, n, to, from, offset, n)

// Of several pieces the half of the first.
#define MOVES_PIECES(name, fd)                                                                    \
  ssize_t name(int fd, const struct iovec* pieces, int n, off64_t offset, int flags) {            \
    const int found = fault(#name, fd, 0);                                                        \
    if (found > 0) return errno = found, -1;                                                      \
    struct iovec half = n > 0 ? pieces[0] : (struct iovec){0};                                    \
    if (found == kShort && half.iov_len > 1) {                                                    \
      half.iov_len /= 2;                                                                          \
      return REAL(name)(fd, &half, 1, offset, flags);                                             \
    }                                                                                             \
    return REAL(name)(fd, pieces, n, offset, flags);                                              \
  }

MOVES_PIECES(preadv64v2, fd)
MOVES_PIECES(pwritev64v2, fd)

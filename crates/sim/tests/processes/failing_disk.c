/* A disk that fails, and one that loses its power: preloaded into a program, this stands between it and the calls that
 * write, sync and read files below one folder. `failing_disk.rs` compiles it and speaks with it.
 *
 * FAILING_DISK_FOLDER    the data folder
 * FAILING_DISK_CONTROL   a file that holds `struct control`; whoever writes to it is obeyed at once
 * FAILING_DISK_UNSYNCED  a folder for what a loss of power takes back; nothing is kept where it is not set
 *
 * Undo records: each write is preceded by one that holds what it covers. They lie in files INODE.ROUND, and a sync that
 * has returned removes those of the rounds before it began. To lose power is to play what is left backwards. Names are
 * durable at once, which is less than a disk may do.
 *
 * Everything is passed on by system calls, never by the functions of the same names. */

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum fault { NONE, WRITE_FAILS, NO_SPACE, SHORT_WRITE, SYNC_FAILS, READ_FAILS, SYNC_LIES };
enum place { ELSEWHERE, LOG, STATE };

struct control {
    _Atomic uint64_t fault, place; /* of what; ELSEWHERE: of any place */
    _Atomic uint64_t at;           /* the call that fails, from 1 */
    _Atomic uint64_t lasting;      /* and all after it */
    _Atomic uint64_t calls, failed;
    char struck[200]; /* the file of the first call that failed */
};

struct undo {
    uint64_t offset, size_before, bytes; /* then so many bytes */
};

static struct control *control;
static char folder[PATH_MAX], unsynced[PATH_MAX];
static pthread_mutex_t undo_lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t undo_round;

__attribute__((constructor)) static void begin(void) {
    const char *data = getenv("FAILING_DISK_FOLDER"), *path = getenv("FAILING_DISK_CONTROL");
    const char *undo = getenv("FAILING_DISK_UNSYNCED");
    struct timespec now;
    if (!data || !path) return;
    snprintf(folder, sizeof folder, "%s", data);
    snprintf(unsynced, sizeof unsynced, "%s", undo ? undo : "");
    /* A later life of the program goes on behind an earlier one. */
    clock_gettime(CLOCK_MONOTONIC, &now);
    undo_round = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    int fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC, 0);
    if (fd < 0) return;
    void *shared = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    syscall(SYS_close, fd);
    if (shared != MAP_FAILED) control = shared;
}

static enum place place_of_path(const char *path) {
    size_t length = strlen(folder);
    if (strncmp(path, folder, length) || (path[length] && path[length] != '/')) return ELSEWHERE;
    path += length;
    return !strcmp(path, "/raft") || !strncmp(path, "/raft/", 6) ? LOG : STATE;
}

static enum place place_of_open(int fd, char path[PATH_MAX]) {
    char link[40];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    long bytes = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_MAX - 1);
    if (bytes < 0) return ELSEWHERE;
    path[bytes] = 0;
    return place_of_path(path);
}

static enum place place_of(int fd) {
    char path[PATH_MAX];
    return place_of_open(fd, path);
}

static int strikes(enum fault fault, int fd) {
    if (!control || atomic_load(&control->fault) != fault) return 0;
    char path[PATH_MAX];
    enum place place = place_of_open(fd, path), wanted = (enum place)atomic_load(&control->place);
    if (place == ELSEWHERE || (wanted != ELSEWHERE && wanted != place)) return 0;
    uint64_t call = atomic_fetch_add(&control->calls, 1) + 1, at = atomic_load(&control->at);
    if (call != at && !(call > at && atomic_load(&control->lasting))) return 0;
    if (call == at) strncpy(control->struck, path + strlen(folder), sizeof control->struck - 1);
    atomic_fetch_add(&control->failed, 1);
    return 1;
}

static int failed(int error) {
    errno = error;
    return -1;
}

/* What of `bytes` is to be written; -1 for none, with errno. */
static ssize_t allowed(int fd, size_t bytes) {
    if (strikes(WRITE_FAILS, fd)) return failed(EIO);
    if (strikes(NO_SPACE, fd)) return failed(ENOSPC);
    return (ssize_t)(bytes > 1 && strikes(SHORT_WRITE, fd) ? bytes / 2 : bytes);
}

/* Keeps what is about to be covered or cut off. The lock is held. */
static void remember(int fd, uint64_t offset, uint64_t covered) {
    struct stat stat;
    char path[PATH_MAX + 64];
    if (!control || !unsynced[0] || place_of(fd) == ELSEWHERE) return;
    if (fstat(fd, &stat) || !S_ISREG(stat.st_mode) || !stat.st_nlink) return;
    uint64_t size = (uint64_t)stat.st_size, left = offset < size ? size - offset : 0;
    struct undo undo = {offset, size, left < covered ? left : covered};
    unsigned char *record = malloc(sizeof undo + undo.bytes);
    if (!record) abort();
    memcpy(record, &undo, sizeof undo);
    for (uint64_t done = 0; done < undo.bytes;) {
        /* The file may be open for writing only. */
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        int readable = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);
        long got = syscall(SYS_pread64, readable, record + sizeof undo + done, undo.bytes - done, offset + done);
        syscall(SYS_close, readable);
        if (got <= 0) abort();
        done += (uint64_t)got;
    }
    snprintf(path, sizeof path, "%s/%llu.%020llu", unsynced, (unsigned long long)stat.st_ino,
             (unsigned long long)undo_round);
    int out = (int)syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (syscall(SYS_write, out, record, sizeof undo + undo.bytes) != (long)(sizeof undo + undo.bytes)) abort();
    syscall(SYS_close, out);
    free(record);
}

/* Forgets what was remembered of a file up to a round. */
static void forget(ino_t inode, uint64_t round) {
    char prefix[32], path[PATH_MAX + 300];
    if (!unsynced[0]) return;
    snprintf(prefix, sizeof prefix, "%llu.", (unsigned long long)inode);
    DIR *names = opendir(unsynced);
    if (!names) return;
    for (struct dirent *name; (name = readdir(names));) {
        if (strncmp(name->d_name, prefix, strlen(prefix))) continue;
        if (strtoull(name->d_name + strlen(prefix), NULL, 10) > round) continue;
        snprintf(path, sizeof path, "%s/%s", unsynced, name->d_name);
        syscall(SYS_unlinkat, AT_FDCWD, path, 0);
    }
    closedir(names);
}

static ssize_t write_at(int fd, const void *bytes, size_t count, off_t offset) {
    ssize_t most = allowed(fd, count);
    if (most < 0) return most;
    if (!unsynced[0]) return syscall(SYS_pwrite64, fd, bytes, most, offset);
    pthread_mutex_lock(&undo_lock);
    remember(fd, (uint64_t)offset, (uint64_t)most);
    ssize_t done = syscall(SYS_pwrite64, fd, bytes, most, offset);
    int error = errno;
    pthread_mutex_unlock(&undo_lock);
    errno = error;
    return done;
}

ssize_t pwrite(int fd, const void *bytes, size_t count, off_t offset) { return write_at(fd, bytes, count, offset); }
ssize_t pwrite64(int fd, const void *bytes, size_t count, off_t offset) { return write_at(fd, bytes, count, offset); }

ssize_t write(int fd, const void *bytes, size_t count) {
    ssize_t most = allowed(fd, count);
    if (most < 0) return most;
    if (!unsynced[0]) return syscall(SYS_write, fd, bytes, most);
    pthread_mutex_lock(&undo_lock);
    int appends = (int)syscall(SYS_fcntl, fd, F_GETFL) & O_APPEND;
    long at = syscall(SYS_lseek, fd, 0, SEEK_CUR);
    struct stat stat;
    if (at >= 0 && appends && !fstat(fd, &stat)) at = stat.st_size;
    if (at >= 0) remember(fd, (uint64_t)at, (uint64_t)most);
    /* What is no file may take its time. */
    if (at < 0) pthread_mutex_unlock(&undo_lock);
    ssize_t done = syscall(SYS_write, fd, bytes, most);
    int error = errno;
    if (at >= 0) pthread_mutex_unlock(&undo_lock);
    errno = error;
    return done;
}

static int cut(int fd, off_t length) {
    if (strikes(WRITE_FAILS, fd)) return failed(EIO);
    if (strikes(NO_SPACE, fd)) return failed(ENOSPC);
    pthread_mutex_lock(&undo_lock);
    remember(fd, (uint64_t)length, UINT64_MAX);
    int done = (int)syscall(SYS_ftruncate, fd, length);
    int error = errno;
    pthread_mutex_unlock(&undo_lock);
    errno = error;
    return done;
}

int ftruncate(int fd, off_t length) { return cut(fd, length); }
int ftruncate64(int fd, off_t length) { return cut(fd, length); }

static int reserve(int fd, int mode, off_t offset, off_t length) {
    if (strikes(NO_SPACE, fd)) return failed(ENOSPC);
    return (int)syscall(SYS_fallocate, fd, mode, offset, length);
}

int fallocate(int fd, int mode, off_t offset, off_t length) { return reserve(fd, mode, offset, length); }
int fallocate64(int fd, int mode, off_t offset, off_t length) { return reserve(fd, mode, offset, length); }
int posix_fallocate(int fd, off_t offset, off_t length) { return reserve(fd, 0, offset, length) ? errno : 0; }
int posix_fallocate64(int fd, off_t offset, off_t length) { return reserve(fd, 0, offset, length) ? errno : 0; }

static int make_durable(int fd, long call) {
    if (strikes(SYNC_FAILS, fd)) return failed(EIO);
    if (strikes(SYNC_LIES, fd)) return 0;
    pthread_mutex_lock(&undo_lock);
    uint64_t round = undo_round++;
    pthread_mutex_unlock(&undo_lock);
    int done = (int)syscall(call, fd);
    struct stat stat;
    if (!done && unsynced[0] && !fstat(fd, &stat)) {
        forget(stat.st_ino, round);
        errno = 0;
    }
    return done;
}

int fsync(int fd) { return make_durable(fd, SYS_fsync); }
int fdatasync(int fd) { return make_durable(fd, SYS_fdatasync); }

int sync_file_range(int fd, off_t offset, off_t bytes, unsigned flags) {
    if (strikes(SYNC_FAILS, fd)) return failed(EIO);
    return (int)syscall(SYS_sync_file_range, fd, offset, bytes, flags);
}

ssize_t read(int fd, void *into, size_t count) {
    return strikes(READ_FAILS, fd) ? failed(EIO) : syscall(SYS_read, fd, into, count);
}

static ssize_t read_at(int fd, void *into, size_t count, off_t offset) {
    return strikes(READ_FAILS, fd) ? failed(EIO) : syscall(SYS_pread64, fd, into, count, offset);
}

ssize_t pread(int fd, void *into, size_t count, off_t offset) { return read_at(fd, into, count, offset); }
ssize_t pread64(int fd, void *into, size_t count, off_t offset) { return read_at(fd, into, count, offset); }

/* What is emptied, removed or replaced has nothing to take back: its inode may soon be another file's. */
static int opened(int fd, int flags) {
    struct stat stat;
    if (fd >= 0 && flags & O_TRUNC && unsynced[0] && !fstat(fd, &stat)) forget(stat.st_ino, UINT64_MAX);
    return fd;
}

static int open_at(int dir, const char *path, int flags, va_list rest) {
    int mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, int) : 0;
    return opened((int)syscall(SYS_openat, dir, path, flags, mode), flags);
}

#define OPENS(call, arguments, dir)                                                                                    \
    int call arguments {                                                                                               \
        va_list rest;                                                                                                  \
        va_start(rest, flags);                                                                                         \
        int fd = open_at(dir, path, flags, rest);                                                                      \
        va_end(rest);                                                                                                  \
        return fd;                                                                                                     \
    }

OPENS(open, (const char *path, int flags, ...), AT_FDCWD)
OPENS(open64, (const char *path, int flags, ...), AT_FDCWD)
OPENS(openat, (int dir, const char *path, int flags, ...), dir)
OPENS(openat64, (int dir, const char *path, int flags, ...), dir)

static int gone(int dir, const char *path, int flags) {
    struct stat stat;
    int last = unsynced[0] && !fstatat(dir, path, &stat, AT_SYMLINK_NOFOLLOW) && stat.st_nlink == 1;
    int done = (int)syscall(SYS_unlinkat, dir, path, flags);
    if (!done && last) forget(stat.st_ino, UINT64_MAX);
    return done;
}

int unlink(const char *path) { return gone(AT_FDCWD, path, 0); }
int unlinkat(int dir, const char *path, int flags) { return gone(dir, path, flags); }

int rename(const char *from, const char *to) {
    struct stat stat;
    int replaced = unsynced[0] && !fstatat(AT_FDCWD, to, &stat, AT_SYMLINK_NOFOLLOW) && stat.st_nlink == 1;
    int done = (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
    if (!done && replaced) forget(stat.st_ino, UINT64_MAX);
    return done;
}

/* A disk that has no space left says so when it is asked. */
#define ROOM(name, kind)                                                                                               \
    int name(const char *path, struct kind *found) {                                                                   \
        int (*asked)(const char *, struct kind *) = (int (*)(const char *, struct kind *))dlsym(RTLD_NEXT, #name);     \
        int done = asked(path, found);                                                                                 \
        int full = control && atomic_load(&control->fault) == NO_SPACE && atomic_load(&control->lasting) &&            \
                   atomic_load(&control->failed);                                                                      \
        if (!done && full && place_of_path(path) != ELSEWHERE) found->f_bavail = found->f_bfree = 0;                   \
        return done;                                                                                                   \
    }

ROOM(statvfs, statvfs)
ROOM(statvfs64, statvfs64)

/* Notes every write and sync of files named data.mdb, in the order in which they happen, in the file that
 * POWER_LOSS_RECORD names. To be preloaded; a process that must not run unrecorded is ended (status 86) when noting fails.
 *
 * A record is a header (struct note, host byte order) and, for writes, the bytes. Kinds:
 *   W  a write of `length` bytes at `offset` is about to happen; number `sequence`
 *   D  write `sequence` is durable: its descriptor was opened with O_DSYNC or O_SYNC, and the call has returned
 *   R  write `sequence` stored only `length` bytes (0 after an error)
 *   S  a sync of the file has returned: every write noted before is durable
 *   T  the file was cut or grown to `length` bytes
 *   M  the file was mapped for shared writing: what is stored so can't be recorded
 *   N  a mark of the process itself, `sequence` is its value
 * A sync is noted when it has returned and before its caller knows: nothing that relied on it can have happened earlier.
 * One mutex covers each call and its note, so their orders agree.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

struct note {
    char kind;
    char padding[7];
    uint64_t sequence;
    uint64_t offset;
    uint64_t length;
};

enum { STATUS_CANNOT_RECORD = 86, PIECES_MAX = 1024 };

static pthread_mutex_t order = PTHREAD_MUTEX_INITIALIZER;
static int record_descriptor = -1;
static uint64_t last_sequence = 0;

static void give_up(const char *why) {
    char text[200];
    int length = snprintf(text, sizeof text, "power-loss recorder: %s: %s\n", why, strerror(errno));
    syscall(SYS_write, 2, text, (size_t)length);
    _exit(STATUS_CANNOT_RECORD);
}

__attribute__((constructor)) static void open_record(void) {
    const char *path = getenv("POWER_LOSS_RECORD");
    if (!path) return;
    /* A descriptor far above those that programs count on getting. */
    int descriptor = (int)syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (descriptor < 0) give_up(path);
    record_descriptor = fcntl(descriptor, F_DUPFD_CLOEXEC, 500);
    if (record_descriptor < 0) give_up(path);
    close(descriptor);
}

/* Only the process that was asked for records: not those that it starts. */
static void forget_in_child(void) { record_descriptor = -1; }
__attribute__((constructor)) static void watch_forks(void) { pthread_atfork(NULL, NULL, forget_in_child); }

static int is_recorded(int descriptor) {
    static const char name[] = "/data.mdb";
    char link[40], target[4096];
    if (record_descriptor < 0 || descriptor < 0) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    int saved = errno;
    ssize_t length = readlink(link, target, sizeof target);
    errno = saved;
    size_t tail = sizeof name - 1;
    return length >= (ssize_t)tail && memcmp(target + length - tail, name, tail) == 0;
}

static int is_synchronous(int descriptor) {
    int flags = fcntl(descriptor, F_GETFL);
    return flags >= 0 && (flags & (O_DSYNC | O_SYNC)) != 0;
}

static void append(struct iovec *pieces, int count) {
    size_t wanted = 0;
    for (int i = 0; i < count; i++) wanted += pieces[i].iov_len;
    ssize_t stored = syscall(SYS_writev, record_descriptor, pieces, count);
    if (stored != (ssize_t)wanted) give_up("the record can't be written");
}

static void note(char kind, uint64_t sequence, uint64_t offset, uint64_t length) {
    struct note header = {.kind = kind, .sequence = sequence, .offset = offset, .length = length};
    struct iovec piece = {&header, sizeof header};
    append(&piece, 1);
}

static uint64_t note_write(off_t offset, const struct iovec *data, int count) {
    struct iovec pieces[PIECES_MAX];
    struct note header = {.kind = 'W', .sequence = ++last_sequence, .offset = (uint64_t)offset};
    if (count + 1 > PIECES_MAX) give_up("a write has too many pieces");
    for (int i = 0; i < count; i++) header.length += data[i].iov_len;
    pieces[0] = (struct iovec){&header, sizeof header};
    memcpy(pieces + 1, data, (size_t)count * sizeof *data);
    append(pieces, count + 1);
    return last_sequence;
}

static ssize_t written(int descriptor, uint64_t sequence, ssize_t stored, size_t wanted) {
    int saved = errno;
    if (stored != (ssize_t)wanted) note('R', sequence, 0, stored < 0 ? 0 : (uint64_t)stored);
    if (stored > 0 && is_synchronous(descriptor)) note('D', sequence, 0, (uint64_t)stored);
    errno = saved;
    return stored;
}

static size_t total(const struct iovec *data, int count) {
    size_t sum = 0;
    for (int i = 0; i < count; i++) sum += data[i].iov_len;
    return sum;
}

/* `call` is the real write; `at` is its offset. */
#define RECORDED_WRITE(descriptor, at, data, count, call)                                        \
    do {                                                                                         \
        if (!is_recorded(descriptor)) return (call);                                             \
        pthread_mutex_lock(&order);                                                              \
        uint64_t sequence = note_write((at), (data), (count));                                   \
        ssize_t stored = written((descriptor), sequence, (call), total((data), (count)));        \
        pthread_mutex_unlock(&order);                                                            \
        return stored;                                                                           \
    } while (0)

#define REAL(type, name, ...)                                           \
    static type (*real)(__VA_ARGS__);                                   \
    if (!real) real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

ssize_t pwrite(int descriptor, const void *bytes, size_t length, off_t offset) {
    REAL(ssize_t, pwrite, int, const void *, size_t, off_t);
    struct iovec data = {(void *)bytes, length};
    RECORDED_WRITE(descriptor, offset, &data, 1, real(descriptor, bytes, length, offset));
}

ssize_t pwrite64(int descriptor, const void *bytes, size_t length, off64_t offset) {
    REAL(ssize_t, pwrite64, int, const void *, size_t, off64_t);
    struct iovec data = {(void *)bytes, length};
    RECORDED_WRITE(descriptor, offset, &data, 1, real(descriptor, bytes, length, offset));
}

ssize_t pwritev(int descriptor, const struct iovec *data, int count, off_t offset) {
    REAL(ssize_t, pwritev, int, const struct iovec *, int, off_t);
    RECORDED_WRITE(descriptor, offset, data, count, real(descriptor, data, count, offset));
}

ssize_t pwritev64(int descriptor, const struct iovec *data, int count, off64_t offset) {
    REAL(ssize_t, pwritev64, int, const struct iovec *, int, off64_t);
    RECORDED_WRITE(descriptor, offset, data, count, real(descriptor, data, count, offset));
}

ssize_t write(int descriptor, const void *bytes, size_t length) {
    REAL(ssize_t, write, int, const void *, size_t);
    struct iovec data = {(void *)bytes, length};
    RECORDED_WRITE(descriptor, lseek(descriptor, 0, SEEK_CUR), &data, 1, real(descriptor, bytes, length));
}

ssize_t writev(int descriptor, const struct iovec *data, int count) {
    REAL(ssize_t, writev, int, const struct iovec *, int);
    RECORDED_WRITE(descriptor, lseek(descriptor, 0, SEEK_CUR), data, count, real(descriptor, data, count));
}

#define RECORDED_SYNC(descriptor, call)                  \
    do {                                                 \
        if (!is_recorded(descriptor)) return (call);     \
        pthread_mutex_lock(&order);                      \
        int failed = (call);                             \
        if (!failed) note('S', 0, 0, 0);                 \
        pthread_mutex_unlock(&order);                    \
        return failed;                                   \
    } while (0)

int fsync(int descriptor) {
    REAL(int, fsync, int);
    RECORDED_SYNC(descriptor, real(descriptor));
}

int fdatasync(int descriptor) {
    REAL(int, fdatasync, int);
    RECORDED_SYNC(descriptor, real(descriptor));
}

/* sync_file_range and msync promise less than LMDB needs (no file size, or only of a map): they make nothing durable here. */

static int cut(int descriptor, off64_t length, int (*real)(int, off64_t)) {
    if (!is_recorded(descriptor)) return real(descriptor, length);
    pthread_mutex_lock(&order);
    int failed = real(descriptor, length);
    if (!failed) note('T', 0, 0, (uint64_t)length);
    pthread_mutex_unlock(&order);
    return failed;
}

int ftruncate(int descriptor, off_t length) {
    REAL(int, ftruncate, int, off64_t);
    return cut(descriptor, length, real);
}

int ftruncate64(int descriptor, off64_t length) {
    REAL(int, ftruncate64, int, off64_t);
    return cut(descriptor, length, real);
}

static void watch_map(int protection, int flags, int descriptor) {
    if ((protection & PROT_WRITE) && (flags & MAP_SHARED) && is_recorded(descriptor)) note('M', 0, 0, 0);
}

void *mmap(void *address, size_t length, int protection, int flags, int descriptor, off_t offset) {
    REAL(void *, mmap, void *, size_t, int, int, int, off_t);
    watch_map(protection, flags, descriptor);
    return real(address, length, protection, flags, descriptor, offset);
}

void *mmap64(void *address, size_t length, int protection, int flags, int descriptor, off64_t offset) {
    REAL(void *, mmap64, void *, size_t, int, int, int, off64_t);
    watch_map(protection, flags, descriptor);
    return real(address, length, protection, flags, descriptor, offset);
}

/* For tests: put a mark into the record. */
void power_loss_mark(uint64_t value) {
    if (record_descriptor < 0) return;
    pthread_mutex_lock(&order);
    note('N', value, 0, 0);
    pthread_mutex_unlock(&order);
}

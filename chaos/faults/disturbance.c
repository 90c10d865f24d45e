/* LD_PRELOAD shim: disks that sync late or say that they are full, and a wall clock that is wrong.
 *
 * The file that $DISTURBANCE names holds three numbers of eight bytes, which may change at any time: microseconds that
 * every sync takes longer, nanoseconds that the wall clock is ahead, and 1 where the file system says that no space is
 * left. The file is mapped at the first call, so that asking costs nothing. Monotonic clocks stay right, as they do on
 * a machine whose clock is set. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/statvfs.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { SYNC_DELAY_US, CLOCK_AHEAD_NS, DISK_FULL, NUMBERS };
static const int64_t NOTHING[NUMBERS];

static const volatile int64_t *disturbance(void) {
    static const volatile int64_t *mapped;
    if (mapped != NULL) return mapped;
    const char *path = getenv("DISTURBANCE");
    int file = path == NULL ? -1 : open(path, O_RDONLY | O_CLOEXEC);
    void *found = file < 0 ? MAP_FAILED : mmap(NULL, sizeof NOTHING, PROT_READ, MAP_SHARED, file, 0);
    if (file >= 0) close(file);
    mapped = found == MAP_FAILED ? NOTHING : found;
    return mapped;
}

static void wait_for_disk(void) {
    int64_t us = disturbance()[SYNC_DELAY_US];
    if (us > 0) usleep((useconds_t)us);
}

#define SLOW(name)                                                  \
    int name(int descriptor) {                                      \
        static int (*real)(int);                                    \
        if (real == NULL) real = (int (*)(int))dlsym(RTLD_NEXT, #name); \
        wait_for_disk();                                            \
        return real(descriptor);                                    \
    }

SLOW(fsync)
SLOW(fdatasync)

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (real == NULL) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(clock, now);
    int64_t ahead = disturbance()[CLOCK_AHEAD_NS];
    if (failed || ahead == 0 || (clock != CLOCK_REALTIME && clock != CLOCK_REALTIME_COARSE)) return failed;
    int64_t sum = (int64_t)now->tv_sec * 1000000000 + now->tv_nsec + ahead;
    now->tv_sec = sum / 1000000000;
    now->tv_nsec = sum % 1000000000;
    return 0;
}

time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out != NULL) *out = now.tv_sec;
    return now.tv_sec;
}

int gettimeofday(struct timeval *restrict out, void *restrict zone) {
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    out->tv_sec = now.tv_sec;
    out->tv_usec = now.tv_nsec / 1000;
    return 0;
}

#define FULL(name, shape)                                           \
    int name(const char *path, struct shape *found) {               \
        static int (*real)(const char *, struct shape *);           \
        if (real == NULL) real = (int (*)(const char *, struct shape *))dlsym(RTLD_NEXT, #name); \
        int failed = real(path, found);                             \
        if (!failed && disturbance()[DISK_FULL]) found->f_bfree = found->f_bavail = 0; \
        return failed;                                              \
    }

FULL(statvfs, statvfs)
FULL(statvfs64, statvfs64)

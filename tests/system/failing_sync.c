/* LD_PRELOAD shim: once the file named by FAIL_SYNC_WHEN exists, every fdatasync and fsync fails with EIO, as on a
 * disk that is dying. Nothing is passed on to the real call. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

static int failing(void) {
    const char *path = getenv("FAIL_SYNC_WHEN");
    return path != NULL && access(path, F_OK) == 0;
}

#define GUARDED(name)                                             \
    int name(int descriptor) {                                    \
        static int (*real)(int);                                  \
        if (failing()) {                                          \
            errno = EIO;                                          \
            return -1;                                            \
        }                                                         \
        if (real == NULL) real = (int (*)(int))dlsym(RTLD_NEXT, #name); \
        return real(descriptor);                                  \
    }

GUARDED(fsync)
GUARDED(fdatasync)

/* Preloaded: every sync fails with EIO while the file that FAILING_SYNC names is there; where FAILING_SYNC_OF names
   the end of a path, only syncs of such files. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int is_meant(int descriptor) {
    const char *end = getenv("FAILING_SYNC_OF");
    char link[64], path[4096];
    if (end == NULL) {
        return 1;
    }
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path);
    size_t wanted = strlen(end);
    return length >= (ssize_t)wanted && memcmp(path + length - wanted, end, wanted) == 0;
}

static int sync_or_fail(const char *name, int descriptor) {
    const char *flag = getenv("FAILING_SYNC");
    if (flag != NULL && access(flag, F_OK) == 0 && is_meant(descriptor)) {
        errno = EIO;
        return -1;
    }
    return ((int (*)(int))dlsym(RTLD_NEXT, name))(descriptor);
}

int fsync(int descriptor) { return sync_or_fail("fsync", descriptor); }

int fdatasync(int descriptor) { return sync_or_fail("fdatasync", descriptor); }

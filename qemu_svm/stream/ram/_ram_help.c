/* Functions for both reading and copying of files. */
#define _GNU_SOURCE
#include "_ram_file.h"

#include <sched.h>
#include <signal.h>
#include <unistd.h>

Py_ssize_t
read_full(int fd, unsigned char *to, Py_ssize_t size, off_t at)
{
    Py_ssize_t have = 0, got = 1;

    while (have < size && got > 0) {
        got = pread(fd, to + have, (size_t)(size - have), at + have);
        have += got > 0 ? got : 0;
    }
    return have;
}

int
start_help(void *(*work)(void *), void *argument, pthread_t *thread)
{
    cpu_set_t processors;
    sigset_t all, before;
    int started;

    if (sched_getaffinity(0, sizeof processors, &processors) == 0 && CPU_COUNT(&processors) < 2)
        return 0;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    started = pthread_create(thread, NULL, work, argument) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return started;
}

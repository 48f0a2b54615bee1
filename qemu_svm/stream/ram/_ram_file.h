/*
 * Streams that lie in a file: their pages looked at (_ram_ahead.c), or copied to another
 * file (_ram_copy.c), without a step in Python for each window of input.
 *
 * Nothing is reported from there.  Where a file does not give or take what it should,
 * the work ends in front of that; Python goes on there, meets it, and says so.
 */
#ifndef SVMSTREAM_RAM_FILE_H
#define SVMSTREAM_RAM_FILE_H

#include "_ram.h"

#include <pthread.h>
#include <sys/types.h>

/* Read as much as there is, up to size bytes. */
Py_ssize_t read_full(int fd, unsigned char *to, Py_ssize_t size, off_t at);

/* Start a second thread, if there is a second processor; signals are not for it. */
int start_help(void *(*work)(void *), void *argument, pthread_t *thread);

#endif

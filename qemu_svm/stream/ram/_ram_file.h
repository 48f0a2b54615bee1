/*
 * Streams in files: their records scanned (_ram_ahead.c), or their pages copied to
 * another file (_ram_copy.c), without a step in Python for each window of input.
 *
 * Errors are not reported from there.  If a read or write fails, the work ends before
 * it; Python continues at that point, gets the same error, and reports it.
 */
#ifndef SVMSTREAM_RAM_FILE_H
#define SVMSTREAM_RAM_FILE_H

#include "_ram.h"

#include <pthread.h>
#include <sys/types.h>

/* Read up to size bytes; fewer only at the end of the file or on an error. */
Py_ssize_t read_full(int fd, unsigned char *to, Py_ssize_t size, off_t at);

/* Start a second thread, if there is a second processor; it gets no signals. */
int start_help(void *(*work)(void *), void *argument, pthread_t *thread);

#endif

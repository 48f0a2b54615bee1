/* Records of a file, scanned window by window while the next windows are read. */
#include "_ram_file.h"

#include <stdlib.h>
#include <string.h>

enum {
    SLOTS = 4,                                      /* windows in memory */
    ALONE = 2,                                      /* windows before a second thread helps */
    MOST_WINDOWS = 128,                             /* of one call, which Ctrl-C waits for */
};

/*
 * Consecutive windows of a file, each a little longer than a step so that a record
 * which begins in the step also ends in the window.  A thread that waits for a window
 * reads the next unclaimed one, so two threads share the work and one thread does it
 * all.
 */
struct ahead {
    int fd;
    off_t start;
    Py_ssize_t step, size;
    unsigned char *slots;
    Py_ssize_t got[SLOTS];
    uint64_t ready[SLOTS];                          /* number of its window, plus 1 */
    uint64_t claimed, used;                         /* windows read or being read; windows done with */
    int stop;
    pthread_mutex_t lock;
    pthread_cond_t changed;
};

/* Read one more window, or wait until something changes; the lock is held. */
static void
read_one(struct ahead *ahead)
{
    const uint64_t number = ahead->claimed;
    const uint64_t slot = number % SLOTS;

    if (number - ahead->used >= SLOTS) {
        pthread_cond_wait(&ahead->changed, &ahead->lock);
        return;
    }
    ahead->claimed++;
    pthread_mutex_unlock(&ahead->lock);
    Py_ssize_t got = read_full(ahead->fd, ahead->slots + slot * (size_t)ahead->size, ahead->size,
                               ahead->start + (off_t)number * ahead->step);
    pthread_mutex_lock(&ahead->lock);
    ahead->got[slot] = got;
    ahead->ready[slot] = number + 1;
    pthread_cond_broadcast(&ahead->changed);
}

static void *
help(void *argument)
{
    struct ahead *ahead = argument;

    pthread_mutex_lock(&ahead->lock);
    while (!ahead->stop)
        read_one(ahead);
    pthread_mutex_unlock(&ahead->lock);
    return NULL;
}

static const unsigned char *
wait_for(struct ahead *ahead, uint64_t number, Py_ssize_t *size)
{
    const uint64_t slot = number % SLOTS;

    pthread_mutex_lock(&ahead->lock);
    ahead->used = number;
    pthread_cond_broadcast(&ahead->changed);
    while (ahead->ready[slot] != number + 1)
        read_one(ahead);
    *size = ahead->got[slot];
    pthread_mutex_unlock(&ahead->lock);
    return ahead->slots + slot * (size_t)ahead->size;
}

/* Join two rows that are separate only because a window ended. */
static void
join(struct rows *rows, Py_ssize_t first, uint64_t page_size)
{
    const uint64_t kind = rows->where[first] & KIND;
    const uint64_t before = rows->count[first - 1];
    const uint64_t stride = kind == KIND_PAGE ? WORD + page_size : HEAD;

    if (kind == KIND_XBZRLE ||
        rows->where[first] != rows->where[first - 1] + (before << KIND_BITS) ||
        rows->data[first] != rows->data[first - 1] + before * stride)
        return;
    rows->count[first - 1] += rows->count[first];
    rows->used--;
    size_t rest = (size_t)(rows->used - first);
    memmove(rows->data + first, rows->data + first + 1, rest * sizeof *rows->data);
    memmove(rows->where + first, rows->where + first + 1, rest * sizeof *rows->where);
    memmove(rows->count + first, rows->count + first + 1, rest * sizeof *rows->count);
}

/* Scan window by window; return the offset after the last row. */
static uint64_t
scan_windows(struct ahead *ahead, uint64_t offset, struct rows *rows, const struct block *block)
{
    struct window window = {.at = 0, .base = offset};
    pthread_t helper;
    int helped = 0;

    for (uint64_t number = 0; number < MOST_WINDOWS; number++) {
        const Py_ssize_t first = rows->used;

        if (number == ALONE)
            helped = start_help(help, ahead, &helper);
        window.bytes = wait_for(ahead, number, &window.size);
        scan_window(&window, rows, block);
        if (first && rows->used > first)
            join(rows, first, block->page_size);
        if (window.at < ahead->step)
            break;
        window.at -= ahead->step;
        window.base += (uint64_t)ahead->step;
    }
    if (helped) {
        pthread_mutex_lock(&ahead->lock);
        ahead->stop = 1;
        pthread_cond_broadcast(&ahead->changed);
        pthread_mutex_unlock(&ahead->lock);
        pthread_join(helper, NULL);
    }
    return window.base + (uint64_t)window.at;
}

PyObject *
ram_scan_file(PyObject *module, PyObject *args)
{
    Py_buffer data, where, count;
    struct ahead ahead = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
    struct rows rows;
    struct block block;
    unsigned long long offset, page_size, top;
    long long start;
    PyObject *result = NULL;

    (void)module;
    if (!PyArg_ParseTuple(args, "iLnK(KK)w*w*w*:scan_file", &ahead.fd, &start, &ahead.step,
                          &offset, &page_size, &top, &data, &where, &count))
        return NULL;
    if (start < 0 || start >= 1LL << 62 || !good_page_size(page_size) ||
        ahead.step < 2 * (Py_ssize_t)page_size + HEAD || ahead.step > 1 << 28) {
        PyErr_SetString(PyExc_ValueError, "invalid offset, page size or step");
    } else if (rows_of(&data, &where, &count, &rows)) {
        block = (struct block){page_size, top};
        ahead.start = start;
        ahead.size = ahead.step + DELTA_HEAD + (Py_ssize_t)page_size;
        ahead.slots = malloc(SLOTS * (size_t)ahead.size);
        if (ahead.slots == NULL) {
            PyErr_NoMemory();
        } else {
            Py_BEGIN_ALLOW_THREADS
            offset = scan_windows(&ahead, offset, &rows, &block);
            free(ahead.slots);
            Py_END_ALLOW_THREADS
            result = ram_found(offset, &rows);
        }
    }
    PyBuffer_Release(&data);
    PyBuffer_Release(&where);
    PyBuffer_Release(&count);
    return result;
}

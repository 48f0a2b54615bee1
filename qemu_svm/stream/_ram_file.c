/*
 * The same for a stream that lies in a file: its pages looked at, or copied to
 * another file, without a step in Python for each window of input.
 *
 * Nothing is reported from here.  Where a file does not give or take what it should,
 * the work ends in front of that; Python goes on there, meets it, and says so.
 */
#define _GNU_SOURCE
#include "_ram.h"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    SLOTS = 4,                                      /* windows in memory */
    ALONE = 2,                                      /* windows before a second thread helps */
    MOST_WINDOWS = 128,                             /* of one call: Ctrl-C waits for it */
    PIECE = 256 << 10,                              /* bytes that are copied at a time */
    NEAR = 64 << 10,                                /* bytes that are read rather than passed over */
    RESERVED = 64 << 10,                            /* from so many on, ask for room at once */
    SHARED = 1 << 20,                               /* from so many on, a second thread copies too */
};
#define MOST_PAGES ((uint64_t)1 << 38)              /* of a file; all offsets fit in 63 bits */

/* As much as there is, up to size bytes. */
static Py_ssize_t
read_full(int fd, unsigned char *to, Py_ssize_t size, off_t at)
{
    Py_ssize_t have = 0, got = 1;

    while (have < size && got > 0) {
        got = pread(fd, to + have, (size_t)(size - have), at + have);
        have += got > 0 ? got : 0;
    }
    return have;
}

/*
 * Windows of a file that follow one another, each a little longer than a step so that
 * a record which begins in it also ends in it.  Whoever waits for a window reads the
 * next one that nobody reads, so two threads share the work, and one does it all.
 */
struct ahead {
    int fd;
    off_t start;
    Py_ssize_t step, size;
    unsigned char *slots;
    Py_ssize_t got[SLOTS];
    uint64_t ready[SLOTS];                          /* number of its window and 1 */
    uint64_t claimed, used;                         /* windows that are read or were; left behind */
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

/* Start a second thread, if there is a second processor; signals are not for it. */
static int
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

/* Make one of two rows, if the window's end alone parts them. */
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

/* Scan window by window; the offset behind the last row. */
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
        PyErr_SetString(PyExc_ValueError, "no such place, page size or step");
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
            result = Py_BuildValue("Kn(nnnn)", offset, rows.used, rows.pages[0],
                                   rows.pages[KIND_ZERO], rows.pages[KIND_PAGE],
                                   rows.pages[KIND_XBZRLE]);
        }
    }
    PyBuffer_Release(&data);
    PyBuffer_Release(&where);
    PyBuffer_Release(&count);
    return result;
}

/*
 * Runs of whole pages, copied to where they stand in a block.  They are of one sweep,
 * so no page is in two of them, and it does not matter in which order it is done.
 */
struct input {
    int64_t fd, start;                              /* fd < 0: not in a file */
};

struct copy {
    const struct input *inputs;
    Py_ssize_t many;                                /* inputs */
    int to;
    uint64_t first, length;                         /* pages of the block in the file */
    Py_ssize_t page_size;
    unsigned char *written;                         /* a byte a page */
    const uint64_t *where, *data;
    const uint32_t *count;
};

/* Input that was read ahead, as far as it has not been used. */
struct piece {
    unsigned char *bytes;
    const struct input *input;
    off_t from, at, end;                            /* of bytes[0], of what is left, its end */
};

/* Part of the runs; what one thread does. */
struct part {
    const struct copy *copy;
    Py_ssize_t row, end;
    struct piece piece;
};

static Py_ssize_t
distance(const struct copy *copy, Py_ssize_t row)
{
    const int placed = (copy->where[row] & KIND) == KIND_PLACED;

    return placed ? copy->page_size : copy->page_size + WORD;
}

/* Whether a run can be copied (1), needs nothing (2), or is Python's (0). */
static int
simple(const struct copy *copy, Py_ssize_t row)
{
    const uint64_t page = (copy->where[row] >> KIND_BITS) - copy->first;
    const uint64_t count = copy->count[row], input = copy->data[row] >> INPUT_SHIFT;

    if (copy->where[row] >> KIND_BITS < copy->first || page > copy->length ||
        count > copy->length - page)
        return 0;
    switch (copy->where[row] & KIND) {
    case KIND_PAGE:
    case KIND_PLACED:
        return input < (uint64_t)copy->many && copy->inputs[input].fd >= 0;
    case KIND_ZERO:
    case KIND_ABSENT:
        return memchr(copy->written + page, 1, count) == NULL ? 2 : 0;
    default:
        return 0;
    }
}

/* Bytes of an input, and what is near behind them; NULL where there are less. */
static unsigned char *
take(struct piece *piece, const struct input *input, off_t at, Py_ssize_t size)
{
    const int same = piece->input == input && at >= piece->at;

    if (!same || at + size > piece->end) {
        const int near = same && at <= piece->end + NEAR;

        piece->input = input;
        piece->from = at;
        piece->end = at + read_full((int)input->fd, piece->bytes, near ? PIECE : size,
                                    (off_t)input->start + at);
    }
    piece->at = at + size;
    return piece->at <= piece->end ? piece->bytes + (at - piece->from) : NULL;
}

static int
copy_row(const struct copy *copy, Py_ssize_t row, struct piece *piece)
{
    const Py_ssize_t size = copy->page_size, stride = distance(copy, row);
    const Py_ssize_t batch = (PIECE - size) / stride + 1;
    const struct input *input = copy->inputs + (copy->data[row] >> INPUT_SHIFT);
    Py_ssize_t left = copy->count[row];
    off_t at = (off_t)(copy->data[row] & (((uint64_t)1 << INPUT_SHIFT) - 1));
    off_t place = (off_t)((copy->where[row] >> KIND_BITS) - copy->first) * size;

    /* One request for room is cheaper than one for each page; no file system need have it. */
    if (left * size >= RESERVED)
        (void)!fallocate(copy->to, 0, place, (off_t)left * size);
    while (left) {
        const Py_ssize_t pages = left < batch ? left : batch;
        unsigned char *bytes = take(piece, input, at, (pages - 1) * stride + size);

        if (bytes == NULL)
            return 0;
        for (Py_ssize_t page = 1; stride > size && page < pages; page++)
            memmove(bytes + page * size, bytes + page * stride, (size_t)size);
        if (pwrite(copy->to, bytes, (size_t)(pages * size), place) != pages * size)
            return 0;
        left -= pages;
        place += pages * size;
        at += pages * stride;
    }
    return 1;
}

/* Copy rows up to the part's end or the first that fails; part->row is where it stops. */
static void *
copy_part(void *argument)
{
    struct part *part = argument;
    const struct copy *copy = part->copy;

    part->piece = (struct piece){.bytes = malloc(PIECE)};
    for (; part->piece.bytes != NULL && part->row < part->end; part->row++) {
        if (simple(copy, part->row) == 2)
            continue;
        if (!copy_row(copy, part->row, &part->piece))
            break;
        memset(copy->written + ((copy->where[part->row] >> KIND_BITS) - copy->first), 1,
               copy->count[part->row]);
    }
    free(part->piece.bytes);
    return NULL;
}

/* Copy rows from one on; the first that was not. */
static Py_ssize_t
copy_rows(const struct copy *copy, Py_ssize_t row, Py_ssize_t rows)
{
    uint64_t pages = 0, before = 0;
    Py_ssize_t end, middle;
    pthread_t helper;

    for (end = row; end < rows && simple(copy, end); end++)
        pages += copy->count[end];
    for (middle = row; middle < end && before < pages / 2; middle++)
        before += copy->count[middle];
    struct part first = {copy, row, middle, {0}}, second = {copy, middle, end, {0}};
    if (pages * (uint64_t)copy->page_size >= SHARED &&
        start_help(copy_part, &second, &helper)) {
        copy_part(&first);
        pthread_join(helper, NULL);
    } else {
        copy_part(&first);
        if (first.row == middle)
            copy_part(&second);
    }
    return first.row < middle ? first.row : second.row;
}

PyObject *
ram_copy(PyObject *module, PyObject *args)
{
    Py_buffer inputs, written, where, count, data;
    struct copy copy;
    Py_ssize_t row, rows, result = -1;
    unsigned long long first;

    (void)module;
    if (!PyArg_ParseTuple(args, "y*iKw*ny*y*y*n:copy", &inputs, &copy.to, &first, &written,
                          &copy.page_size, &where, &count, &data, &row))
        return NULL;
    rows = count.len / (Py_ssize_t)sizeof(uint32_t);
    copy.inputs = inputs.buf;
    copy.many = inputs.len / (Py_ssize_t)sizeof(struct input);
    copy.first = first;
    copy.written = written.buf;
    copy.length = (uint64_t)written.len;
    copy.where = where.buf;
    copy.count = count.buf;
    copy.data = data.buf;
    if (!good_page_size((unsigned long long)copy.page_size) || copy.page_size > PIECE || row < 0 || row > rows ||
        where.len != rows * (Py_ssize_t)sizeof(uint64_t) || data.len != where.len ||
        copy.length > MOST_PAGES) {
        PyErr_SetString(PyExc_ValueError, "runs of different lengths, or no page size");
    } else {
        Py_BEGIN_ALLOW_THREADS
        result = copy_rows(&copy, row, rows);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&inputs);
    PyBuffer_Release(&written);
    PyBuffer_Release(&where);
    PyBuffer_Release(&count);
    PyBuffer_Release(&data);
    return result < 0 ? NULL : PyLong_FromSsize_t(result);
}

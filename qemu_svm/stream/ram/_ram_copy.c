/* Copy unencoded pages from the files of a stream to those of the RAM blocks. */
#define _GNU_SOURCE
#include "_ram_file.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    PIECE = 256 << 10,                              /* bytes that are copied at a time */
    NEAR = 64 << 10,                                /* gaps up to this size are read, not skipped */
    RESERVED = 64 << 10,                            /* runs of this size or more are allocated first */
    SHARED = 1 << 20,                               /* from this size on, a second thread helps */
};

/*
 * Runs of unencoded pages, copied to their place in a block.  No page is in two of them,
 * so their order does not matter.
 */
struct input {
    int64_t fd, start;                              /* fd < 0: not a file */
};

struct copy {
    const struct input *inputs;
    Py_ssize_t many;                                /* inputs */
    int to;
    uint64_t first, length;                         /* pages of the block in the file */
    Py_ssize_t page_size;
    const uint64_t *where, *data;
    const uint32_t *count;
};

/* Input that was read ahead. */
struct piece {
    unsigned char *bytes;
    const struct input *input;
    off_t from, at, end;                            /* of bytes[0], of the unused part, of its end */
};

/* The part of the runs that one thread copies. */
struct part {
    const struct copy *copy;
    Py_ssize_t row, end;
};

static Py_ssize_t
distance(const struct copy *copy, Py_ssize_t row)
{
    const int placed = (copy->where[row] & KIND) == KIND_PLACED;

    return placed ? copy->page_size : copy->page_size + WORD;
}

/* Whether a run can be copied (1), needs no copying (2), or is left to Python (0). */
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
        return 2;
    default:
        return 0;
    }
}

/* Bytes of an input, read together with those that follow; NULL if there are fewer. */
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

    /* One allocation is cheaper than one for each page; not all file systems support it. */
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

/* Copy rows up to the part's end or the first that fails, which part->row is then. */
static void *
copy_part(void *argument)
{
    struct part *part = argument;
    const struct copy *copy = part->copy;
    struct piece piece = {.bytes = malloc(PIECE)};

    for (; piece.bytes != NULL && part->row < part->end; part->row++) {
        if (simple(copy, part->row) == 2)
            continue;
        if (!copy_row(copy, part->row, &piece))
            break;
    }
    free(piece.bytes);
    return NULL;
}

/* Copy rows from one on; return the first that was not copied. */
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
    struct part ours = {copy, row, end}, theirs = {copy, middle, end};
    if (pages * (uint64_t)copy->page_size < SHARED || !start_help(copy_part, &theirs, &helper)) {
        copy_part(&ours);
        return ours.row;
    }
    ours.end = middle;
    copy_part(&ours);
    pthread_join(helper, NULL);
    return ours.row < middle ? ours.row : theirs.row;
}

PyObject *
ram_copy(PyObject *module, PyObject *args)
{
    Py_buffer inputs, where, count, data;
    struct copy copy;
    Py_ssize_t row, rows, result = -1;
    unsigned long long first, length;

    (void)module;
    if (!PyArg_ParseTuple(args, "y*iKKny*y*y*n:copy", &inputs, &copy.to, &first, &length,
                          &copy.page_size, &where, &count, &data, &row))
        return NULL;
    rows = count.len / (Py_ssize_t)sizeof(uint32_t);
    copy.inputs = inputs.buf;
    copy.many = inputs.len / (Py_ssize_t)sizeof(struct input);
    copy.first = first;
    copy.length = length;
    copy.where = where.buf;
    copy.count = count.buf;
    copy.data = data.buf;
    if (!good_page_size((unsigned long long)copy.page_size) || copy.page_size > PIECE ||
        row < 0 || row > rows ||
        where.len != rows * (Py_ssize_t)sizeof(uint64_t) || data.len != where.len ||
        copy.length > (uint64_t)(INT64_MAX / copy.page_size)) {
        PyErr_SetString(PyExc_ValueError, "runs of different lengths, or invalid page size or length");
    } else {
        Py_BEGIN_ALLOW_THREADS
        result = copy_rows(&copy, row, rows);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&inputs);
    PyBuffer_Release(&where);
    PyBuffer_Release(&count);
    PyBuffer_Release(&data);
    return result < 0 ? NULL : PyLong_FromSsize_t(result);
}

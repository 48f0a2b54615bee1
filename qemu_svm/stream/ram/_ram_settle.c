/*
 * Runs in the order of sending, made into runs in the order of the pages of which none
 * overlap; and how many pages of which kind these have.  See final.py.
 */
#include "_ram.h"

#include <stdlib.h>
#include <string.h>

enum { MOST_TIMES = 255, DIGIT_BITS = 11, DIGITS = 1 << DIGIT_BITS };

struct runs {
    const uint64_t *where, *data;
    const uint32_t *count;
    const unsigned char *times;                     /* copies of the pages of each; NULL: one */
    uint64_t stride[KIND + 1];
    Py_ssize_t many;
};

static size_t
times_of(const struct runs *runs, uint32_t run)
{
    return runs->times == NULL ? 1 : runs->times[run];
}

static uint64_t
page_of(const struct runs *runs, uint32_t run)
{
    return runs->where[run] >> KIND_BITS;
}

static uint64_t
end_of(const struct runs *runs, uint32_t run)
{
    return page_of(runs, run) + runs->count[run];
}

/* Whether the runs are in the order of their pages already, and none overlap. */
static int
settled(const struct runs *runs)
{
    for (Py_ssize_t run = 1; run < runs->many; run++)
        if (page_of(runs, (uint32_t)run) < end_of(runs, (uint32_t)run - 1))
            return 0;
    return 1;
}

static size_t
digit_of(const struct runs *runs, uint32_t run, int shift)
{
    return page_of(runs, run) >> shift & (DIGITS - 1);
}

/*
 * Sort the numbers of the runs by page, digit by digit from the lowest: the time grows with
 * the number of runs only, whatever their order.
 */
static uint32_t *
sort(const struct runs *runs, uint32_t *order, uint32_t *other)
{
    const uint32_t many = (uint32_t)runs->many;
    uint64_t bits = 0;

    for (uint32_t run = 0; run < many; run++) {
        order[run] = run;
        bits |= page_of(runs, run);
    }
    for (int shift = 0; shift < 64 && bits >> shift; shift += DIGIT_BITS) {
        uint32_t place[DIGITS] = {0}, before = 0, *swap = order;

        for (uint32_t run = 0; run < many; run++)
            place[digit_of(runs, run, shift)]++;
        for (size_t at = 0; at < DIGITS; at++) {
            const uint32_t count = place[at];

            place[at] = before;
            before += count;
        }
        for (uint32_t at = 0; at < many; at++)
            other[place[digit_of(runs, order[at], shift)]++] = order[at];
        order = other;
        other = swap;
    }
    return order;
}

/* A heap of numbers of runs: the one that ends first, or the newest one, is on top. */
struct heap {
    uint32_t *run;
    size_t size;
    int by_end;
};

static int
before(const struct runs *runs, const struct heap *heap, uint32_t one, uint32_t other)
{
    return heap->by_end ? end_of(runs, one) < end_of(runs, other) : one > other;
}

static void
push(const struct runs *runs, struct heap *heap, uint32_t run)
{
    size_t at = heap->size++;

    for (; at && before(runs, heap, run, heap->run[(at - 1) / 2]); at = (at - 1) / 2)
        heap->run[at] = heap->run[(at - 1) / 2];
    heap->run[at] = run;
}

static void
pop(const struct runs *runs, struct heap *heap)
{
    const uint32_t run = heap->run[--heap->size];
    size_t at = 0, child;

    while ((child = 2 * at + 1) < heap->size) {
        if (child + 1 < heap->size &&
            before(runs, heap, heap->run[child + 1], heap->run[child]))
            child++;
        if (!before(runs, heap, heap->run[child], run))
            break;
        heap->run[at] = heap->run[child];
        at = child;
    }
    heap->run[at] = run;
}

/* The result; it has at most twice as many runs as were sent. */
struct final {
    uint64_t *where, *data;
    uint32_t *count;
    unsigned char *times;
    size_t used, room;
    uint32_t last;                                  /* the run that the last row is of */
};

/* The column with more room; the same one, if there is no memory. */
static void *
larger(void *column, size_t size, int *good)
{
    void *found = realloc(column, size);

    *good = *good && found != NULL;
    return found != NULL ? found : column;
}

static int
more_room(struct final *final)
{
    const size_t room = final->room + final->room / 2 + 64;
    int good = 1;

    final->where = larger(final->where, room * sizeof *final->where, &good);
    final->data = larger(final->data, room * sizeof *final->data, &good);
    final->count = larger(final->count, room * sizeof *final->count, &good);
    final->times = larger(final->times, room * sizeof *final->times, &good);
    final->room = good ? room : final->room;
    return good;
}

static int
emit(const struct runs *runs, struct final *final, uint32_t run, uint64_t page, uint64_t end,
     size_t times)
{
    const unsigned char often = (unsigned char)(times < MOST_TIMES ? times : MOST_TIMES);
    const uint64_t kind = runs->where[run] & KIND;
    size_t at = final->used;

    if (at && final->last == run && final->times[at - 1] == often &&
        (final->where[at - 1] >> KIND_BITS) + final->count[at - 1] == page) {
        final->count[at - 1] += (uint32_t)(end - page);
        return 1;
    }
    if (at == final->room && !more_room(final))
        return 0;
    final->where[at] = page << KIND_BITS | kind;
    final->data[at] = runs->data[run] + (page - page_of(runs, run)) * runs->stride[kind];
    final->count[at] = (uint32_t)(end - page);
    final->times[at] = often;
    final->last = run;
    final->used++;
    return 1;
}

/* Go through the pages: where several runs have one, the newest counts. */
static int
sweep(const struct runs *runs, const uint32_t *order, struct heap *ends, struct heap *newest,
      struct final *final)
{
    const size_t many = (size_t)runs->many;
    uint64_t page = 0;
    size_t next = 0, times = 0;                     /* times: copies of the present page */

    while (next < many || ends->size) {
        uint64_t to = ends->size ? end_of(runs, ends->run[0]) : page_of(runs, order[next]);

        if (next < many && page_of(runs, order[next]) < to)
            to = page_of(runs, order[next]);
        if (ends->size && to > page &&
            !emit(runs, final, newest->run[0], page, to, times))
            return 0;
        page = to;
        while (ends->size && end_of(runs, ends->run[0]) == page) {
            times -= times_of(runs, ends->run[0]);
            pop(runs, ends);
        }
        for (; next < many && page_of(runs, order[next]) == page; next++) {
            if (runs->count[order[next]]) {
                times += times_of(runs, order[next]);
                push(runs, ends, order[next]);
                push(runs, newest, order[next]);
            }
        }
        while (newest->size && end_of(runs, newest->run[0]) <= page)
            pop(runs, newest);
    }
    return 1;
}

static int
settle(const struct runs *runs, struct final *final)
{
    const size_t many = (size_t)runs->many;
    uint32_t *all = calloc(4 * many, sizeof *all);
    int good = 0;

    if (all != NULL) {
        struct heap ends = {.run = all + 2 * many, .by_end = 1};
        struct heap newest = {.run = all + 3 * many};

        good = sweep(runs, sort(runs, all, all + many), &ends, &newest, final);
    }
    free(all);
    return good;
}

/* Check the columns, and that no run ends past the last page that a row can have. */
static int
runs_of(const Py_buffer *where, const Py_buffer *count, const Py_buffer *data,
        const Py_buffer *times, struct runs *runs)
{
    runs->many = count->len / (Py_ssize_t)sizeof(uint32_t);
    runs->where = where->buf;
    runs->count = count->buf;
    runs->data = data->buf;
    runs->times = times->buf;
    int good = where->len == runs->many * (Py_ssize_t)sizeof(uint64_t) &&
               data->len == where->len && (uint64_t)runs->many < UINT32_MAX &&
               (times->buf == NULL || times->len == runs->many);

    for (Py_ssize_t run = 0; good && run < runs->many; run++)
        good = end_of(runs, (uint32_t)run) <= UINT64_MAX >> KIND_BITS;
    if (!good)
        PyErr_SetString(PyExc_ValueError, "runs of different lengths, or past the last page");
    return good;
}

/* A column as bytes; it is freed, so that there are not two of all of them. */
static int
moved(PyObject *columns, Py_ssize_t number, void *column, size_t size)
{
    PyObject *bytes = PyBytes_FromStringAndSize(column, (Py_ssize_t)size);

    free(column);
    if (bytes != NULL)
        PyTuple_SetItem(columns, number, bytes);
    return bytes != NULL;
}

static PyObject *
columns_of(struct final *final)
{
    PyObject *columns = PyTuple_New(4);
    int good = 0;

    if (columns != NULL) {
        good = moved(columns, 0, final->where, final->used * sizeof *final->where);
        good &= moved(columns, 1, final->count, final->used * sizeof *final->count);
        good &= moved(columns, 2, final->data, final->used * sizeof *final->data);
        good &= moved(columns, 3, final->times, final->used);
        *final = (struct final){.used = 0};
    }
    if (!good)
        Py_CLEAR(columns);
    return columns;
}

PyObject *
ram_settle(PyObject *module, PyObject *args)
{
    Py_buffer where, count, data, times = {.buf = NULL};
    struct runs runs = {.many = 0};
    struct final final = {.used = 0};
    unsigned long long page_size;
    PyObject *result = NULL;
    int good;

    (void)module;
    if (!PyArg_ParseTuple(args, "y*y*y*K|z*:settle", &where, &count, &data, &page_size, &times))
        return NULL;
    runs.stride[KIND_ZERO] = runs.stride[KIND_FILLED] = HEAD;
    runs.stride[KIND_PAGE] = WORD + page_size;
    runs.stride[KIND_PLACED] = page_size;
    if (runs_of(&where, &count, &data, &times, &runs)) {
        Py_BEGIN_ALLOW_THREADS
        good = settled(&runs) ? 2 : settle(&runs, &final);
        Py_END_ALLOW_THREADS
        if (good == 2)
            result = Py_NewRef(Py_None);
        else if (!good)
            PyErr_NoMemory();
        else
            result = columns_of(&final);
        free(final.where);
        free(final.count);
        free(final.data);
        free(final.times);
    }
    PyBuffer_Release(&where);
    PyBuffer_Release(&count);
    PyBuffer_Release(&data);
    PyBuffer_Release(&times);
    return result;
}

/* Count the pages from first to before end in rows: of each kind, more than once, and most. */
PyObject *
ram_tally(PyObject *module, PyObject *args)
{
    Py_buffer where, count, times;
    unsigned long long first, end, pages[KIND + 1] = {0}, repeated = 0;
    Py_ssize_t row, rows;
    int most = 0;

    (void)module;
    if (!PyArg_ParseTuple(args, "(y*y*z*)(KK)(nn):tally", &where, &count, &times, &first, &end, &row,
                          &rows))
        return NULL;
    const uint64_t *wheres = where.buf;
    const uint32_t *counts = count.buf;
    const unsigned char *often = times.buf;
    const Py_ssize_t many = count.len / (Py_ssize_t)sizeof(uint32_t);
    const int good = where.len == many * (Py_ssize_t)sizeof(uint64_t) && row >= 0 &&
                     rows <= many && (often == NULL || times.len == many);

    for (; good && row < rows; row++) {
        const uint64_t page = wheres[row] >> KIND_BITS;
        const uint64_t low = page > first ? page : first;
        const uint64_t high = page + counts[row] < end ? page + counts[row] : end;
        const int copies = often == NULL ? 1 : often[row];

        if (low >= high)
            continue;
        pages[wheres[row] & KIND] += high - low;
        if (copies > 1)
            repeated += high - low;
        if (copies > most)
            most = copies;
    }
    PyBuffer_Release(&where);
    PyBuffer_Release(&count);
    PyBuffer_Release(&times);
    if (!good) {
        PyErr_SetString(PyExc_ValueError, "rows of different lengths");
        return NULL;
    }
    return Py_BuildValue("(KKKKKKKK)Ki", pages[0], pages[1], pages[2], pages[3], pages[4],
                         pages[5], pages[6], pages[7], repeated, most);
}

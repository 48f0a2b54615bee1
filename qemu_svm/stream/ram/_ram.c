/*
 * The work that is done for every RAM record, in C.
 *
 * scan.py and final.py have the same in Python, and explain it; tests compare
 * both.  The code here does not know what a stream is: it reads bytes and returns
 * numbers, and leaves unusual records to Python.
 *
 * No byte is read before its position is checked against the buffer, and no number
 * from the input is added to before it is checked for overflow.
 */
#include "_ram.h"

enum { ZERO = 0x02, PAGE = 0x08, CONTINUE = 0x20, XBZRLE = 0x40 };

static uint64_t
word_at(const unsigned char *at)
{
    uint64_t word = 0;

    for (int byte = 0; byte < WORD; byte++)
        word = word << 8 | at[byte];
    return word;
}

/* Return kind and length of the record at window->at; 0 if it is an unusual one. */
static int
classify(const struct window *window, uint64_t flags, uint64_t page_size, Py_ssize_t *length)
{
    const unsigned char *body = window->bytes + window->at + WORD;
    Py_ssize_t left = window->size - window->at;

    switch (flags) {
    case PAGE | CONTINUE:
        *length = WORD + (Py_ssize_t)page_size;
        return KIND_PAGE;
    case ZERO | CONTINUE:
        *length = HEAD;
        return body[0] == 0 ? KIND_ZERO : 0;
    case XBZRLE | CONTINUE:
        if (left < DELTA_HEAD || body[0] != 1)
            return 0;
        *length = DELTA_HEAD + (body[1] << 8 | body[2]);
        return *length <= left && (uint64_t)*length - DELTA_HEAD <= page_size ? KIND_XBZRLE : 0;
    default:
        return 0;
    }
}

void
scan_window(struct window *window, struct rows *rows, const struct block *block)
{
    const uint64_t page_size = block->page_size;
    const uint64_t mask = page_size - 1;
    const uint64_t most = block->top - page_size;   /* a block of less than a page: see below */

    if (block->top < page_size)
        return;
    while (window->size - window->at >= HEAD && rows->used < rows->room) {
        const uint64_t word = word_at(window->bytes + window->at);
        const uint64_t page = word / page_size;
        const uint64_t data = window->base + (uint64_t)window->at + WORD;
        Py_ssize_t length = 0;
        uint64_t expected = word;
        uint32_t count = 0;
        int kind = classify(window, word & mask, page_size, &length);

        if (!kind || word > most)
            return;
        do {
            count++;
            expected += page_size;
            window->at += length;
        } while (kind != KIND_XBZRLE && expected <= most && window->size - window->at >= HEAD &&
                 word_at(window->bytes + window->at) == expected &&
                 (kind != KIND_ZERO || window->bytes[window->at + WORD] == 0));
        rows->pages[kind] += count;
        rows->data[rows->used] = data;
        rows->where[rows->used] = page << KIND_BITS | (uint64_t)kind;
        rows->count[rows->used] = count;
        rows->used++;
    }
}

int
good_page_size(unsigned long long size)
{
    return size >= 256 && size <= 1 << 24 && !(size & (size - 1));
}

int
rows_of(const Py_buffer *data, const Py_buffer *where, const Py_buffer *count, struct rows *rows)
{
    Py_ssize_t room = data->len / (Py_ssize_t)sizeof(uint64_t);

    if (where->len / (Py_ssize_t)sizeof(uint64_t) != room ||
        count->len / (Py_ssize_t)sizeof(uint32_t) != room) {
        PyErr_SetString(PyExc_ValueError, "rows of different lengths");
        return 0;
    }
    *rows = (struct rows){.data = data->buf, .where = where->buf, .count = count->buf,
                          .room = room};
    return 1;
}

/* The result of a scan: see scan.py. */
PyObject *
ram_found(uint64_t behind, const struct rows *rows)
{
    const Py_ssize_t *pages = rows->pages;

    return Py_BuildValue("Kn(nnnn)", (unsigned long long)behind, rows->used, pages[0],
                         pages[KIND_ZERO], pages[KIND_PAGE], pages[KIND_XBZRLE]);
}

static PyObject *
scan(PyObject *module, PyObject *args)
{
    Py_buffer bytes, data, where, count;
    struct window window;
    struct rows rows;
    unsigned long long base, page_size, top;
    Py_ssize_t at;
    PyObject *result = NULL;

    (void)module;
    if (!PyArg_ParseTuple(args, "y*nK(KK)w*w*w*:scan", &bytes, &at, &base, &page_size, &top,
                          &data, &where, &count))
        return NULL;
    if (at < 0 || at > bytes.len || !good_page_size(page_size)) {
        PyErr_SetString(PyExc_ValueError, "position outside the data, or invalid page size");
    } else if (rows_of(&data, &where, &count, &rows)) {
        window = (struct window){bytes.buf, bytes.len, at, base};
        scan_window(&window, &rows, &(struct block){page_size, top});
        result = ram_found((uint64_t)window.at, &rows);
    }
    PyBuffer_Release(&bytes);
    PyBuffer_Release(&data);
    PyBuffer_Release(&where);
    PyBuffer_Release(&count);
    return result;
}

static PyMethodDef methods[] = {
    {"scan", scan, METH_VARARGS, "See scan.py."},
    {"scan_file", ram_scan_file, METH_VARARGS, "See scan.py."},
    {"copy", ram_copy, METH_VARARGS, "See extract.py."},
    {"settle", ram_settle, METH_VARARGS, "See final.py."},
    {"tally", ram_tally, METH_VARARGS, "See final.py."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "qemu_svm.stream.ram._ram",
    .m_doc = "The work that is done for every RAM record.",
    .m_size = 0,
    .m_methods = methods,
};

PyMODINIT_FUNC
PyInit__ram(void)
{
    PyObject *module = PyModule_Create(&definition);

    if (module && PyModule_AddIntConstant(module, "INTERFACE", 4) < 0) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}

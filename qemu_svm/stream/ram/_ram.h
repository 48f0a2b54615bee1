/* Common definitions of the extension: see _ram.c. */
#ifndef SVMSTREAM_RAM_H
#define SVMSTREAM_RAM_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>

enum { WORD = 8, HEAD = 9, DELTA_HEAD = 11 };       /* bytes: a record's word; bytes that are examined */
enum {
    KIND_ZERO = 1,
    KIND_PAGE = 2,
    KIND_XBZRLE = 3,
    KIND_PLACED = 5,
    KIND_ABSENT = 6,
    KIND_FILLED = 7,
    KIND_BITS = 3,
    KIND = (1 << KIND_BITS) - 1,
    INPUT_SHIFT = 56,
};

/* The RAM block that the records continue. */
struct block {
    uint64_t page_size;
    uint64_t top;                                   /* see scan.py */
};

/* The rows of a scan: three arrays of the same length. */
struct rows {
    uint64_t *data, *where;
    uint32_t *count;
    Py_ssize_t room, used;
    Py_ssize_t pages[KIND_XBZRLE + 1];              /* number of each kind in all rows */
};

struct window {
    const unsigned char *bytes;
    Py_ssize_t size, at;
    uint64_t base;                                  /* offset of the first byte */
};

int good_page_size(unsigned long long size);
int rows_of(const Py_buffer *data, const Py_buffer *where, const Py_buffer *count,
            struct rows *rows);
void scan_window(struct window *window, struct rows *rows, const struct block *block);
PyObject *ram_found(uint64_t behind, const struct rows *rows);

PyObject *ram_scan_file(PyObject *module, PyObject *args);
PyObject *ram_copy(PyObject *module, PyObject *args);
PyObject *ram_settle(PyObject *module, PyObject *args);
PyObject *ram_tally(PyObject *module, PyObject *args);

#endif

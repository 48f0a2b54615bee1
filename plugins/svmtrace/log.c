/*
 * The log: a header, then records with their size and a checksum at the end.
 *
 * A VMCB is written in full once and then as the bytes that changed, relative to
 * the last page written for the same physical address.  At most PAGES pages are
 * remembered; before the next one, all are forgotten, and the reader does the same.
 * A record with a page is written to the file at once, together with the small
 * records before it, so that none is lost if the emulator is killed.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "svmtrace.h"

#define VERSION 1
#define PAGES 1024u
#define SLOTS (4 * PAGES)
#define HEADER_SIZE 32u
#define FIXED 40u
#define MAX_RECORD (FIXED + 18 + PAGE_SIZE + 4 * (PAGE_SIZE / 16) + 4)
#define BUFFER (64u * 1024)

struct remembered {
    uint64_t pa;
    uint8_t *page;
};

static struct {
    pthread_mutex_t lock;
    int file;
    uint64_t limit, written, number, lost;
    struct timespec start;
    struct remembered slots[SLOTS];
    unsigned int remembered;
    size_t used;
    uint8_t buffer[BUFFER];
} log_ = {.lock = PTHREAD_MUTEX_INITIALIZER, .file = -1};

static uint32_t crc_table[256];

static void crc_prepare(void)
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t value = byte;
        for (int bit = 0; bit < 8; bit++)
            value = value >> 1 ^ (value & 1 ? 0xedb88320u : 0);
        crc_table[byte] = value;
    }
}

static uint32_t crc32_of(const uint8_t *data, size_t size)
{
    uint32_t value = UINT32_MAX;
    while (size--)
        value = value >> 8 ^ crc_table[(value ^ *data++) & 0xff];
    return ~value;
}

static uint8_t *put(uint8_t *at, uint64_t value, int size)
{
    for (int byte = 0; byte < size; byte++)
        *at++ = (uint8_t)(value >> 8 * byte);
    return at;
}

static void flush(void)
{
    size_t done = 0;
    while (done < log_.used && log_.file >= 0) {
        ssize_t now = write(log_.file, log_.buffer + done, log_.used - done);
        if (now < 0 && errno == EINTR)
            continue;
        if (now <= 0) {
            /* A full disk ends the log, not the emulator. */
            close(log_.file);
            log_.file = -1;
            break;
        }
        done += (size_t)now;
    }
    log_.used = 0;
}

static void forget_pages(void)
{
    for (unsigned int slot = 0; slot < SLOTS; slot++) {
        free(log_.slots[slot].page);
        log_.slots[slot].page = NULL;
    }
    log_.remembered = 0;
}

/* The slot for a page; its ->page is null if the page is not remembered. */
static struct remembered *slot_of(uint64_t pa)
{
    unsigned int at = (unsigned int)((pa >> 12) * 2654435761u) % SLOTS;
    while (log_.slots[at].page && log_.slots[at].pa != pa)
        at = (at + 1) % SLOTS;
    return &log_.slots[at];
}

/* Runs of changed bytes: offset and length, 16 bits each, then the bytes.  Fewer than
 * 8 equal bytes stay inside a run, because the head of a run takes 4. */
static uint8_t *put_delta(uint8_t *at, const uint8_t *old, const uint8_t *new)
{
    uint8_t *count_at = at;
    unsigned int count = 0;
    at += 2;
    for (unsigned int offset = 0; offset < PAGE_SIZE; offset += 8) {
        unsigned int start = offset;
        while (offset < PAGE_SIZE && memcmp(old + offset, new + offset, 8))
            offset += 8;
        if (offset == start)
            continue;
        at = put(put(at, start, 2), offset - start, 2);
        memcpy(at, new + start, offset - start);
        at += offset - start;
        count++;
    }
    put(count_at, count, 2);
    return at;
}

static uint8_t *put_page(uint8_t *at, struct event *event)
{
    struct remembered *slot = slot_of(event->pa);
    at = put(put(at, event->pa, 8), event->related, 8);
    if (slot->page) {
        event->flags |= IS_DELTA;
        at = put_delta(at, slot->page, event->page);
    } else {
        if (log_.remembered == PAGES) {
            forget_pages();
            slot = slot_of(event->pa);
        }
        at = put(at, 1, 2);
        at = put(put(at, 0, 2), PAGE_SIZE, 2);
        memcpy(at, event->page, PAGE_SIZE);
        at += PAGE_SIZE;
        slot->page = malloc(PAGE_SIZE);
        if (!slot->page)
            abort();
        slot->pa = event->pa;
        log_.remembered++;
    }
    memcpy(slot->page, event->page, PAGE_SIZE);
    return at;
}

static uint64_t append(struct event *event)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    uint64_t time = (uint64_t)(now.tv_sec - log_.start.tv_sec) * 1000000000u +
                    (uint64_t)now.tv_nsec - (uint64_t)log_.start.tv_nsec;
    if (log_.used + MAX_RECORD > BUFFER)
        flush();
    uint8_t *record = log_.buffer + log_.used, *end = record + FIXED;
    if (event->page) {
        event->flags |= HAS_PAGE;
        end = put_page(end, event);
    }
    uint64_t number = ++log_.number;
    uint8_t *at = put(record, (uint64_t)(end - record) + 4, 4);
    at = put(put(put(at, event->kind, 1), event->flags, 1), event->vcpu, 2);
    put(put(put(put(at, number, 8), time, 8), event->rip, 8), event->rax, 8);
    end = put(end, crc32_of(record, (size_t)(end - record)), 4);
    log_.used += (size_t)(end - record);
    log_.written += (size_t)(end - record);
    return number;
}

/* Append an event and return its number; 0 if the log is closed or full. */
uint64_t log_write(struct event *event)
{
    uint64_t number = 0;
    pthread_mutex_lock(&log_.lock);
    if (log_.file < 0) {
        log_.lost++;
    } else {
        number = append(event);
        if (event->page)
            flush();
        if (log_.written >= log_.limit && log_.file >= 0) {
            append(&(struct event){.kind = KIND_END, .rax = END_LIMIT});
            flush();
            close(log_.file);
            log_.file = -1;
        }
    }
    pthread_mutex_unlock(&log_.lock);
    return number;
}

/* Start the log; return the error, or null. */
const char *log_open(const char *path, uint64_t limit, int api, int vcpus)
{
    crc_prepare();
    log_.file = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (log_.file < 0)
        return strerror(errno);
    log_.limit = limit;
    clock_gettime(CLOCK_MONOTONIC, &log_.start);
    memcpy(log_.buffer, "SVMTRACE", 8);
    uint8_t *at = put(put(log_.buffer + 8, VERSION, 2), HEADER_SIZE, 2);
    at = put(put(at, (unsigned int)api, 2), (unsigned int)vcpus, 2);
    at = put(put(at, PAGES, 4), PAGE_SIZE, 4);
    put(put(at, 0, 4), crc32_of(log_.buffer, HEADER_SIZE - 4), 4);
    log_.used = HEADER_SIZE;
    flush();
    return log_.file < 0 ? "cannot be written" : NULL;
}

/* Write the end record and close the log. */
void log_close(void)
{
    pthread_mutex_lock(&log_.lock);
    if (log_.file >= 0) {
        append(&(struct event){.kind = KIND_END, .rax = END_EXIT});
        flush();
    }
    if (log_.file >= 0)
        close(log_.file);
    log_.file = -1;
    forget_pages();
    pthread_mutex_unlock(&log_.lock);
}

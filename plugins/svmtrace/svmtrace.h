/* svmtrace: the common interface of its parts.  See README.md. */
#ifndef SVMTRACE_H
#define SVMTRACE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "qemu_api.h"

#define PAGE_SIZE 4096u
#define PAGE_MASK 0xfffull
#define NOWHERE UINT64_MAX

/* One emulated processor, touched by its own thread only. */
struct vcpu {
    unsigned int index;
    GByteArray *buffer;
    struct qemu_plugin_register *rax, *cr3;
    uint64_t direct_map;      /* where the host's kernel maps physical memory; API 4 */
    uint64_t no_map_in;       /* CR3 of tables in which it was not found */
    struct site *pending;     /* VMRUN that entered a guest which has not exited yet */
    uint64_t pending_pa;      /* its VMCB */
    uint64_t pending_number;  /* its record */
    struct site *last;        /* VMRUN that was executed last, at any level */
    uint64_t last_rax;
    bool last_in_guest;
    uint8_t page[PAGE_SIZE];
};

/* A VMRUN, VMLOAD, ... somewhere in code. */
enum level { UNKNOWN, HOST, GUEST };

struct site {
    uint64_t vaddr;
    uint8_t opcode;           /* third byte: 0xd8 VMRUN ... 0xdf INVLPGA */
    _Atomic int level;        /* of VMRUN: who executes it */
};

/* memory.c: registers and physical memory of the running vCPU. */
bool vcpu_find_registers(struct vcpu *vcpu);
uint64_t read_register(struct vcpu *vcpu, struct qemu_plugin_register *handle);
bool read_physical(struct vcpu *vcpu, uint64_t address, void *to, size_t size);
uint64_t nested_walk(struct vcpu *vcpu, uint64_t nested_cr3, uint64_t gpa);

/* log.c: the file; its format is declared in qemu_svm/vmruns/structs.py. */
enum kind { KIND_EXIT = 1, KIND_VMCB12 = 2, KIND_END = 3, KIND_VMRUN = 0xd8 };

enum {
    IN_GUEST = 1 << 0,    /* executed below L0 */
    HAS_PAGE = 1 << 1,    /* a VMCB follows */
    IS_DELTA = 1 << 2,    /* ... as changes to the last one at this address */
    UNREADABLE = 1 << 3,  /* the VMCB could not be read */
    UNPAIRED = 1 << 4,    /* the matching exit or entry was not seen */
};

enum { END_EXIT = 1, END_LIMIT = 2 };

struct event {
    uint8_t kind, flags;
    unsigned int vcpu;
    uint64_t rip, rax;
    uint64_t pa;          /* of the page, if there is one */
    uint64_t related;     /* number of the entry that an exit or vmcb12 belongs to */
    const uint8_t *page;
};

const char *log_open(const char *path, uint64_t limit, int api, int vcpus);
uint64_t log_write(struct event *event);
void log_close(void);

#endif

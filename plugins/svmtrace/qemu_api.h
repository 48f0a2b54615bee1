/*
 * The part of QEMU's plugin interface, versions 4 to 7, that svmtrace uses.
 *
 * Source: QEMU's docs/devel/tcg-plugins.rst and the comments in its plugin header.
 * Differences between the versions:
 *
 *   4 (QEMU 9.2, 10.0)  reads registers, and memory by virtual address
 *   5 (QEMU 10.1)       reads memory by physical address
 *   6                   register reads return bool instead of int
 *   7 (QEMU 11.1)       callbacks with (id, x) have (x, userdata) instead, that of
 *                       exit (userdata); the register descriptor has one more member
 *
 * GLib gives the element size of the descriptor array, so that it may grow; the
 * result of a register read is the size of the value, not the return value.  GLib is
 * part of the emulator; two of its structures and four of its functions are declared
 * here, so its headers are not needed.
 */
#ifndef SVMTRACE_QEMU_API_H
#define SVMTRACE_QEMU_API_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))

typedef struct {
    uint8_t *data;
    unsigned int len;
} GByteArray;

typedef struct {
    char *data;
    unsigned int len;
} GArray;

GByteArray *g_byte_array_new(void);
GByteArray *g_byte_array_set_size(GByteArray *array, unsigned int length);
unsigned int g_array_get_element_size(GArray *array);
char *g_array_free(GArray *array, int free_segment);

struct qemu_info {
    const char *target_name;
    struct {
        int min;
        int cur;
    } version;
    bool system_emulation;
    struct {
        int smp_vcpus;
        int max_vcpus;
    } system;
};

struct qemu_plugin_tb;
struct qemu_plugin_insn;
struct qemu_plugin_register;

/* Its first two members; its size differs. */
struct reg_descriptor {
    struct qemu_plugin_register *handle;
    const char *name;
};

enum { CB_R_REGS = 1 };

typedef void (*any_cb)(void);
typedef void (*insn_cb)(unsigned int vcpu, void *userdata);

/* Registered with two arguments up to API 6, with three since; a callee ignores
 * additional arguments (System V ABI), so three are always passed. */
void qemu_plugin_register_vcpu_init_cb(uint64_t id, any_cb cb, void *userdata);
void qemu_plugin_register_atexit_cb(uint64_t id, any_cb cb, void *userdata);
void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t id, any_cb cb, void *userdata);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *insn, insn_cb cb, int flags,
                                            void *userdata);

size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *tb, size_t number);
size_t qemu_plugin_insn_data(const struct qemu_plugin_insn *insn, void *to, size_t size);
size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *insn);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *insn);
void *qemu_plugin_insn_haddr(const struct qemu_plugin_insn *insn);

/* Null in an emulator without them.  Weak, so that an old emulator loads the plugin and
 * reports the version that it requires, instead of an undefined symbol. */
#define WEAK __attribute__((weak))

WEAK GArray *qemu_plugin_get_registers(void);
WEAK int qemu_plugin_read_register(struct qemu_plugin_register *handle, GByteArray *to);
WEAK bool qemu_plugin_read_memory_vaddr(uint64_t address, GByteArray *to, size_t size);
/* API 5; 0 is success. */
WEAK int qemu_plugin_read_memory_hwaddr(uint64_t address, GByteArray *to, size_t size);
/* API 6; never called, only tested for. */
WEAK void qemu_plugin_register_vcpu_discon_cb(void);

#endif

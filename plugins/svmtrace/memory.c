/*
 * Registers and physical memory of the running vCPU.
 *
 * Since API 5 a plugin can read physical memory.  Before, it can only read virtual
 * addresses in the address space of the running code.  Every read here happens while
 * the host's kernel runs, and a 64-bit kernel maps all of physical memory
 * contiguously.  The base of that map is found and verified with the page tables: it
 * is right if CR3's tables can be read through it *and* these tables map
 * base + ADDRESS to ADDRESS.  No kernel's structures need be known; the candidates
 * are 0 and the multiples of 1 GiB in the upper half of 4-level paging.
 *
 * Source: AMD64 APM volume 2, 5.3 (long-mode page translation) and 15.25 (nested
 * paging uses the same formats).
 */
#include <string.h>


#include "svmtrace.h"

#define ADDRESS_MASK 0x000ffffffffff000ull
#define PRESENT 1u
#define LARGE 0x80u
#define STEP (1ull << 30)
#define USUAL_BASE 0xffff888000000000ull /* Linux without KASLR */
#define FIRST_BASE 0xffff800000000000ull

/* Find RAX and CR3; called in the vCPU's own thread.  Handles may be null. */
bool vcpu_find_registers(struct vcpu *vcpu)
{
    int found = 0;
    GArray *list = qemu_plugin_get_registers();
    size_t size = g_array_get_element_size(list);
    for (unsigned int at = 0; at < list->len; at++) {
        struct reg_descriptor one;
        memcpy(&one, list->data + at * size, sizeof one);
        if (!strcmp(one.name, "rax")) {
            vcpu->rax = one.handle;
            found |= 1;
        } else if (!strcmp(one.name, "cr3")) {
            vcpu->cr3 = one.handle;
            found |= 2;
        }
    }
    g_array_free(list, 1);
    return found == 3;
}

/* A register of up to 64 bits. */
uint64_t read_register(struct vcpu *vcpu, struct qemu_plugin_register *handle)
{
    uint64_t value = 0;
    g_byte_array_set_size(vcpu->buffer, 0);
    qemu_plugin_read_register(handle, vcpu->buffer);
    unsigned int size = vcpu->buffer->len < sizeof value ? vcpu->buffer->len : sizeof value;
    if (size)
        memcpy(&value, vcpu->buffer->data, size);
    return value;
}

static bool read_virtual(struct vcpu *vcpu, uint64_t address, void *to, size_t size)
{
    if (!qemu_plugin_read_memory_vaddr(address, vcpu->buffer, size))
        return false;
    memcpy(to, vcpu->buffer->data, size);
    return true;
}

typedef bool (*reader)(struct vcpu *vcpu, uint64_t base, uint64_t address, void *to, size_t size);

static bool through_map(struct vcpu *vcpu, uint64_t base, uint64_t address, void *to, size_t size)
{
    return read_virtual(vcpu, base + address, to, size);
}

static bool through_physical(struct vcpu *vcpu, uint64_t base, uint64_t address, void *to,
                             size_t size)
{
    (void)base;
    return read_physical(vcpu, address, to, size);
}

/* Translate by 4-level tables whose root is at a physical address. */
static uint64_t walk(struct vcpu *vcpu, reader read, uint64_t base, uint64_t root,
                     uint64_t address)
{
    uint64_t table = root & ADDRESS_MASK;
    for (int shift = 39; shift >= 12; shift -= 9) {
        uint64_t entry;
        uint64_t offset = (address >> shift & 0x1ff) * sizeof entry;
        if (!read(vcpu, base, table + offset, &entry, sizeof entry) || !(entry & PRESENT))
            return NOWHERE;
        table = entry & ADDRESS_MASK;
        if (shift == 12 || (shift < 39 && (entry & LARGE))) {
            uint64_t inside = (1ull << shift) - 1;
            return (table & ~inside) | (address & inside);
        }
    }
    return NOWHERE;
}

static bool maps(struct vcpu *vcpu, uint64_t base, uint64_t cr3, uint64_t address)
{
    return walk(vcpu, through_map, base, cr3, base + address) == address;
}

static bool find_direct_map(struct vcpu *vcpu, uint64_t address)
{
    uint64_t cr3 = read_register(vcpu, vcpu->cr3);
    if (maps(vcpu, vcpu->direct_map, cr3, address))
        return true;
    if (cr3 == vcpu->no_map_in)
        return false; /* a search takes milliseconds: once for the same tables */
    vcpu->direct_map = 0;
    if (maps(vcpu, USUAL_BASE, cr3, address)) {
        vcpu->direct_map = USUAL_BASE;
        return true;
    }
    if (maps(vcpu, 0, cr3, address))
        return true; /* as small hypervisors do */
    for (uint64_t base = FIRST_BASE; base >= FIRST_BASE; base += STEP) {
        if (maps(vcpu, base, cr3, address)) {
            vcpu->direct_map = base;
            return true;
        }
    }
    vcpu->no_map_in = cr3;
    return false;
}

/* Read physical memory while the host's kernel runs. */
bool read_physical(struct vcpu *vcpu, uint64_t address, void *to, size_t size)
{
    if (qemu_plugin_read_memory_hwaddr) {
        if (qemu_plugin_read_memory_hwaddr(address, vcpu->buffer, size) != 0)
            return false;
        memcpy(to, vcpu->buffer->data, size);
        return true;
    }
    return find_direct_map(vcpu, address) &&
           read_virtual(vcpu, vcpu->direct_map + address, to, size);
}

/* A guest's physical address as the host's, by its nested page tables. */
uint64_t nested_walk(struct vcpu *vcpu, uint64_t nested_cr3, uint64_t gpa)
{
    return walk(vcpu, through_physical, 0, nested_cr3, gpa);
}

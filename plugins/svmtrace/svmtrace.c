/*
 * svmtrace: log the SVM instructions that QEMU's TCG executes.
 *
 * VMRUN, VMLOAD, VMSAVE, STGI, CLGI, SKINIT, INVLPGA and VMMCALL are hooked when
 * they are translated.  The only other hooked instruction is the one after each
 * VMRUN, where execution continues after a #VMEXIT with interrupts disabled: the
 * VMCB is then as the processor wrote it back.
 *
 * Levels.  L0 is the code that runs on the emulated processor itself.  A VMRUN of
 * L0 enters a guest; a VMRUN of a guest is always intercepted (the architecture
 * requires the intercept), so L0 continues after *its* VMRUN.  Hence
 *
 *   a VMRUN followed by the instruction after it, with no other event of that vCPU
 *   in between, is L0's;  a VMRUN followed by the instruction after L0's VMRUN is a
 *   guest's.
 *
 * Code is identified by the address of its bytes in the emulator's memory, not by
 * its virtual address: L0 and L1 may run the same kernel at the same addresses.  A
 * VMRUN of unknown level is taken for a guest's if a guest was entered and has not
 * exited.  That is wrong only if the state of the machine was replaced from outside
 * (loadvm, reset); the next event of a known VMRUN corrects it, and the record has
 * the flag UNPAIRED.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "svmtrace.h"

#define VCPUS 4096u
#define SITES 4096u /* slots of the tables, at most half of them used */
#define EXIT_VMRUN 0x80u
#define OFFSET_EXIT_CODE 0x70
#define OFFSET_NESTED_CTL 0x90
#define OFFSET_NESTED_CR3 0xb0
#define NP_ENABLE 1u
#define DEFAULT_LIMIT (1ull << 30)

EXPORT int qemu_plugin_version;
EXPORT int qemu_plugin_install(uint64_t id, const struct qemu_info *info, int argc, char **argv);

/* The emulator compares the version before it calls the plugin: request its own. */
__attribute__((constructor)) static void choose_version(void)
{
#ifdef API
    qemu_plugin_version = API;
#else
    if (!qemu_plugin_read_memory_hwaddr)
        qemu_plugin_version = 4;
    else if (!qemu_plugin_register_vcpu_discon_cb)
        qemu_plugin_version = 5;
    else
        qemu_plugin_version = 7;
#endif
}

static const char *const names[8] = {"vmrun", "vmmcall", "vmload", "vmsave",
                                     "stgi",  "clgi",    "skinit", "invlpga"};

static struct vcpu *vcpus[VCPUS];
static unsigned int hooked = 0xff; /* bit n: opcode 0xd8 + n */
static pthread_mutex_t sites_lock = PTHREAD_MUTEX_INITIALIZER;

/* --- sites: hash tables, written under the lock, read without --- */

struct slot {
    _Atomic uint64_t key;
    struct site *site;
};

static struct table {
    struct slot slots[SITES];
    unsigned int used;
} at_site, after_vmrun;

static struct site *lookup(struct table *table, uint64_t key)
{
    unsigned int at = (unsigned int)(key * 0x9e3779b97f4a7c15ull >> 52) % SITES;
    for (;; at = (at + 1) % SITES) {
        uint64_t found = table->slots[at].key;
        if (found == key)
            return table->slots[at].site;
        if (!found)
            return NULL;
    }
}

static bool insert(struct table *table, uint64_t key, struct site *site)
{
    if (table->used == SITES / 2)
        return false;
    unsigned int at = (unsigned int)(key * 0x9e3779b97f4a7c15ull >> 52) % SITES;
    while (table->slots[at].key)
        at = (at + 1) % SITES;
    table->slots[at].site = site;
    table->slots[at].key = key; /* last: readers that find the key find the site too */
    table->used++;
    return true;
}

static uint64_t code_key(const struct qemu_plugin_insn *insn)
{
    uint64_t host = (uint64_t)(uintptr_t)qemu_plugin_insn_haddr(insn);
    return host ? host : qemu_plugin_insn_vaddr(insn);
}

static struct site *site_of(const struct qemu_plugin_insn *insn, uint8_t opcode)
{
    uint64_t key = code_key(insn), vaddr = qemu_plugin_insn_vaddr(insn);
    pthread_mutex_lock(&sites_lock);
    struct site *site = lookup(&at_site, key);
    if (!site || site->opcode != opcode) {
        site = calloc(1, sizeof *site);
        if (site) {
            site->vaddr = vaddr;
            site->opcode = opcode;
            /* The next instruction may be in another page: then use its address. */
            uint64_t next = (vaddr & PAGE_MASK) + 3 < PAGE_SIZE ? key + 3 : vaddr + 3;
            if (!insert(&at_site, key, site)) {
                free(site);
                site = NULL;
            } else if (opcode == KIND_VMRUN) {
                insert(&after_vmrun, next, site);
            }
        }
    }
    pthread_mutex_unlock(&sites_lock);
    return site;
}

/* --- events --- */

static void record(struct vcpu *vcpu, uint8_t kind, uint8_t flags, uint64_t rip, uint64_t rax)
{
    log_write(&(struct event){
        .kind = kind, .flags = flags, .vcpu = vcpu->index, .rip = rip, .rax = rax});
}

/* Printed once; each record of such a page has the flag too. */
static void complain_unreadable(uint64_t address)
{
    static atomic_flag said = ATOMIC_FLAG_INIT;
    if (atomic_flag_test_and_set(&said))
        return;
    fprintf(stderr, "svmtrace: the VMCB at %#llx cannot be read%s\n", (unsigned long long)address,
            qemu_plugin_read_memory_hwaddr
                ? ""
                : ": no 4-level page tables of the host map all its memory contiguously");
}

static uint64_t record_page(struct vcpu *vcpu, struct event event, uint8_t *page)
{
    event.vcpu = vcpu->index;
    if (read_physical(vcpu, event.pa, page, PAGE_SIZE)) {
        event.page = page;
    } else {
        event.flags |= UNREADABLE;
        complain_unreadable(event.pa);
    }
    return log_write(&event);
}

static void on_instruction(unsigned int index, void *userdata)
{
    struct vcpu *vcpu = vcpus[index];
    struct site *site = userdata;
    if (!vcpu)
        return;
    uint64_t rax = read_register(vcpu, vcpu->rax);
    record(vcpu, site->opcode, vcpu->pending ? IN_GUEST : 0, site->vaddr, rax);
}

static void on_vmrun(unsigned int index, void *userdata)
{
    struct vcpu *vcpu = vcpus[index];
    struct site *site = userdata;
    if (!vcpu)
        return;
    uint64_t rax = read_register(vcpu, vcpu->rax);
    bool in_guest = site->level == GUEST || (site->level == UNKNOWN && vcpu->pending);
    vcpu->last = site;
    vcpu->last_rax = rax;
    vcpu->last_in_guest = in_guest;
    if (in_guest) {
        uint8_t lost = vcpu->pending ? 0 : UNPAIRED;
        record(vcpu, KIND_VMRUN, IN_GUEST | lost, site->vaddr, rax);
        return;
    }
    struct event event = {.kind = KIND_VMRUN, .rip = site->vaddr, .rax = rax};
    event.flags = vcpu->pending ? UNPAIRED : 0;
    event.pa = rax & ~PAGE_MASK;
    vcpu->pending = site;
    vcpu->pending_pa = event.pa;
    vcpu->pending_number = record_page(vcpu, event, vcpu->page);
}

static uint64_t number_at(const uint8_t *page, unsigned int offset)
{
    uint64_t value;
    memcpy(&value, page + offset, sizeof value);
    return value;
}

/* After a guest's VMRUN: vmcb12, found by the nested page tables. */
static void record_vmcb12(struct vcpu *vcpu, uint64_t entry)
{
    struct event event = {.kind = KIND_VMCB12, .flags = IN_GUEST, .rip = vcpu->last->vaddr};
    event.rax = vcpu->last_rax;
    event.related = entry;
    uint8_t *exited = vcpu->page, vmcb12[PAGE_SIZE];
    event.pa = NOWHERE;
    if (number_at(exited, OFFSET_NESTED_CTL) & NP_ENABLE)
        event.pa = nested_walk(vcpu, number_at(exited, OFFSET_NESTED_CR3), event.rax & ~PAGE_MASK);
    if (event.pa == NOWHERE)
        record(vcpu, KIND_VMCB12, IN_GUEST | UNREADABLE, event.rip, event.rax);
    else
        record_page(vcpu, event, vmcb12);
}

static void on_vmexit_landing(unsigned int index, void *userdata)
{
    struct vcpu *vcpu = vcpus[index];
    struct site *site = userdata;
    if (!vcpu)
        return;
    if (vcpu->last == site)
        site->level = HOST;
    else if (vcpu->pending != site && site->level != HOST)
        return; /* a guest continues after an exit of its own guest */
    bool guest_vmrun = vcpu->last && vcpu->last != site && vcpu->last_in_guest;
    if (guest_vmrun)
        vcpu->last->level = GUEST;

    struct event event = {.kind = KIND_EXIT, .rip = site->vaddr + 3};
    event.rax = read_register(vcpu, vcpu->rax);
    event.pa = event.rax & ~PAGE_MASK;
    if (vcpu->pending == site && vcpu->pending_pa == event.pa)
        event.related = vcpu->pending_number;
    else
        event.flags |= UNPAIRED;
    vcpu->pending = NULL;
    /* vmcb12 first, so that the exit's record is the last of those that belong together. */
    if (guest_vmrun && read_physical(vcpu, event.pa, vcpu->page, PAGE_SIZE) &&
        (number_at(vcpu->page, OFFSET_EXIT_CODE) & UINT32_MAX) == EXIT_VMRUN)
        record_vmcb12(vcpu, event.related);
    record_page(vcpu, event, vcpu->page);
    vcpu->last = NULL;
}

static void on_translation(struct qemu_plugin_tb *tb)
{
    size_t count = qemu_plugin_tb_n_insns(tb);
    struct qemu_plugin_insn *first = count ? qemu_plugin_tb_get_insn(tb, 0) : NULL;
    if (first && after_vmrun.used) {
        struct site *site = lookup(&after_vmrun, code_key(first));
        if (!site && (qemu_plugin_insn_vaddr(first) & PAGE_MASK) < 3)
            site = lookup(&after_vmrun, qemu_plugin_insn_vaddr(first));
        if (site)
            qemu_plugin_register_vcpu_insn_exec_cb(first, on_vmexit_landing, CB_R_REGS, site);
    }
    for (size_t at = 0; at < count; at++) {
        struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, at);
        uint8_t bytes[3];
        if (qemu_plugin_insn_size(insn) != 3 ||
            qemu_plugin_insn_data(insn, bytes, sizeof bytes) != sizeof bytes || bytes[0] != 0x0f ||
            bytes[1] != 0x01 || bytes[2] < 0xd8 || bytes[2] > 0xdf)
            continue;
        if (!(hooked >> (bytes[2] - 0xd8) & 1))
            continue;
        struct site *site = site_of(insn, bytes[2]);
        insn_cb callback = bytes[2] == KIND_VMRUN ? on_vmrun : on_instruction;
        if (site)
            qemu_plugin_register_vcpu_insn_exec_cb(insn, callback, CB_R_REGS, site);
    }
}

/* --- start and end --- */

static void start_vcpu(unsigned int index)
{
    struct vcpu *vcpu = index < VCPUS && !vcpus[index] ? calloc(1, sizeof *vcpu) : NULL;
    if (!vcpu)
        return;
    vcpu->index = index;
    vcpu->buffer = g_byte_array_new();
    if (!vcpu_find_registers(vcpu)) {
        fprintf(stderr, "svmtrace: cannot find RAX and CR3 in this emulator; nothing is recorded\n");
        free(vcpu);
        return;
    }
    vcpus[index] = vcpu;
}

static void translation_6(uint64_t id, struct qemu_plugin_tb *tb)
{
    (void)id;
    on_translation(tb);
}

static void translation_7(struct qemu_plugin_tb *tb, void *userdata)
{
    (void)userdata;
    on_translation(tb);
}

static void vcpu_init_6(uint64_t id, unsigned int index)
{
    (void)id;
    start_vcpu(index);
}

static void vcpu_init_7(unsigned int index, void *userdata)
{
    (void)userdata;
    start_vcpu(index);
}

static void at_exit(void)
{
    log_close();
}

static bool parse_only(const char *list)
{
    hooked = 0;
    while (*list) {
        size_t size = strcspn(list, ":");
        unsigned int bit = 0;
        while (bit < 8 && (strlen(names[bit]) != size || strncmp(names[bit], list, size)))
            bit++;
        if (bit == 8)
            return false;
        hooked |= 1u << bit;
        list += size + (list[size] == ':');
    }
    return hooked != 0;
}

static bool parse_size(const char *text, uint64_t *size)
{
    char *end;
    *size = strtoull(text, &end, 0);
    const char *unit = *end ? strchr("kmg", *end | 0x20) : NULL;
    if (unit) {
        *size <<= 10 * (strchr("kmg", *unit) - "kmg" + 1);
        end++;
    }
    return end != text && !*end && *size;
}

static int refuse(const char *why, const char *what)
{
    fprintf(stderr, "svmtrace: %s%s\n", why, what);
    return 1;
}

int qemu_plugin_install(uint64_t id, const struct qemu_info *info, int argc, char **argv)
{
    const char *out = NULL;
    uint64_t limit = DEFAULT_LIMIT;
    if (!info->system_emulation || strcmp(info->target_name, "x86_64"))
        return refuse("requires qemu-system-x86_64, but this emulator is for ", info->target_name);
    for (int at = 0; at < argc; at++) {
        if (!strncmp(argv[at], "out=", 4))
            out = argv[at] + 4;
        else if (!strncmp(argv[at], "only=", 5)) {
            if (!parse_only(argv[at] + 5))
                return refuse("only= accepts vmrun:vmmcall:vmload:vmsave:stgi:clgi:"
                              "skinit:invlpga, not ", argv[at] + 5);
        } else if (!strncmp(argv[at], "limit=", 6)) {
            if (!parse_size(argv[at] + 6, &limit))
                return refuse("limit= accepts a size such as 64m, not ", argv[at] + 6);
        } else
            return refuse("unknown option ", argv[at]);
    }
    if (!out || !*out)
        return refuse("out=FILE is required", "");
    const char *why = log_open(out, limit, qemu_plugin_version, info->system.smp_vcpus);
    if (why) {
        fprintf(stderr, "svmtrace: %s: %s\n", out, why);
        return 1;
    }
    bool userdata = info->version.cur >= 7;
    any_cb init = userdata ? (any_cb)vcpu_init_7 : (any_cb)vcpu_init_6;
    any_cb translation = userdata ? (any_cb)translation_7 : (any_cb)translation_6;
    qemu_plugin_register_vcpu_init_cb(id, init, NULL);
    qemu_plugin_register_vcpu_tb_trans_cb(id, translation, NULL);
    qemu_plugin_register_atexit_cb(id, at_exit, NULL);
    return 0;
}

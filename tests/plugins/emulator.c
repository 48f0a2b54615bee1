/*
 * An emulator for the tests of svmtrace: the plugin interface, physical memory, and
 * instructions one by one, as a script on standard input asks for them.
 *
 *   write ADDRESS HEX...          physical memory
 *   cr3 VALUE                     of every vCPU, by which virtual addresses are translated
 *   run VCPU VADDR CODE BYTES RAX an instruction; CODE is where its bytes lie in our memory
 *   threads COUNT TIMES           that many vCPUs, each entering and leaving guests
 *
 * Built with -DAPI=4, 5 or 7: what that version of the interface has.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default"), used))
#define MEMORY (8u << 20)
#define HOOKS 64

typedef struct {
    uint8_t *data;
    unsigned int len, room;
} GByteArray;
typedef struct {
    char *data;
    unsigned int len, element;
} GArray;

struct descriptor {
    void *handle;
    const char *name, *feature;
#if API >= 7
    bool is_readonly;
#endif
};

struct insn {
    uint64_t vaddr, code;
    uint8_t bytes[16];
    size_t size;
};

typedef void (*insn_cb)(unsigned int, void *);
struct hook {
    struct insn insn;
    insn_cb call[2];
    void *data[2];
    int count;
};

struct cpu {
    unsigned int index;
    uint64_t rax, cr3;
};

static uint8_t memory[MEMORY];
static struct hook hooks[HOOKS];
static int hook_count;
static struct hook *translated;
static pthread_mutex_t translation = PTHREAD_MUTEX_INITIALIZER;
static __thread struct cpu *cpu;
static uint64_t all_cr3;
static void (*on_init)(void), (*on_translation)(void), (*on_exit_)(void);

EXPORT GByteArray *g_byte_array_new(void) { return calloc(1, sizeof(GByteArray)); }
EXPORT GByteArray *g_byte_array_set_size(GByteArray *array, unsigned int size)
{
    if (size > array->room) {
        array->data = realloc(array->data, size);
        array->room = size;
    }
    array->len = size;
    return array;
}
EXPORT unsigned int g_array_get_element_size(GArray *array) { return array->element; }
EXPORT char *g_array_free(GArray *array, int all)
{
    if (all)
        free(array->data);
    free(array);
    return NULL;
}

EXPORT GArray *qemu_plugin_get_registers(void)
{
    static const char *const names[] = {"rax", "rip", "cr3"};
    GArray *list = calloc(1, sizeof *list);
    struct descriptor *all = calloc(3, sizeof *all);
    for (uintptr_t at = 0; at < 3; at++)
        all[at] = (struct descriptor){.handle = (void *)at, .name = names[at]};
    *list = (GArray){(char *)all, 3, sizeof *all};
    return list;
}
EXPORT int qemu_plugin_read_register(void *handle, GByteArray *to)
{
    uint64_t value = handle == (void *)0 ? cpu->rax : handle == (void *)2 ? cpu->cr3 : 0;
    unsigned int had = to->len;
    g_byte_array_set_size(to, had + 8);
    memcpy(to->data + had, &value, 8);
    return API >= 6 ? 1 : 8;
}

static bool physical(uint64_t address, void *to, size_t size)
{
    if (address >= MEMORY || size > MEMORY - address)
        return false;
    memcpy(to, memory + address, size);
    return true;
}

EXPORT bool qemu_plugin_read_memory_vaddr(uint64_t address, GByteArray *to, size_t size)
{
    uint64_t table = cpu->cr3 & ~0xfffull;
    g_byte_array_set_size(to, (unsigned int)size);
    for (int shift = 39; shift >= 12; shift -= 9) {
        uint64_t entry;
        if (!physical(table + (address >> shift & 511) * 8, &entry, 8) || !(entry & 1))
            return false;
        table = entry & 0x000ffffffffff000ull;
        if (shift == 12 || (entry & 0x80)) {
            uint64_t inside = (1ull << shift) - 1;
            return physical((table & ~inside) | (address & inside), to->data, size);
        }
    }
    return false;
}
#if API >= 5
EXPORT int qemu_plugin_read_memory_hwaddr(uint64_t address, GByteArray *to, size_t size)
{
    g_byte_array_set_size(to, (unsigned int)size);
    return physical(address, to->data, size) ? 0 : 4;
}
#endif
#if API >= 6
EXPORT void qemu_plugin_register_vcpu_discon_cb(void) {}
#endif

#if API >= 7
#define REGISTER(name, place) \
    EXPORT void name(uint64_t id, void (*cb)(void), void *data) { (void)id; (void)data; place = cb; }
#else
#define REGISTER(name, place) \
    EXPORT void name(uint64_t id, void (*cb)(void)) { (void)id; place = cb; }
#endif
REGISTER(qemu_plugin_register_vcpu_init_cb, on_init)
REGISTER(qemu_plugin_register_vcpu_tb_trans_cb, on_translation)
EXPORT void qemu_plugin_register_atexit_cb(uint64_t id, void (*cb)(void), void *data)
{
    (void)id;
    (void)data;
    on_exit_ = cb;
}

EXPORT void qemu_plugin_register_vcpu_insn_exec_cb(struct insn *insn, insn_cb cb, int flags,
                                                   void *data)
{
    (void)insn;
    if (flags != 1) /* registers could not be read */
        abort();
    translated->call[translated->count] = cb;
    translated->data[translated->count++] = data;
}
EXPORT size_t qemu_plugin_tb_n_insns(const void *tb) { return tb ? 1 : 0; }
EXPORT struct insn *qemu_plugin_tb_get_insn(void *tb, size_t at) { return at ? NULL : tb; }
EXPORT size_t qemu_plugin_insn_size(const struct insn *insn) { return insn->size; }
EXPORT uint64_t qemu_plugin_insn_vaddr(const struct insn *insn) { return insn->vaddr; }
EXPORT void *qemu_plugin_insn_haddr(const struct insn *insn) { return (void *)insn->code; }
EXPORT size_t qemu_plugin_insn_data(const struct insn *insn, void *to, size_t size)
{
    size = size < insn->size ? size : insn->size;
    memcpy(to, insn->bytes, size);
    return size;
}

static struct hook *translate(const struct insn *insn)
{
    struct hook *found = NULL;
    pthread_mutex_lock(&translation);
    for (int at = 0; at < hook_count && !found; at++)
        if (hooks[at].insn.vaddr == insn->vaddr && hooks[at].insn.code == insn->code)
            found = &hooks[at];
    if (!found) {
        if (hook_count == HOOKS)
            abort();
        found = translated = &hooks[hook_count++];
        found->insn = *insn;
#if API >= 7
        ((void (*)(void *, void *))on_translation)(&found->insn, NULL);
#else
        ((void (*)(uint64_t, void *))on_translation)(1, &found->insn);
#endif
    }
    pthread_mutex_unlock(&translation);
    return found;
}

static void execute(const struct insn *insn, uint64_t rax)
{
    struct hook *hook = translate(insn);
    cpu->rax = rax;
    for (int at = 0; at < hook->count; at++)
        hook->call[at](cpu->index, hook->data[at]);
}

static struct cpu *start_cpu(unsigned int index)
{
    cpu = calloc(1, sizeof *cpu);
    cpu->index = index;
    cpu->cr3 = all_cr3;
#if API >= 7
    ((void (*)(unsigned int, void *))on_init)(index, NULL);
#else
    ((void (*)(uint64_t, unsigned int))on_init)(1, index);
#endif
    return cpu;
}

static unsigned long times;

static void *thread(void *index)
{
    struct insn vmrun = {.vaddr = 0x1000, .code = 0x7000, .bytes = {0x0f, 0x01, 0xd8}, .size = 3};
    struct insn behind = {.vaddr = 0x1003, .code = 0x7003, .bytes = {0x90}, .size = 1};
    struct cpu *mine = start_cpu((unsigned int)(uintptr_t)index);
    uint64_t vmcb = 0x100000 + 0x1000 * mine->index;
    for (unsigned long at = 0; at < times; at++) {
        memcpy(memory + vmcb + 0x578, &at, sizeof at);
        execute(&vmrun, vmcb);
        memory[vmcb + 0x70] = (uint8_t)at;
        execute(&behind, vmcb);
    }
    free(mine);
    return NULL;
}

static void run_threads(unsigned int count)
{
    pthread_t all[64];
    for (uintptr_t at = 0; at < count; at++)
        pthread_create(&all[at], NULL, thread, (void *)at);
    for (unsigned int at = 0; at < count; at++)
        pthread_join(all[at], NULL);
}

static void write_memory(uint64_t address, const char *hex)
{
    unsigned int byte;
    for (; sscanf(hex, "%2x", &byte) == 1 && *hex; hex += 2)
        memory[address++ % MEMORY] = (uint8_t)byte;
}

int main(int argc, char **argv)
{
    void *plugin = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
    if (!plugin) {
        fprintf(stderr, "%s\n", dlerror());
        return 2;
    }
    if (*(int *)dlsym(plugin, "qemu_plugin_version") != API) {
        fprintf(stderr, "the plugin asks for interface %d\n",
                *(int *)dlsym(plugin, "qemu_plugin_version"));
        return 3;
    }
    struct {
        const char *target;
        int min, cur;
        bool system;
        int smp, max;
    } info = {getenv("TARGET") ? getenv("TARGET") : "x86_64", API == 7 ? 7 : 2, API, true, 2, 4};
    int (*install)(uint64_t, const void *, int, char **);
    *(void **)&install = dlsym(plugin, "qemu_plugin_install");
    if (install(1, &info, argc - 2, argv + 2))
        return 1;

    static struct cpu *cpus[8];
    static char line[16384], hex[16384];
    uint64_t address, code, rax;
    unsigned int index, count;
    while (fgets(line, sizeof line, stdin)) {
        if (sscanf(line, "write %lx %16000s", &address, hex) == 2) {
            write_memory(address, hex);
        } else if (sscanf(line, "cr3 %lx", &all_cr3) == 1) {
            continue;
        } else if (sscanf(line, "run %u %lx %lx %30s %lx", &index, &address, &code, hex, &rax) == 5) {
            struct insn insn = {.vaddr = address, .code = code, .size = strlen(hex) / 2};
            for (size_t at = 0; at < insn.size; at++)
                sscanf(hex + 2 * at, "%2hhx", &insn.bytes[at]);
            if (!cpus[index])
                cpus[index] = start_cpu(index);
            cpu = cpus[index];
            cpu->cr3 = all_cr3;
            execute(&insn, rax);
        } else if (sscanf(line, "threads %u %lu", &count, &times) == 2) {
            run_threads(count);
        } else {
            fprintf(stderr, "what is: %s", line);
            return 4;
        }
    }
#if API >= 7
    ((void (*)(void *))on_exit_)(NULL);
#else
    ((void (*)(uint64_t, void *))on_exit_)(1, NULL);
#endif
    return 0;
}

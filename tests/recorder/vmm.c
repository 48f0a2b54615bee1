/* A VMM of two vCPUs, each in a thread of its own, that writes to a port three times.
 *
 *   vmm [STATUS]       ends with the status
 *   vmm fork STATUS    a child does it
 *   vmm serve          does not end: prints "ready", then an ioctl every 2 ms
 */
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { VCPUS = 2, MEMORY = 1 << 16, PAGE = 0x1000 };

static const unsigned char code[] = { 0xe6, 0x80, 0xe6, 0x80, 0xe6, 0x80, 0xf4 };
static int kvm, vm;

static void must(int ok, const char *what)
{
	if (!ok) {
		perror(what);
		exit(99);
	}
}

static void *vcpu(void *argument)
{
	long id = (long)argument;
	int fd = ioctl(vm, KVM_CREATE_VCPU, id);
	int size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	struct kvm_run *run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	struct kvm_regs regs = { .rip = PAGE, .rflags = 2, .rax = 0x1234 + id };
	struct kvm_sregs sregs;
	char list[sizeof(struct kvm_msrs) + 2 * sizeof(struct kvm_msr_entry)] = { 0 };
	struct kvm_msrs *msrs = (void *)list;

	must(fd >= 0 && run != MAP_FAILED, "vCPU");
	run->immediate_exit = 0;
	must(!ioctl(fd, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
	sregs.cs.base = sregs.cs.selector = 0;
	must(!ioctl(fd, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
	must(!ioctl(fd, KVM_SET_REGS, &regs), "KVM_SET_REGS");
	msrs->nmsrs = 2;
	msrs->entries[0].index = 0xc0000080;
	msrs->entries[1].index = 0x277;
	must(ioctl(fd, KVM_GET_MSRS, msrs) == 2, "KVM_GET_MSRS");
	must(ioctl(fd, KVM_SET_REGS, (void *)8) < 0, "an address that does not exist");
	for (int i = 0; i < 3; i++)
		must(!ioctl(fd, KVM_RUN, 0) && run->exit_reason == KVM_EXIT_IO, "KVM_RUN");
	must(!ioctl(fd, KVM_GET_REGS, &regs), "KVM_GET_REGS");
	must(!ioctl(fd, KVM_RUN, 0) && run->exit_reason == KVM_EXIT_HLT, "KVM_RUN");
	return NULL;
}

int main(int count, char **words)
{
	pthread_t threads[VCPUS];
	int status = count > 1 ? atoi(words[count - 1]) : 0;

	if (count > 2 && fork()) {
		wait(&status);
		return WEXITSTATUS(status);
	}
	kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	vm = ioctl(kvm, KVM_CREATE_VM, 0);
	must(vm >= 0, "/dev/kvm");
	char *memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct kvm_userspace_memory_region region = { 0, 0, 0, MEMORY, (unsigned long)memory };

	memcpy(memory + PAGE, code, sizeof(code));
	must(!ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region), "memory");
	for (long i = 0; i < VCPUS; i++)
		must(!pthread_create(&threads[i], NULL, vcpu, (void *)i), "thread");
	for (int i = 0; i < VCPUS; i++)
		pthread_join(threads[i], NULL);
	if (count == 2 && !strcmp(words[1], "serve")) {
		puts("ready");
		fflush(stdout);
		while (1) {
			ioctl(kvm, KVM_GET_API_VERSION, 0);
			usleep(2000);
		}
	}
	return status;
}

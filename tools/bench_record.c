/* What ioctls of KVM cost: for each line with a number of batches, one with nanoseconds, the least of them. */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { BATCH = 10 };

static int batches;
static int fd;
static struct kvm_sregs sregs;
static struct kvm_regs regs;
static char xsave[1 << 14];

static long now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000L + time.tv_nsec;
}

static long least(int (*one)(void))
{
	long best = 1L << 62;

	for (int i = 0; i < batches; i++) {
		long start = now();

		for (int j = 0; j < BATCH; j++)
			one();
		start = now() - start;
		best = start < best ? start : best;
	}
	return best / BATCH;
}

static int getppid_(void) { return syscall(SYS_getppid); }
static int run(void) { return ioctl(fd, KVM_RUN, 0); }
static int get_regs(void) { return ioctl(fd, KVM_GET_REGS, &regs); }
static int set_sregs(void) { return ioctl(fd, KVM_SET_SREGS, &sregs); }
static int set_xsave(void) { return ioctl(fd, KVM_SET_XSAVE, xsave); }

int main(void)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	int vm = ioctl(kvm, KVM_CREATE_VM, 0);
	char line[64];

	fd = ioctl(vm, KVM_CREATE_VCPU, 0);
	if (fd < 0) {
		perror("/dev/kvm");
		return 1;
	}
	int size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	struct kvm_run *state = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	ioctl(fd, KVM_GET_SREGS, &sregs);
	ioctl(fd, KVM_GET_XSAVE, xsave);
	state->immediate_exit = 1;
	setvbuf(stdout, NULL, _IONBF, 0);
	puts("ready");
	while (fgets(line, sizeof(line), stdin)) {
		batches = atoi(line);
		printf("%ld %ld %ld %ld %ld\n", least(run), least(get_regs), least(set_sregs),
		       least(set_xsave), least(getppid_));
	}
	return 0;
}

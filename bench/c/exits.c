// SPDX-License-Identifier: Apache-2.0
// The minimum work of a VMM for a register access: KVM_RUN, check the reason, answer, repeat.
//
// Every read is answered with `answer`; writes are summed. The guest ends the program by a write
// to `done_port`.
#include <errno.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>

struct served {
	uint64_t accesses;
	uint64_t written; // sum of the values written
};

static uint64_t number(const void *data, uint32_t size)
{
	uint64_t value = 0;

	memcpy(&value, data, size < sizeof(value) ? size : sizeof(value));
	return value;
}

static void serve(void *data, uint32_t size, int is_write, uint64_t answer, struct served *served)
{
	served->accesses++;
	if (is_write)
		served->written += number(data, size);
	else
		memcpy(data, &answer, size);
}

// Returns 0 when the guest is done, else errno or the exit reason that it does not expect.
int exits_serve(int vcpu_fd, struct kvm_run *run, uint16_t done_port, uint64_t answer,
		struct served *served)
{
	for (;;) {
		if (ioctl(vcpu_fd, KVM_RUN, 0) < 0)
			return errno;
		switch (run->exit_reason) {
		case KVM_EXIT_IO:
			if (run->io.port == done_port)
				return 0;
			serve((char *)run + run->io.data_offset, run->io.size,
			      run->io.direction == KVM_EXIT_IO_OUT, answer, served);
			break;
		case KVM_EXIT_MMIO:
			serve(run->mmio.data, run->mmio.len, run->mmio.is_write, answer, served);
			break;
		default:
			return run->exit_reason;
		}
	}
}

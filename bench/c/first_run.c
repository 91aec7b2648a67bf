// SPDX-License-Identifier: Apache-2.0
/*
 * A library to preload into a VMM: notes the time of its guest's first KVM_RUN and ends the process
 * there, so nothing of the guest runs and a KVM that is unfit for Linux serves as well.
 *
 * The time, nanoseconds of CLOCK_MONOTONIC, is written to the descriptor that BENCH_TIMES_FD names.
 * A probe of KVM by a guest of a few pages is not the start of the guest: KVM_RUN counts once a
 * memory slot of 16 MiB or more has been set.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <linux/kvm.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define GUEST_RAM_BYTES (16ull << 20)

static atomic_int has_ram;

static void end(void)
{
	struct timespec now;
	const char *fd = getenv("BENCH_TIMES_FD");

	clock_gettime(CLOCK_MONOTONIC, &now);
	if (fd)
		dprintf(atoi(fd), "%lld\n", now.tv_sec * 1000000000ll + now.tv_nsec);
	_exit(0);
}

int ioctl(int fd, unsigned long request, ...)
{
	static int (*next)(int, unsigned long, ...);
	va_list list;
	void *argument;

	va_start(list, request);
	argument = va_arg(list, void *);
	va_end(list);
	if (!next)
		next = (int (*)(int, unsigned long, ...))dlsym(RTLD_NEXT, "ioctl");
	if (request == KVM_SET_USER_MEMORY_REGION &&
	    ((struct kvm_userspace_memory_region *)argument)->memory_size >= GUEST_RAM_BYTES)
		has_ram = 1;
	if (request == KVM_RUN && atomic_exchange(&has_ram, 0))
		end();
	return next(fd, request, argument);
}

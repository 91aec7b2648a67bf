// SPDX-License-Identifier: Apache-2.0
/*
 * Discarding ranges of memory, with nothing else in the way.
 *
 * Each function frees `count` ranges of this process's private anonymous memory with
 * MADV_DONTNEED and returns 0 or an errno. They do the same work in the three ways a VMM has:
 *
 *   discard_batched   process_madvise(2) on this process, 1024 ranges a call (the kernel takes no
 *                     more), if there are several. One call takes at most 2 GiB and returns how
 *                     far it got. Kernels before 6.15 refuse it: then as the next.
 *   discard_per_run   one madvise(2) a range
 *   discard_per_page  one madvise(2) a page of 4 KiB, as QEMU's balloon does
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#ifndef SYS_process_madvise
#define SYS_process_madvise 440
#endif
#ifndef PIDFD_SELF_THREAD
#define PIDFD_SELF_THREAD -10000 /* <linux/pidfd.h>, Linux 6.15 */
#endif

enum { PAGE_BYTES = 4096, MOST_RANGES = 1024 };

int discard_per_run(const struct iovec *ranges, size_t count)
{
	for (size_t i = 0; i < count; i++)
		if (madvise(ranges[i].iov_base, ranges[i].iov_len, MADV_DONTNEED))
			return errno;
	return 0;
}

int discard_per_page(const struct iovec *ranges, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		char *page = ranges[i].iov_base;

		for (char *end = page + ranges[i].iov_len; page < end; page += PAGE_BYTES)
			if (madvise(page, PAGE_BYTES, MADV_DONTNEED))
				return errno;
	}
	return 0;
}

/* Returns how many ranges from the first on are done; a half-done one is done again. */
static size_t discard_batch(const struct iovec *ranges, size_t count)
{
	size_t done = 0;
	long got = syscall(SYS_process_madvise, PIDFD_SELF_THREAD, ranges,
			   count < MOST_RANGES ? count : MOST_RANGES, MADV_DONTNEED, 0);

	while (got > 0 && done < count && (size_t)got >= ranges[done].iov_len)
		got -= ranges[done++].iov_len;
	return done;
}

int discard_batched(const struct iovec *ranges, size_t count)
{
	int error = 0;

	while (count && !error) {
		size_t done = count > 1 ? discard_batch(ranges, count) : 0;

		if (!done) { /* refused, larger than 2 GiB, or only one */
			error = discard_per_run(ranges, 1);
			done = 1;
		}
		ranges += done;
		count -= done;
	}
	return error;
}

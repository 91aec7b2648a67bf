// SPDX-License-Identifier: Apache-2.0
/*
 * Giving ranges of memory back to the kernel, with nothing else in the way.
 *
 * Each function frees `count` ranges of this process's private anonymous memory with
 * MADV_DONTNEED and returns 0 or an errno. They do the same work in the three ways a VMM has:
 *
 *   discard_best      process_madvise(2) on ourselves, 1024 ranges a call (the kernel takes no
 *                     more), where it is quicker: that is, for more than a few ranges. One call
 *                     takes at most 2 GiB and says how far it got. Kernels before 6.13 refuse it.
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

#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif
#ifndef SYS_process_madvise
#define SYS_process_madvise 440
#endif

enum { PAGE_BYTES = 4096, MOST_RANGES = 1024, FEW_RANGES = 4 };

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
static size_t discard_batch(int pidfd, const struct iovec *ranges, size_t count)
{
	size_t done = 0;
	long got = syscall(SYS_process_madvise, pidfd, ranges,
			   count < MOST_RANGES ? count : MOST_RANGES, MADV_DONTNEED, 0);

	while (got > 0 && done < count && (size_t)got >= ranges[done].iov_len)
		got -= ranges[done++].iov_len;
	return done;
}

int discard_best(const struct iovec *ranges, size_t count)
{
	int pidfd, error = 0;
	size_t done = 0, got;

	if (count <= FEW_RANGES)
		return discard_per_run(ranges, count);
	pidfd = syscall(SYS_pidfd_open, getpid(), 0);
	while (done < count && !error) {
		got = discard_batch(pidfd, ranges + done, count - done);
		if (!got) { /* refused, or a range of more than 2 GiB */
			error = discard_per_run(ranges + done, 1);
			got = 1;
		}
		done += got;
	}
	close(pidfd);
	return error;
}

// SPDX-License-Identifier: Apache-2.0
/*
 * fragment RUN: leave a guest's free memory in runs of RUN pages, each as far from the next.
 *
 * Maps nearly all available memory in pages of 4 KiB, looks up their frames in /proc/self/pagemap,
 * and returns the pages in every second aligned run of RUN frames to the kernel. Every page that stays
 * is locked: the kernel then neither moves nor swaps it (with vm.compact_unevictable_allowed 0).
 * Then it prints "free FRAMES"; the memory is whole again once it is killed.
 *
 * From then on it prints the balloon driver's counters, a line "NAME:VALUE ...", whenever pages have
 * been inflated or deflated; the peak of the encoder is that since the line before. A shell cannot
 * read them: to start a process, the kernel needs some pages in a row, and moves pages of the balloon
 * to get them, which the driver counts, too.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE_BYTES 4096u
#define RESERVE_BYTES (UINT64_C(24) << 20) /* left free, besides the kernel's own reserve */
#define ENTRIES 4096u
#define FRAME_MASK ((UINT64_C(1) << 55) - 1) /* Documentation/admin-guide/mm/pagemap.rst */

#define COUNTERS "/sys/module/virtio_balloon_times/parameters/"
#define POLL_US 10000

#define PEAK "encoder_peak_bytes"

/* The first one of each direction changes with every round. */
static const char *const counters[2][5] = {
	{ "inflate_pages", "inflate_total_ns", "inflate_alloc_ns", "inflate_tell_ns",
	  "inflate_messages" },
	{ "deflate_pages", "deflate_total_ns", "deflate_free_ns", "deflate_tell_ns",
	  "deflate_messages" },
};

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static uint64_t available_bytes(void)
{
	char line[128];
	uint64_t kib = 0;
	FILE *file = fopen("/proc/meminfo", "r");

	while (file && fgets(line, sizeof(line), file))
		if (sscanf(line, "MemAvailable: %" SCNu64, &kib) == 1)
			break;
	if (!kib)
		fail("/proc/meminfo");
	fclose(file);
	return kib << 10;
}

static void release(char *memory, uint64_t first, uint64_t end)
{
	if (first < end && madvise(memory + first * PAGE_BYTES, (end - first) * PAGE_BYTES,
				   MADV_DONTNEED))
		fail("madvise");
}

/* Release every second run of `run` frames behind the `pages` pages; return how many. */
static uint64_t release_runs(char *memory, uint64_t pages, uint64_t run)
{
	static uint64_t entries[ENTRIES];
	uint64_t released = 0;
	int file = open("/proc/self/pagemap", O_RDONLY);

	if (file < 0)
		fail("/proc/self/pagemap");
	for (uint64_t first = 0; first < pages; first += ENTRIES) {
		uint64_t count = pages - first < ENTRIES ? pages - first : ENTRIES;
		uint64_t begin = 0; /* of pages to be released together */
		off_t at = ((uintptr_t)memory / PAGE_BYTES + first) * sizeof(*entries);

		if (pread(file, entries, count * sizeof(*entries), at) !=
		    (ssize_t)(count * sizeof(*entries)))
			fail("pread");
		for (uint64_t i = 0; i < count; i++) {
			if ((entries[i] & FRAME_MASK) / run % 2 == 0) {
				released++;
				continue;
			}
			release(memory, first + begin, first + i);
			begin = i + 1;
		}
		release(memory, first + begin, first + count);
	}
	close(file);
	return released;
}

static int open_counter(const char *name, int flags)
{
	char path[128];
	int file;

	snprintf(path, sizeof(path), COUNTERS "%s", name);
	file = open(path, flags);
	if (file < 0)
		fail(path);
	return file;
}

static uint64_t counter(const char *name)
{
	char text[32] = "";
	int file = open_counter(name, O_RDONLY);

	if (read(file, text, sizeof(text) - 1) < 0)
		fail(name);
	close(file);
	return strtoull(text, NULL, 10);
}

static void reset_peak(void)
{
	int file = open_counter(PEAK, O_WRONLY);

	if (write(file, "0", 1) != 1)
		fail(PEAK);
	close(file);
}

static void print_counters_on_change(void)
{
	uint64_t printed[2] = { 0, 0 };

	for (;; usleep(POLL_US)) {
		for (int direction = 0; direction < 2; direction++) {
			uint64_t pages = counter(counters[direction][0]);

			if (pages == printed[direction])
				continue;
			printed[direction] = pages;
			for (int i = 0; i < 5; i++)
				printf("%s:%" PRIu64 " ", counters[direction][i],
				       counter(counters[direction][i]));
			printf(PEAK ":%" PRIu64 "\n", counter(PEAK));
			fflush(stdout);
			reset_peak();
		}
	}
}

int main(int argc, char **argv)
{
	uint64_t run = argc == 2 ? strtoull(argv[1], NULL, 0) : 0;
	uint64_t bytes = available_bytes();
	uint64_t released;
	char *memory;

	if (!run || bytes <= RESERVE_BYTES)
		return 1;
	bytes = (bytes - RESERVE_BYTES) / PAGE_BYTES * PAGE_BYTES;
	memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (memory == MAP_FAILED)
		fail("mmap");
	if (madvise(memory, bytes, MADV_NOHUGEPAGE))
		fail("MADV_NOHUGEPAGE");
	for (uint64_t at = 0; at < bytes; at += PAGE_BYTES)
		memory[at] = 1;
	released = release_runs(memory, bytes / PAGE_BYTES, run);
	if (syscall(SYS_mlock2, memory, bytes, MLOCK_ONFAULT))
		fail("mlock2");
	printf("free %" PRIu64 "\n", released);
	fflush(stdout);
	print_counters_on_change();
}

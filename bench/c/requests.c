// SPDX-License-Identifier: Apache-2.0
// A virtqueue (VIRTIO 1.2, 2.7, with EVENT_IDX) whose requests each name one page to discard.
//
// `requests_drive` is the driver, for this device and for pyvmm's. The device is the least that a
// VMM in C does: wait on an eventfd, check and copy each request, discard its page, return the
// buffer, and write to the interrupt's eventfd if the driver expects that.
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <stdint.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { PAGE_BYTES = 4096, PAGE_DISTANCE = 2 * PAGE_BYTES, DATA_BYTES = 16, IDLE_US = 100 };
static const int64_t TIMEOUT_NS = 10000000000;

struct desc {
	uint64_t addr;
	uint32_t len;
	uint16_t flags, next;
};

struct queue {
	uint8_t *ram; // host address of RAM, which starts at 0
	uint64_t ram_bytes;
	uint64_t desc, avail, used; // addresses in RAM
	uint64_t data; // of the requests, DATA_BYTES each
	uint64_t pages; // that they name, PAGE_DISTANCE apart
	uint32_t size;
	int kick, irq, stop; // eventfds
	uint16_t added, taken; // the driver's indices
	uint16_t next_avail, next_used; // the device's
};

static int64_t now_ns(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static uint16_t *avail_ring(const struct queue *q)
{
	return (uint16_t *)(q->ram + q->avail); // flags, idx, elements, used_event
}

static uint16_t *used_ring(const struct queue *q)
{
	return (uint16_t *)(q->ram + q->used); // flags, idx, elements of 8 bytes, avail_event
}

static uint16_t *avail_event(const struct queue *q)
{
	return used_ring(q) + 2 + 4 * q->size;
}

static uint16_t load(const uint16_t *field)
{
	return __atomic_load_n(field, __ATOMIC_ACQUIRE);
}

static void store(uint16_t *field, uint16_t value)
{
	__atomic_store_n(field, value, __ATOMIC_RELEASE);
}

static void signal_eventfd(int fd)
{
	uint64_t one = 1;
	ssize_t done = write(fd, &one, sizeof(one));

	(void)done;
}

static int drain_eventfd(int fd)
{
	uint64_t count;

	return read(fd, &count, sizeof(count)) == sizeof(count);
}

// Makes `count` buffers available, each with the number of a page that was just written to.
void requests_add(struct queue *q, uint32_t count)
{
	struct desc *table = (struct desc *)(q->ram + q->desc);

	for (uint32_t i = 0; i < count; i++) {
		uint32_t slot = (uint16_t)(q->added + i) % q->size;
		uint64_t page = q->pages + slot * PAGE_DISTANCE, data = q->data + slot * DATA_BYTES;
		uint32_t pfn = page / PAGE_BYTES;

		q->ram[page] = 1;
		memcpy(q->ram + data, &pfn, sizeof(pfn));
		table[slot] = (struct desc){ .addr = data, .len = sizeof(pfn) };
		avail_ring(q)[2 + slot] = slot;
	}
	q->added += count;
	store(avail_ring(q) + 1, q->added);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
}

// Takes back the buffers that the device has returned, with the interrupt; returns how many.
uint32_t requests_take(struct queue *q)
{
	uint16_t taken = load(used_ring(q) + 1) - q->taken;

	q->taken += taken;
	store(avail_ring(q) + 2 + q->size, q->taken); // used_event
	drain_eventfd(q->irq);
	return taken;
}

static int wait_until(const uint16_t *field, uint16_t value)
{
	int64_t begin = now_ns();

	while (load(field) != value) {
		sched_yield(); // to the device, if both have one processor
		if (now_ns() - begin > TIMEOUT_NS)
			return 0;
	}
	return 1;
}

// Sends `times` batches of `buffers`; writes the nanoseconds of each, from the notification to the
// last used element, to `ns`. Returns 0, or ETIMEDOUT if the device does not answer.
int requests_drive(struct queue *q, uint32_t buffers, uint32_t times, int64_t *ns)
{
	for (uint32_t i = 0; i < times; i++) {
		int64_t begin;

		if (!wait_until(avail_event(q), q->added))
			return ETIMEDOUT;
		usleep(IDLE_US);
		requests_add(q, buffers);
		begin = now_ns();
		signal_eventfd(q->kick);
		if (!wait_until(used_ring(q) + 1, q->added))
			return ETIMEDOUT;
		ns[i] = now_ns() - begin;
		requests_take(q);
	}
	return 0;
}

static int serve_one(struct queue *q)
{
	uint16_t head = avail_ring(q)[2 + q->next_avail % q->size];
	struct desc desc;
	uint32_t pfn;
	uint64_t page;
	uint32_t *element = (uint32_t *)(used_ring(q) + 2) + 2 * (q->next_used % q->size);

	if (head >= q->size)
		return EINVAL;
	desc = ((struct desc *)(q->ram + q->desc))[head];
	if (desc.flags || desc.len != sizeof(pfn) || desc.addr > q->ram_bytes - sizeof(pfn))
		return EINVAL;
	memcpy(&pfn, q->ram + desc.addr, sizeof(pfn));
	page = (uint64_t)pfn * PAGE_BYTES;
	if (page >= q->ram_bytes)
		return EINVAL;
	if (madvise(q->ram + page, PAGE_BYTES, MADV_DONTNEED))
		return errno;
	element[0] = head;
	element[1] = 0;
	q->next_avail++;
	store(used_ring(q) + 1, ++q->next_used);
	return 0;
}

// Serves the buffers that are available; returns 0 or an errno.
int requests_serve(struct queue *q)
{
	uint16_t before = q->next_used, used_event;

	do {
		while (load(avail_ring(q) + 1) != q->next_avail) {
			int error = serve_one(q);

			if (error)
				return error;
		}
		store(avail_event(q), q->next_avail);
		__atomic_thread_fence(__ATOMIC_SEQ_CST);
	} while (load(avail_ring(q) + 1) != q->next_avail);
	used_event = load(avail_ring(q) + 2 + q->size);
	if ((uint16_t)(q->next_used - used_event - 1) < (uint16_t)(q->next_used - before))
		signal_eventfd(q->irq);
	return 0;
}

// Serves the queue whenever `kick` is readable, until `stop` is; returns 0 or an errno.
int requests_loop(struct queue *q)
{
	int fds[] = { q->kick, q->stop }, epoll = epoll_create1(EPOLL_CLOEXEC), error = 0;

	for (int i = 0; i < 2; i++) {
		struct epoll_event event = { .events = EPOLLIN, .data.fd = fds[i] };

		epoll_ctl(epoll, EPOLL_CTL_ADD, fds[i], &event);
	}
	while (!error) {
		struct epoll_event event;

		if (epoll_wait(epoll, &event, 1, -1) != 1)
			continue;
		if (event.data.fd == q->stop)
			break;
		if (drain_eventfd(q->kick))
			error = requests_serve(q);
	}
	close(epoll);
	return error;
}

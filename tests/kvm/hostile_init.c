// SPDX-License-Identifier: Apache-2.0
/*
 * An init process that unbinds the balloon's driver and attacks the device.
 *
 * It maps the BARs of the device through sysfs and finds the physical addresses of its own pages in
 * /proc/self/pagemap. Then it performs pseudorandom accesses from a seed: registers, broken rings,
 * valid and invalid requests, storms of notifications, MSI-X changes and BAR moves, and resets at
 * any time, while a second process rewrites rings and requests that are in flight. At the end it
 * restores the device, rebinds the driver and executes the ordinary init.
 *
 *     rdinit=/hostile hostile.seed=1 hostile.accesses=1500 hostile.bitmap=0
 *
 * It attacks the device, not itself. All addresses that the device may write to or discard are its
 * own pages or no RAM; this also holds for any mixture of old and new values of two fields, because
 * the second process writes at any time. So a change of memory that it never named is an error of
 * the device.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define DEVICE "/sys/bus/pci/devices/0000:00:01.0/"
#define DRIVER "/sys/bus/pci/drivers/virtio-pci/"
#define SLOT_NAME "0000:00:01.0"

enum {
	PAGE = 4096,
	QUEUES = 6, /* more than exist */
	RING = 16,  /* descriptors of a ring: one page holds all three parts */
	PAYLOADS = 8,
	VICTIMS = 32,
	PAGES = QUEUES + PAYLOADS + VICTIMS,
	WITNESS_BYTES = 16 << 20,
	BAR0_BYTES = 0x4000,
	BAR2_BYTES = 0x1000,
	AVAIL = 0x400, /* offset in a ring's page */
	USED = 0x800,
	DESC_NEXT = 1,
	DESC_WRITE = 2,
};

struct desc {
	uint64_t addr;
	uint32_t len;
	uint16_t flags, next;
};

static volatile uint8_t *bar0, *bar2;
static uint8_t *arena; /* PAGES pages shared with the second process */
static uint64_t phys[PAGES];
static int config;
static int bitmap;
static uint64_t state;
static unsigned long accesses, resets, requests;

static uint64_t rnd(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state;
}

static uint64_t below(uint64_t n)
{
	return rnd() % n;
}

static int rarely(uint64_t n)
{
	return below(n) == 0;
}

static void die(const char *what)
{
	printf("hostile: %s: %s\n", what, strerror(errno));
	exit(1); /* the kernel panics, and the test sees it */
}

static int put(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);
	int ok = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);

	if (fd >= 0)
		close(fd);
	return ok ? 0 : -1;
}

/* Registers. */

static uint64_t get(unsigned int offset, unsigned int size)
{
	volatile void *at = bar0 + offset;

	accesses++;
	switch (size) {
	case 1: return *(volatile uint8_t *)at;
	case 2: return *(volatile uint16_t *)at;
	case 4: return *(volatile uint32_t *)at;
	default: return *(volatile uint64_t *)at;
	}
}

static void set(unsigned int offset, unsigned int size, uint64_t value)
{
	volatile void *at = bar0 + offset;

	accesses++;
	switch (size) {
	case 1: *(volatile uint8_t *)at = value; break;
	case 2: *(volatile uint16_t *)at = value; break;
	case 4: *(volatile uint32_t *)at = value; break;
	default: *(volatile uint64_t *)at = value; break;
	}
}

static void set_config(unsigned int offset, unsigned int size, uint32_t value)
{
	accesses++;
	if (pwrite(config, &value, size, offset) != (ssize_t)size)
		die("write to configuration space");
}

/* An address outside RAM: the hole, beyond the end, wrapping around; aligned for the caller. */
static uint64_t nowhere(uint64_t align)
{
	static const uint64_t bases[] = {
		0xc0000000, 0xfee00000, 1ULL << 40, 1ULL << 52, 1ULL << 63, ~0ULL - 0xffff,
	};
	return (bases[below(6)] + below(0x10000)) & ~(align - 1);
}

/* Rings and requests. */

static struct desc *descs(int queue)
{
	return (struct desc *)(arena + queue * PAGE);
}

static uint16_t *avail(int queue)
{
	return (uint16_t *)(arena + queue * PAGE + AVAIL);
}

static volatile uint16_t *used(int queue)
{
	return (volatile uint16_t *)(arena + queue * PAGE + USED);
}

static int payload_page(void)
{
	return QUEUES + below(PAYLOADS);
}

static uint64_t victim_pfn(unsigned int victim)
{
	return phys[QUEUES + PAYLOADS + victim] / PAGE;
}

/*
 * Write a request that names victims, or noise. The device may be reading the previous request at
 * the same address, so any mixture of words must be harmless: PFNs are, and a bitmap request of a
 * page always names the same victim, by one bit of eight bytes. (A discarded victim holds zeros;
 * page 0, which they name, is one that no kernel uses.)
 */
static void write_request(int page)
{
	uint32_t *words = (uint32_t *)(arena + page * PAGE);
	uint64_t pfn = victim_pfn(page - QUEUES);
	int i;

	if (!bitmap) {
		for (i = 0; i < 16; i++)
			words[i] = below(3) ? victim_pfn(below(VICTIMS)) : 0xfffffff0 + below(16);
		return;
	}
	words[0] = below(8) ? 12 << 16 : below(2) ? below(12) << 16 : 31 << 16 | below(4);
	words[1] = below(8) ? 0 : below(3);
	words[2] = below(4);
	words[3] = 0;
	*(uint64_t *)(words + 4) = pfn & ~63ULL;
	*(uint64_t *)(words + 6) = below(8) ? 8 : below(2) ? 7 : 1ULL << (20 + below(44));
	*(uint64_t *)(words + 8) = 1ULL << (pfn & 63);
}

/*
 * Even descriptors name at most one of our pages, odd ones no RAM, in all their fields: a mixture
 * of two descriptors at one position is as harmless as either.
 */
static void write_desc(int queue, int index)
{
	struct desc *desc = descs(queue) + index;
	int page = payload_page();

	if (index & 1) {
		desc->addr = nowhere(1);
		desc->len = rnd() >> below(32);
	} else if (below(3)) {
		desc->addr = phys[page];
		desc->len = bitmap ? (below(2) ? 40 : PAGE) : 4 * below(17);
	} else {
		desc->addr = phys[QUEUES + PAYLOADS + below(VICTIMS)];
		desc->len = PAGE;
	}
	/* A victim read as a request holds its pattern, which names no RAM. */
	desc->flags = !rarely(64) ? below(4) ? 0 : DESC_WRITE : below(8);
	desc->next = !rarely(64) ? below(RING / 2) * 2 : below(65536);
}

static void write_head(int queue, int slot)
{
	avail(queue)[2 + slot] = !rarely(512) ? below(RING / 2) * 2 : below(65536);
}

static void scribble(void)
{
	for (;;) {
		int queue = below(QUEUES);

		if (rarely(512)) /* leave processor time to others */
			usleep(200);

		write_desc(queue, below(RING));
		write_head(queue, below(RING));
		write_request(payload_page());
		if (rarely(64)) /* make up to a ring of buffers available */
			avail(queue)[1] = used(queue)[1] + below(RING);
	}
}

static void start(void)
{
	int queue;

	resets++;
	set(0x14, 1, 0);
	set(0x14, 1, 3);
	for (queue = 0; queue < 2; queue++) {
		uint32_t bits;

		set(0x00, 4, queue);
		bits = get(0x04, 4);
		if (!queue && !below(4))
			bits &= rnd() | 0xa; /* required by the bitmap dialect */
		set(0x08, 4, queue);
		set(0x0c, 4, below(64) ? bits : rnd());
	}
	set(0x14, 1, 11);
	for (queue = 0; queue < QUEUES; queue++) {
		uint64_t gpa = phys[queue];

		memset(avail(queue), 0, USED - AVAIL);
		set(0x16, 2, queue);
		set(0x18, 2, RING);
		memset((void *)used(queue), 0, PAGE - USED);
		set(0x20, 8, !rarely(256) ? gpa : nowhere(below(2) ? 1 : 16));
		set(0x28, 8, !rarely(256) ? gpa + AVAIL : nowhere(2));
		set(0x30, 8, !rarely(256) ? gpa + USED : nowhere(4));
		set(0x1a, 2, below(8));
		set(0x1c, 2, 1);
	}
	set(0x14, 1, 15);
}

static void kick(int queue)
{
	set(0x3000 + 4 * queue, 2, queue);
}

static void send_requests(void)
{
	int queue = below(QUEUES), count = 1 + below(RING), i;

	for (i = 0; i < RING; i++) {
		write_request(payload_page());
		write_desc(queue, i);
		write_head(queue, i);
	}
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	avail(queue)[1] = used(queue)[1] + (!rarely(64) ? (unsigned int)count : below(65536));
	requests += count;
	kick(queue);
}

/* Access anything but the ring addresses, which must stay valid, with any size. */
static void poke_registers(void)
{
	static const unsigned int bases[] = {0, 0x1000, 0x2000, 0x3000};
	unsigned int size = 1 << below(4);
	unsigned int offset = bases[below(4)] + below(0x44);

	if (below(2)) {
		get(offset, size);
		return;
	}
	if (offset + size > 0x20 && offset < 0x38)
		offset = 0x38;
	set(offset, size, below(2) ? below(16) : rnd());
}

static void poke_window(void)
{
	/* The capability of the window is found by its type. */
	uint8_t at, type;

	for (pread(config, &at, 1, 0x34); at; pread(config, &at, 1, at + 1)) {
		pread(config, &type, 1, at + 3);
		if (type == 5)
			break;
	}
	if (!at)
		return;
	set_config(at + 4, 1, below(4) ? 0 : rnd());
	set_config(at + 8, 4, below(4) ? 0x1000 * below(4) + below(0x20) : rnd());
	set_config(at + 12, 4, below(4) ? 1U << below(3) : rnd());
	if (below(2))
		pread(config, &type, 1, at + 16 + below(4));
	else if (below(2))
		set_config(at + 16, 4, rnd());
}

/* MSI-X messages use harmless vectors only. */
static void rewrite_messages(int count)
{
	uint16_t control = 1 << 15 | below(2) << 14;
	uint8_t at;

	for (pread(config, &at, 1, 0x34); at; pread(config, &at, 1, at + 1)) {
		uint8_t id;

		pread(config, &id, 1, at);
		if (id == 0x11)
			break;
	}
	set_config(at + 2, 2, control);
	while (count--) {
		volatile uint32_t *entry = (volatile uint32_t *)bar2 + 4 * below(8);

		accesses += 4;
		entry[0] = 0xfee00000;
		entry[1] = 0;
		entry[2] = 0x70 + below(16);
		entry[3] = below(4) == 0;
	}
	set_config(at + 2, 2, below(2) ? control : 0);
}

static void move_bars(int count)
{
	uint32_t bar, high;

	pread(config, &bar, 4, 0x10);
	pread(config, &high, 4, 0x14);
	while (count--) {
		set_config(0x10, 4, below(2) ? bar + 0x100000 * below(8) : (uint32_t)rnd());
		set_config(0x14, 4, below(2) ? high : (uint32_t)rnd());
		set_config(0x04, 2, 0x400 | below(8));
		get(0x14, 1);
	}
	set_config(0x10, 4, bar);
	set_config(0x14, 4, high);
	set_config(0x04, 2, 0x406);
}

static void storm(void)
{
	int i, kind = below(4), queue = below(QUEUES);

	for (i = 0; i < 100; i++) {
		if (kind == 0)
			kick(queue);
		else if (kind == 1)
			set(0x2004, 4, rnd()); /* actual */
		else if (kind == 2)
			get(0x1000, 1);
		else
			set(0x14, 1, below(2) ? 0 : rnd());
	}
}

static void act(void)
{
	switch (below(16)) {
	case 0: case 1: start(); break;
	case 2: case 3: case 4: case 5: case 6: case 7: send_requests(); break;
	case 8: case 9: case 10: poke_registers(); break;
	case 11: poke_window(); break;
	case 12: rewrite_messages(1 + below(20)); break;
	case 13: if (!below(4)) move_bars(1 + below(10)); break;
	case 14: if (!below(4)) storm(); break;
	default:
		set(0x16, 2, below(QUEUES));
		set(0x3a, 2, 1); /* queue_reset */
	}
}

/* Memory. */

static uint64_t physical(int pagemap, void *at)
{
	uint64_t entry;

	if (pread(pagemap, &entry, 8, (uintptr_t)at / PAGE * 8) != 8 || !(entry >> 63))
		die("pagemap");
	return (entry & ((1ULL << 55) - 1)) * PAGE;
}

static void find_pages(int again)
{
	int pagemap = open("/proc/self/pagemap", O_RDONLY), i;

	for (i = 0; i < PAGES; i++) {
		uint64_t now = physical(pagemap, arena + i * PAGE);

		if (again && now != phys[i]) {
			printf("hostile: the kernel moved our pages\n");
			exit(1);
		}
		phys[i] = now;
	}
	close(pagemap);
}

static uint64_t *make_witness(void)
{
	uint64_t *witness = malloc(WITNESS_BYTES), i;

	for (i = 0; i < WITNESS_BYTES / 8; i++)
		witness[i] = i * 0x9e3779b97f4a7c15;
	return witness;
}

static unsigned long changed(const uint64_t *witness)
{
	unsigned long count = 0;
	uint64_t i;

	for (i = 0; i < WITNESS_BYTES / 8; i++)
		count += witness[i] != i * 0x9e3779b97f4a7c15;
	return count;
}

static unsigned long option(const char *name, unsigned long otherwise)
{
	static char line[4096];
	int fd = open("/proc/cmdline", O_RDONLY);
	ssize_t got = read(fd, line, sizeof(line) - 1);
	char *at;

	close(fd);
	line[got > 0 ? got : 0] = 0;
	at = strstr(line, name);
	return at ? strtoul(at + strlen(name), NULL, 0) : otherwise;
}

static void *map(const char *path, size_t size)
{
	int fd = open(path, O_RDWR);
	void *at = fd < 0 ? MAP_FAILED : mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (at == MAP_FAILED)
		die(path);
	return at;
}

static void take_device(void)
{
	mount("proc", "/proc", "proc", 0, NULL);
	mount("sysfs", "/sys", "sysfs", 0, NULL);
	if (put(DRIVER "unbind", SLOT_NAME) || put(DEVICE "enable", "1"))
		die("unbind");
	config = open(DEVICE "config", O_RDWR);
	set_config(0x04, 2, 0x406); /* memory, bus mastering, no INTx */
	bar0 = map(DEVICE "resource0", BAR0_BYTES);
	bar2 = map(DEVICE "resource2", BAR2_BYTES);
	arena = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE,
		     MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE | MAP_LOCKED, -1, 0);
	if (arena == MAP_FAILED)
		die("arena");
	memset(arena, 0xff, PAGES * PAGE);
	find_pages(0);
}

static void give_back_device(void)
{
	set(0x14, 1, 0);
	rewrite_messages(0);
	find_pages(1);
	put(DEVICE "enable", "0");
	if (put(DRIVER "bind", SLOT_NAME))
		die("bind");
}

int main(void)
{
	unsigned long enough;
	uint64_t *witness;
	pid_t child;

	setbuf(stdout, NULL);
	take_device();
	state = 0x9e3779b97f4a7c15 * (1 + option("hostile.seed=", 1));
	enough = option("hostile.accesses=", 1500);
	bitmap = option("hostile.bitmap=", 0);
	witness = make_witness();
	printf("hostile: begins\n");
	child = fork();
	if (child == 0) {
		state *= 3;
		scribble();
	}
	while (accesses < enough)
		act();
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	set_config(0x04, 2, 0x406);
	give_back_device();
	printf("hostile: done accesses %lu resets %lu requests %lu changed %lu\n", accesses, resets,
	       requests, changed(witness));
	free(witness);
	umount("/sys");
	umount("/proc");
	execl("/init", "/init", NULL);
	die("/init");
}

// SPDX-License-Identifier: Apache-2.0
/*
 * Threads that change and verify memory in the background.
 *
 * Churning: one thread per CPU, bound to it, of n threads takes every n-th page in turn. A page of
 * generation g holds the pattern of seed + g; every word is compared right before the page is
 * rewritten as generation g + 1. The expected generation is not stored in the page, so a lost or
 * stale page is found. The clock is read after each page: no CPU may read a time earlier than one
 * that another CPU has already read.
 *
 * Writing: one thread changes one word of each page in turn, at the requested number of pages per
 * second, and verifies the word that it wrote in the previous round. It does not catch up on writes
 * that it missed while it did not run.
 */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <time.h>
#include <unistd.h>

#include "page_pattern.h"

#define MAX_WORKERS 64
#define PACE_NS 5000000 /* period of the writer */

struct worker {
	pthread_t thread;
	uint64_t first_page; /* and every `worker_count`-th after that */
	uint64_t next_page, generation;
	_Atomic uint64_t pages, rounds, wrong;
};

static struct {
	enum { IDLE, CHURNING, WRITING } mode;
	uint64_t *memory, pages;
	uint64_t seed;
	uint64_t pages_per_s;
	int64_t began_ns;
	unsigned int worker_count;
	struct worker workers[MAX_WORKERS];
	atomic_bool stop;
	_Atomic int64_t clock_seen_ns, longest_step_ns, longest_backward_ns;
} background;

static int64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

static void raise_to(_Atomic int64_t *greatest, int64_t value)
{
	int64_t seen = atomic_load(greatest);

	while (seen < value && !atomic_compare_exchange_weak(greatest, &seen, value))
		;
}

/* Compare the clock with a value that some thread had read before this call began. */
static void check_clock(void)
{
	int64_t seen = atomic_load(&background.clock_seen_ns), now = now_ns();

	raise_to(&background.longest_backward_ns, seen - now);
	raise_to(&background.longest_step_ns, now - seen);
	raise_to(&background.clock_seen_ns, now);
}

static uint64_t *page_at(uint64_t page)
{
	return background.memory + page * WORDS_PER_PAGE;
}

/* Go to the next page of `worker`; after its last page, to the next round. */
static void advance(struct worker *worker)
{
	atomic_fetch_add(&worker->pages, 1);
	worker->next_page += background.worker_count;
	if (worker->next_page >= background.pages) {
		worker->next_page = worker->first_page;
		worker->generation++;
		atomic_fetch_add(&worker->rounds, 1);
	}
}

static void *churn(void *argument)
{
	struct worker *worker = argument;
	cpu_set_t own;

	CPU_ZERO(&own);
	CPU_SET(worker->first_page, &own);
	sched_setaffinity(0, sizeof(own), &own); /* optional: any CPU will do */
	while (!atomic_load(&background.stop)) {
		uint64_t page = worker->next_page, seed = background.seed + worker->generation;
		uint64_t wrong = wrong_bytes(page_at(page), mix(seed, page));

		atomic_fetch_add(&worker->wrong, wrong);
		fill_page(page_at(page), mix(seed + 1, page));
		advance(worker);
		check_clock();
	}
	return NULL;
}

static void write_one(struct worker *worker)
{
	volatile uint64_t *word = page_at(worker->next_page);
	uint64_t old = mix(worker->generation, worker->next_page);

	if (worker->generation)
		atomic_fetch_add(&worker->wrong, differing_bytes(*word ^ old));
	*word = mix(worker->generation + 1, worker->next_page);
	advance(worker);
}

static void *write_at_a_rate(void *argument)
{
	struct worker *worker = argument;
	double owed = 0; /* pages */
	int64_t looked = now_ns();

	while (!atomic_load(&background.stop)) {
		struct timespec pause = { 0, PACE_NS };
		int64_t now;

		check_clock();
		now = now_ns();
		owed += (double)background.pages_per_s * (now - looked) / 1e9;
		looked = now;
		if (owed > background.pages_per_s / 10.)
			owed = background.pages_per_s / 10.;
		for (; owed >= 1 && !atomic_load(&background.stop); owed--)
			write_one(worker);
		nanosleep(&pause, NULL);
	}
	return NULL;
}

/* Start `count` threads that run `work` on `pages` pages at `memory`; false on failure. */
static bool start_background(uint64_t *memory, uint64_t pages, unsigned int count,
			     void *(*work)(void *))
{
	background.memory = memory;
	background.pages = pages;
	background.began_ns = now_ns();
	background.clock_seen_ns = background.began_ns;
	background.longest_step_ns = background.longest_backward_ns = 0;
	background.stop = false;
	background.worker_count = count;
	for (unsigned int i = 0; i < count; i++) {
		struct worker *worker = &background.workers[i];

		*worker = (struct worker){ .first_page = i, .next_page = i };
		if (pthread_create(&worker->thread, NULL, work, worker)) {
			background.stop = true;
			while (i--)
				pthread_join(background.workers[i].thread, NULL);
			return false;
		}
	}
	return true;
}

static bool start_churning(uint64_t *memory, uint64_t pages, uint64_t seed)
{
	long processors = sysconf(_SC_NPROCESSORS_ONLN);

	for (uint64_t page = 0; page < pages; page++)
		fill_page(memory + page * WORDS_PER_PAGE, mix(seed, page));
	background.seed = seed;
	if (processors < 1 || processors > MAX_WORKERS)
		processors = 1;
	if (!start_background(memory, pages, processors, churn))
		return false;
	background.mode = CHURNING;
	return true;
}

static bool start_writing(uint64_t *memory, uint64_t pages, uint64_t bytes_per_s)
{
	background.pages_per_s = bytes_per_s / PAGE_BYTES;
	if (!start_background(memory, pages, 1, write_at_a_rate))
		return false;
	background.mode = WRITING;
	return true;
}

/* Stop all threads; after churning, compare every page a last time. */
static void stop_background(void)
{
	background.stop = true;
	for (unsigned int i = 0; i < background.worker_count; i++)
		pthread_join(background.workers[i].thread, NULL);
	for (unsigned int i = 0; background.mode == CHURNING && i < background.worker_count; i++) {
		struct worker *worker = &background.workers[i];

		for (uint64_t page = i; page < background.pages; page += background.worker_count) {
			uint64_t seed = background.seed + worker->generation;

			worker->wrong += wrong_bytes(page_at(page),
						     mix(seed + (page < worker->next_page), page));
			worker->pages++;
		}
	}
	background.mode = IDLE;
}

struct figures {
	uint64_t pages, rounds, wrong; /* rounds: of the slowest thread */
	int64_t ns, longest_step_ns, longest_backward_ns;
};

static struct figures background_figures(void)
{
	struct figures sum = { .rounds = UINT64_MAX, .ns = now_ns() - background.began_ns };

	for (unsigned int i = 0; i < background.worker_count; i++) {
		struct worker *worker = &background.workers[i];
		uint64_t rounds = worker->rounds;

		sum.pages += worker->pages;
		sum.wrong += worker->wrong;
		sum.rounds = rounds < sum.rounds ? rounds : sum.rounds;
	}
	sum.longest_step_ns = background.longest_step_ns;
	sum.longest_backward_ns = background.longest_backward_ns;
	return sum;
}

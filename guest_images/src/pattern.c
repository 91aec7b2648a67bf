// SPDX-License-Identifier: Apache-2.0
/*
 * pattern: allocate guest memory, fill it with a known pattern and count wrong bytes.
 *
 * Commands come one per line on standard input, or all at once as arguments:
 *
 *   alloc MIB     map MIB mebibytes and touch every page of them
 *   grab MIB      the same, without checking first that so much memory is free
 *   thin N        return all pages but one in N to the kernel
 *   fill SEED     write the pattern of SEED over all of it
 *   verify SEED   compare with the pattern of SEED: "ok verified BYTES wrong N"
 *   free          free the memory
 *   churn SEED    fill it, then rewrite it in a loop, on every processor, and compare each word
 *                 before it is rewritten (background.h)
 *   write MB_S    change one word in each page in turn, MB_S * 1,000,000 bytes of pages a second;
 *                 their pattern is lost
 *   report        figures of `churn` or `write` so far: "ok rounds N bytes N wrong N kb_per_s N
 *                 step_us N backward_us N". The last two are of CLOCK_MONOTONIC: the longest time
 *                 between two readings, and how far it has ever gone backwards
 *   stop          end `churn` or `write`, compare all churned memory a last time, and report
 *   beat MS       print "beat N", N = 1, 2 ..., every MS milliseconds
 *   meminfo       "ok total_kib T free_kib F available_kib A", from /proc/meminfo
 *   shell COMMAND "ok STATUS OUTPUT": the output of the shell, with its newlines as "\n" and its
 *                 backslashes as "\\"; COMMAND is the rest of the line
 *   quit          end (so does end of input)
 *
 * Every command gets exactly one reply line that begins with "ok " or "error ". As arguments
 * ("pattern alloc 100 fill 7 verify 7 free") the first error ends the run; the exit status is 1
 * after an error or a wrong byte, else 0. On standard input the status is always 0: the replies
 * carry the result. Commands that change or compare memory fail while the background changes it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "background.h"

#define MAX_MIB (UINT64_C(1) << 24)
#define MAX_MB_PER_S 1000000
#define MAX_BEAT_MS 1000000
#define MAX_LINE 1024

static uint64_t *memory;
static uint64_t memory_bytes;
static uint64_t every = 1; /* only pages whose number is a multiple of it are kept */
static uint64_t wrong_bytes_seen;

struct command {
	const char *name;
	enum { NOTHING, NUMBER, TEXT } takes;
	bool (*run)(uint64_t number, const char *text);
};

static bool reply(bool ok, const char *format, ...)
{
	va_list arguments;

	flockfile(stdout); /* no heartbeat in the middle of a reply */
	fputs(ok ? "ok " : "error ", stdout);
	va_start(arguments, format);
	vprintf(format, arguments);
	va_end(arguments);
	putchar('\n');
	fflush(stdout);
	funlockfile(stdout);
	return ok;
}

/* Return whether memory is allocated and not changing; if not, reply with an error. */
static bool memory_is_idle(void)
{
	if (!memory)
		return reply(false, "nothing is allocated");
	if (background.mode != IDLE)
		return reply(false, "memory is changing in the background; stop that first");
	return true;
}

/* Value in KiB of one "Name:   123 kB" line of /proc/meminfo. */
static bool meminfo_kib(const char *name, uint64_t *kib)
{
	char line[128];
	size_t length = strlen(name);
	bool found = false;
	FILE *file = fopen("/proc/meminfo", "r");

	if (!file)
		return false;
	while (!found && fgets(line, sizeof(line), file))
		if (!strncmp(line, name, length) && line[length] == ':')
			found = sscanf(line + length + 1, "%" SCNu64, kib) == 1;
	fclose(file);
	return found;
}

/* Touch every page now, so that the host's memory behind it exists before anything is measured. */
static void touch_all(void)
{
	volatile uint64_t *words = memory;

#ifdef MADV_POPULATE_WRITE
	if (!madvise(memory, memory_bytes, MADV_POPULATE_WRITE))
		return;
#endif
	for (uint64_t i = 0; i < memory_bytes / sizeof(*words); i += WORDS_PER_PAGE)
		words[i] = 0;
}

static bool do_grab(uint64_t mib, const char *text)
{
	void *mapped;

	(void)text;

	if (memory)
		return reply(false, "%" PRIu64 " MiB are allocated already", memory_bytes >> 20);
	if (!mib || mib > MAX_MIB)
		return reply(false, "cannot allocate %" PRIu64 " MiB", mib);
	mapped = mmap(NULL, mib << 20, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (mapped == MAP_FAILED)
		return reply(false, "mmap of %" PRIu64 " MiB: %s", mib, strerror(errno));
	memory = mapped;
	memory_bytes = mib << 20;
	every = 1;
	touch_all();
	return reply(true, "allocated %" PRIu64 " MiB", mib);
}

/* Linux overcommits memory and kills later; check first, to reply with an error instead. */
static bool do_alloc(uint64_t mib, const char *text)
{
	uint64_t available_kib;

	if (!memory && mib <= MAX_MIB && meminfo_kib("MemAvailable", &available_kib) &&
	    available_kib < mib << 10)
		return reply(false, "%" PRIu64 " MiB requested, %" PRIu64 " MiB available", mib,
			     available_kib >> 10);
	return do_grab(mib, text);
}

static uint64_t pages_kept(void)
{
	uint64_t pages = memory_bytes / PAGE_BYTES;

	return (pages + every - 1) / every;
}

/* Leave single pages between holes; pages of a huge page are freed only when it is split. */
static bool do_thin(uint64_t number, const char *text)
{
	char *bytes = (char *)memory;

	(void)text;
	if (!memory_is_idle())
		return false;
	if (every != 1 || number < 2 || number > memory_bytes / PAGE_BYTES)
		return reply(false, "cannot keep one page in %" PRIu64, number);
	for (uint64_t page = 0; page < memory_bytes / PAGE_BYTES; page++)
		if (page % number)
			madvise(bytes + page * PAGE_BYTES, PAGE_BYTES, MADV_DONTNEED);
	every = number;
	return reply(true, "kept %" PRIu64, pages_kept() * PAGE_BYTES);
}

static bool do_fill(uint64_t seed, const char *text)
{
	(void)text;
	if (!memory_is_idle())
		return false;
	for (uint64_t page = 0; page < memory_bytes / PAGE_BYTES; page += every)
		fill_page(memory + page * WORDS_PER_PAGE, mix(seed, page));
	return reply(true, "filled %" PRIu64, pages_kept() * PAGE_BYTES);
}

static bool do_verify(uint64_t seed, const char *text)
{
	uint64_t wrong = 0;

	(void)text;
	if (!memory_is_idle())
		return false;
	for (uint64_t page = 0; page < memory_bytes / PAGE_BYTES; page += every)
		wrong += wrong_bytes(memory + page * WORDS_PER_PAGE, mix(seed, page));
	wrong_bytes_seen += wrong;
	return reply(true, "verified %" PRIu64 " wrong %" PRIu64, pages_kept() * PAGE_BYTES, wrong);
}

static bool do_free(uint64_t number, const char *text)
{
	uint64_t mib = memory_bytes >> 20;

	(void)number, (void)text;
	if (!memory_is_idle())
		return false;
	munmap(memory, memory_bytes);
	memory = NULL;
	memory_bytes = 0;
	return reply(true, "freed %" PRIu64 " MiB", mib);
}

/* Both need all pages, so `thin` must not have freed any. */
static bool can_start(void)
{
	if (!memory_is_idle())
		return false;
	return every == 1 || reply(false, "only one page in %" PRIu64 " was kept", every);
}

static bool do_churn(uint64_t seed, const char *text)
{
	(void)text;
	if (!can_start())
		return false;
	if (!start_churning(memory, memory_bytes / PAGE_BYTES, seed))
		return reply(false, "no threads: %s", strerror(errno));
	return reply(true, "churning by %u", background.worker_count);
}

static bool do_write(uint64_t mb_per_s, const char *text)
{
	(void)text;
	if (!can_start())
		return false;
	if (!mb_per_s || mb_per_s > MAX_MB_PER_S)
		return reply(false, "cannot write %" PRIu64 " MB/s", mb_per_s);
	if (!start_writing(memory, memory_bytes / PAGE_BYTES, mb_per_s * 1000000))
		return reply(false, "no threads: %s", strerror(errno));
	return reply(true, "writing %" PRIu64 " MB/s", mb_per_s);
}

static bool report(struct figures all)
{
	uint64_t bytes = all.pages * PAGE_BYTES;

	return reply(true,
		     "rounds %" PRIu64 " bytes %" PRIu64 " wrong %" PRIu64 " kb_per_s %.0f"
		     " step_us %" PRId64 " backward_us %" PRId64,
		     all.rounds, bytes, all.wrong, bytes / (all.ns / 1e6 + 1e-6),
		     all.longest_step_ns / 1000, (all.longest_backward_ns + 999) / 1000);
}

static bool do_report(uint64_t number, const char *text)
{
	(void)number, (void)text;
	if (background.mode == IDLE)
		return reply(false, "nothing is running in the background");
	return report(background_figures());
}

static bool do_stop(uint64_t number, const char *text)
{
	struct figures all;

	(void)number, (void)text;
	if (background.mode == IDLE)
		return reply(false, "nothing is running in the background");
	stop_background();
	all = background_figures();
	wrong_bytes_seen += all.wrong;
	return report(all);
}

static void *beat(void *argument)
{
	uint64_t ms = (uintptr_t)argument;
	struct timespec pause = { ms / 1000, ms % 1000 * 1000000 };

	for (uint64_t number = 1;; number++) {
		nanosleep(&pause, NULL);
		flockfile(stdout);
		printf("beat %" PRIu64 "\n", number);
		fflush(stdout);
		funlockfile(stdout);
	}
	return NULL;
}

static bool do_beat(uint64_t ms, const char *text)
{
	static bool beats;
	pthread_t thread;

	(void)text;
	if (beats)
		return reply(false, "the heartbeat is already running");
	if (!ms || ms > MAX_BEAT_MS)
		return reply(false, "cannot beat every %" PRIu64 " ms", ms);
	if (pthread_create(&thread, NULL, beat, (void *)(uintptr_t)ms))
		return reply(false, "no thread: %s", strerror(errno));
	beats = true;
	return reply(true, "every %" PRIu64 " ms", ms);
}

static bool do_meminfo(uint64_t number, const char *text)
{
	uint64_t total, free_, available;

	(void)number, (void)text;
	if (!meminfo_kib("MemTotal", &total) || !meminfo_kib("MemFree", &free_) ||
	    !meminfo_kib("MemAvailable", &available))
		return reply(false, "/proc/meminfo cannot be read");
	return reply(true, "total_kib %" PRIu64 " free_kib %" PRIu64 " available_kib %" PRIu64,
		     total, free_, available);
}

/* The status is the shell's: 128 + N for a command that signal N killed. */
static bool do_shell(uint64_t number, const char *text)
{
	char *script, *escaped = NULL;
	size_t length = 0;
	int status = -1;
	FILE *from = NULL, *to = open_memstream(&escaped, &length);

	(void)number;
	if (asprintf(&script, "exec 2>&1; %s", text) >= 0) {
		from = popen(script, "r");
		free(script);
	}
	if (to && from) {
		for (int c = getc(from); c != EOF; c = getc(from)) {
			if (c == '\n' || c == '\\')
				putc('\\', to);
			putc(c == '\n' ? 'n' : c, to);
		}
	}
	if (from)
		status = pclose(from);
	if (!to || fclose(to) || status < 0) {
		free(escaped);
		return reply(false, "the shell cannot be run: %s", strerror(errno));
	}
	status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
	reply(true, "%d %s", status, escaped);
	free(escaped);
	return true;
}

static bool do_quit(uint64_t number, const char *text)
{
	(void)number, (void)text;
	reply(true, "bye");
	exit(wrong_bytes_seen != 0);
}

static const struct command commands[] = {
	{ "alloc", NUMBER, do_alloc },	  { "grab", NUMBER, do_grab },
	{ "thin", NUMBER, do_thin },	  { "fill", NUMBER, do_fill },
	{ "verify", NUMBER, do_verify },  { "free", NOTHING, do_free },
	{ "churn", NUMBER, do_churn },	  { "write", NUMBER, do_write },
	{ "report", NOTHING, do_report }, { "stop", NOTHING, do_stop },
	{ "beat", NUMBER, do_beat },	  { "meminfo", NOTHING, do_meminfo },
	{ "shell", TEXT, do_shell },
	{ "quit", NOTHING, do_quit },
};

static const struct command *find_command(const char *name)
{
	for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
		if (!strcmp(commands[i].name, name))
			return &commands[i];
	reply(false, "unknown command '%s'", name);
	return NULL;
}

/* `argument` is NULL if there is none. */
static bool run_command(const struct command *command, const char *argument)
{
	uint64_t number = 0;
	char *end;

	if ((command->takes != NOTHING) != (argument != NULL))
		return reply(false, "%s takes %s", command->name,
			     command->takes == NOTHING ? "no argument" :
			     command->takes == NUMBER  ? "a number" :
							 "a command");
	if (command->takes == NUMBER) {
		errno = 0;
		number = strtoull(argument, &end, 0);
		if (errno || *end || argument[0] < '0' || argument[0] > '9')
			return reply(false, "'%s' is not a number", argument);
	}
	return command->run(number, argument);
}

static void run_line(char *line)
{
	const struct command *command;
	char *name = strtok(line, " \t\r\n");
	char *rest = name ? strtok(NULL, "\r\n") : NULL;

	if (!name)
		return;
	if (rest)
		rest += strspn(rest, " \t");
	for (size_t end = rest ? strlen(rest) : 0; end && strchr(" \t", rest[end - 1]); end--)
		rest[end - 1] = '\0';
	command = find_command(name);
	if (command)
		run_command(command, rest && *rest ? rest : NULL);
}

static int run_arguments(char **tokens, int count)
{
	for (int i = 0; i < count;) {
		const struct command *command = find_command(tokens[i++]);
		const char *argument = NULL;

		if (!command)
			return 1;
		if (command->takes != NOTHING && i < count)
			argument = tokens[i++];
		if (!run_command(command, argument))
			return 1;
	}
	return wrong_bytes_seen != 0;
}

int main(int argc, char **argv)
{
	char line[MAX_LINE];

	if (argc > 1)
		return run_arguments(argv + 1, argc - 1);
	while (fgets(line, sizeof(line), stdin)) {
		if (!strchr(line, '\n') && !feof(stdin)) {
			for (int c = getchar(); c != '\n' && c != EOF; c = getchar())
				;
			reply(false, "line too long");
			continue;
		}
		run_line(line);
	}
	return 0;
}

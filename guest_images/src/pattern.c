// SPDX-License-Identifier: Apache-2.0
/*
 * pattern: hold guest memory, fill it with a known pattern and count what changed.
 *
 * Commands come one per line on standard input, or all at once as arguments:
 *
 *   alloc MIB     map MIB mebibytes and touch every page of them
 *   fill SEED     write the pattern of SEED over all of it
 *   verify SEED   compare with the pattern of SEED: "ok verified BYTES wrong N"
 *   free          give the memory back
 *   meminfo       "ok total_kib T free_kib F available_kib A", from /proc/meminfo
 *   quit          end (so does end of input)
 *
 * Every command gets exactly one reply line that begins with "ok " or "error ". As arguments
 * ("pattern alloc 100 fill 7 verify 7 free") the first error ends the run; the exit status is 1
 * after an error or a wrong byte, else 0. On standard input the status is always 0: the replies
 * tell all.
 *
 * The pattern: 64-bit word i of page p is mix(seed, p) + i * WORD_STEP. A page that was lost (and
 * reads as zeroes), moved to another place or left over from another seed differs in nearly all
 * of its bytes, and one flipped bit is still one wrong byte.
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

#define PAGE_BYTES 4096u
#define WORDS_PER_PAGE (PAGE_BYTES / sizeof(uint64_t))
#define WORD_STEP UINT64_C(0x9e3779b97f4a7c15)
#define MAX_MIB (UINT64_C(1) << 24)
#define MAX_TOKENS 8

static uint64_t *memory;
static uint64_t memory_bytes;
static uint64_t wrong_bytes_seen;

struct command {
	const char *name;
	int arguments;
	bool (*run)(uint64_t argument);
};

static bool reply(bool ok, const char *format, ...)
{
	va_list arguments;

	fputs(ok ? "ok " : "error ", stdout);
	va_start(arguments, format);
	vprintf(format, arguments);
	va_end(arguments);
	putchar('\n');
	fflush(stdout);
	return ok;
}

/* The finaliser of MurmurHash3: every seed and page gives an unrelated first word. */
static uint64_t mix(uint64_t seed, uint64_t page)
{
	uint64_t x = seed * WORD_STEP ^ (page + 1) * UINT64_C(0xc2b2ae3d27d4eb4f);

	x = (x ^ x >> 33) * UINT64_C(0xff51afd7ed558ccd);
	x = (x ^ x >> 33) * UINT64_C(0xc4ceb9fe1a85ec53);
	return x ^ x >> 33;
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

static bool do_alloc(uint64_t mib)
{
	uint64_t available_kib;
	void *mapped;

	if (memory)
		return reply(false, "%" PRIu64 " MiB are allocated already", memory_bytes >> 20);
	if (!mib || mib > MAX_MIB)
		return reply(false, "cannot allocate %" PRIu64 " MiB", mib);
	/* Linux promises more than it has and kills later; ask first, for a reply instead. */
	if (meminfo_kib("MemAvailable", &available_kib) && available_kib < mib << 10)
		return reply(false, "%" PRIu64 " MiB asked for, %" PRIu64 " MiB available", mib,
			     available_kib >> 10);
	mapped = mmap(NULL, mib << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (mapped == MAP_FAILED)
		return reply(false, "mmap of %" PRIu64 " MiB: %s", mib, strerror(errno));
	memory = mapped;
	memory_bytes = mib << 20;
	touch_all();
	return reply(true, "allocated %" PRIu64 " MiB", mib);
}

static bool do_fill(uint64_t seed)
{
	if (!memory)
		return reply(false, "nothing is allocated");
	for (uint64_t page = 0; page < memory_bytes / PAGE_BYTES; page++) {
		uint64_t *word = memory + page * WORDS_PER_PAGE;
		uint64_t expected = mix(seed, page);

		for (unsigned int i = 0; i < WORDS_PER_PAGE; i++, expected += WORD_STEP)
			word[i] = expected;
	}
	return reply(true, "filled %" PRIu64, memory_bytes);
}

static unsigned int differing_bytes(uint64_t difference)
{
	unsigned int count = 0;

	for (; difference; difference >>= 8)
		count += (difference & 0xff) != 0;
	return count;
}

static bool do_verify(uint64_t seed)
{
	uint64_t wrong = 0;

	if (!memory)
		return reply(false, "nothing is allocated");
	for (uint64_t page = 0; page < memory_bytes / PAGE_BYTES; page++) {
		const uint64_t *word = memory + page * WORDS_PER_PAGE;
		uint64_t expected = mix(seed, page);

		for (unsigned int i = 0; i < WORDS_PER_PAGE; i++, expected += WORD_STEP)
			if (word[i] != expected)
				wrong += differing_bytes(word[i] ^ expected);
	}
	wrong_bytes_seen += wrong;
	return reply(true, "verified %" PRIu64 " wrong %" PRIu64, memory_bytes, wrong);
}

static bool do_free(uint64_t unused)
{
	uint64_t mib = memory_bytes >> 20;

	(void)unused;
	if (!memory)
		return reply(false, "nothing is allocated");
	munmap(memory, memory_bytes);
	memory = NULL;
	memory_bytes = 0;
	return reply(true, "freed %" PRIu64 " MiB", mib);
}

static bool do_meminfo(uint64_t unused)
{
	uint64_t total, free_, available;

	(void)unused;
	if (!meminfo_kib("MemTotal", &total) || !meminfo_kib("MemFree", &free_) ||
	    !meminfo_kib("MemAvailable", &available))
		return reply(false, "/proc/meminfo cannot be read");
	return reply(true, "total_kib %" PRIu64 " free_kib %" PRIu64 " available_kib %" PRIu64,
		     total, free_, available);
}

static bool do_quit(uint64_t unused)
{
	(void)unused;
	reply(true, "bye");
	exit(wrong_bytes_seen != 0);
}

static const struct command commands[] = {
	{ "alloc", 1, do_alloc }, { "fill", 1, do_fill },	{ "verify", 1, do_verify },
	{ "free", 0, do_free },	  { "meminfo", 0, do_meminfo }, { "quit", 0, do_quit },
};

static const struct command *find_command(const char *name)
{
	for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
		if (!strcmp(commands[i].name, name))
			return &commands[i];
	reply(false, "unknown command '%s'", name);
	return NULL;
}

static bool run_command(const struct command *command, char *const *tokens, int count)
{
	uint64_t argument = 0;
	char *end;

	if (count != command->arguments)
		return reply(false, "%s takes %d argument(s)", command->name, command->arguments);
	if (count) {
		errno = 0;
		argument = strtoull(tokens[0], &end, 0);
		if (errno || *end || tokens[0][0] < '0' || tokens[0][0] > '9')
			return reply(false, "'%s' is not a number", tokens[0]);
	}
	return command->run(argument);
}

static void run_line(char *line)
{
	const struct command *command;
	char *tokens[MAX_TOKENS];
	int count = 0;

	for (char *token = strtok(line, " \t\r\n"); token && count < MAX_TOKENS;
	     token = strtok(NULL, " \t\r\n"))
		tokens[count++] = token;
	if (!count)
		return;
	command = find_command(tokens[0]);
	if (command)
		run_command(command, tokens + 1, count - 1);
}

static int run_arguments(char **tokens, int count)
{
	for (int i = 0; i < count;) {
		const struct command *command = find_command(tokens[i++]);
		int taken;

		if (!command)
			return 1;
		taken = command->arguments < count - i ? command->arguments : count - i;
		if (!run_command(command, tokens + i, taken))
			return 1;
		i += taken;
	}
	return wrong_bytes_seen != 0;
}

int main(int argc, char **argv)
{
	char line[256];

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

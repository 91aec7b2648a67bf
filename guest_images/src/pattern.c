// SPDX-License-Identifier: Apache-2.0
/*
 * pattern: hold guest memory, fill it with a known pattern and count what changed.
 *
 * Commands come one per line on standard input, or all at once as arguments:
 *
 *   alloc MIB     map MIB mebibytes and touch every page of them
 *   grab MIB      the same, without asking first whether there is that much
 *   thin N        give back all pages of it but every N-th
 *   fill SEED     write the pattern of SEED over all of it
 *   verify SEED   compare with the pattern of SEED: "ok verified BYTES wrong N"
 *   free          give the memory back
 *   meminfo       "ok total_kib T free_kib F available_kib A", from /proc/meminfo
 *   shell COMMAND "ok STATUS OUTPUT": what the shell prints, with its newlines as "\n" and its
 *                 backslashes as "\\"; COMMAND is the rest of the line
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
#include <sys/wait.h>

#define PAGE_BYTES 4096u
#define WORDS_PER_PAGE (PAGE_BYTES / sizeof(uint64_t))
#define WORD_STEP UINT64_C(0x9e3779b97f4a7c15)
#define MAX_MIB (UINT64_C(1) << 24)
#define MAX_LINE 1024

static uint64_t *memory;
static uint64_t memory_bytes;
static uint64_t every = 1; /* page numbers that are no multiple of it were given back */
static uint64_t wrong_bytes_seen;

struct command {
	const char *name;
	enum { NOTHING, NUMBER, TEXT } takes;
	bool (*run)(uint64_t number, const char *text);
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

/* Linux promises more than it has and kills later; ask first, for a reply instead. */
static bool do_alloc(uint64_t mib, const char *text)
{
	uint64_t available_kib;

	if (!memory && mib <= MAX_MIB && meminfo_kib("MemAvailable", &available_kib) &&
	    available_kib < mib << 10)
		return reply(false, "%" PRIu64 " MiB asked for, %" PRIu64 " MiB available", mib,
			     available_kib >> 10);
	return do_grab(mib, text);
}

static uint64_t pages_kept(void)
{
	uint64_t pages = memory_bytes / PAGE_BYTES;

	return (pages + every - 1) / every;
}

/* Leaves holes of single pages behind; those within a huge page stay until that is split. */
static bool do_thin(uint64_t number, const char *text)
{
	char *bytes = (char *)memory;

	(void)text;
	if (!memory)
		return reply(false, "nothing is allocated");
	if (every != 1 || number < 2 || number > memory_bytes / PAGE_BYTES)
		return reply(false, "cannot keep every %" PRIu64 ". page", number);
	for (uint64_t page = 0; page < memory_bytes / PAGE_BYTES; page++)
		if (page % number)
			madvise(bytes + page * PAGE_BYTES, PAGE_BYTES, MADV_DONTNEED);
	every = number;
	return reply(true, "kept %" PRIu64, pages_kept() * PAGE_BYTES);
}

static bool do_fill(uint64_t seed, const char *text)
{
	(void)text;
	if (!memory)
		return reply(false, "nothing is allocated");
	for (uint64_t page = 0; page < memory_bytes / PAGE_BYTES; page += every) {
		uint64_t *word = memory + page * WORDS_PER_PAGE;
		uint64_t expected = mix(seed, page);

		for (unsigned int i = 0; i < WORDS_PER_PAGE; i++, expected += WORD_STEP)
			word[i] = expected;
	}
	return reply(true, "filled %" PRIu64, pages_kept() * PAGE_BYTES);
}

static unsigned int differing_bytes(uint64_t difference)
{
	unsigned int count = 0;

	for (; difference; difference >>= 8)
		count += (difference & 0xff) != 0;
	return count;
}

static bool do_verify(uint64_t seed, const char *text)
{
	uint64_t wrong = 0;

	(void)text;
	if (!memory)
		return reply(false, "nothing is allocated");
	for (uint64_t page = 0; page < memory_bytes / PAGE_BYTES; page += every) {
		const uint64_t *word = memory + page * WORDS_PER_PAGE;
		uint64_t expected = mix(seed, page);

		for (unsigned int i = 0; i < WORDS_PER_PAGE; i++, expected += WORD_STEP)
			if (word[i] != expected)
				wrong += differing_bytes(word[i] ^ expected);
	}
	wrong_bytes_seen += wrong;
	return reply(true, "verified %" PRIu64 " wrong %" PRIu64, pages_kept() * PAGE_BYTES, wrong);
}

static bool do_free(uint64_t number, const char *text)
{
	uint64_t mib = memory_bytes >> 20;

	(void)number, (void)text;
	if (!memory)
		return reply(false, "nothing is allocated");
	munmap(memory, memory_bytes);
	memory = NULL;
	memory_bytes = 0;
	return reply(true, "freed %" PRIu64 " MiB", mib);
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

/* A status as the shell counts: 128 + N for a command that was killed by signal N. */
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
	{ "meminfo", NOTHING, do_meminfo }, { "shell", TEXT, do_shell },
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

/* `argument` is NULL where there is none. */
static bool run_command(const struct command *command, const char *argument)
{
	uint64_t number = 0;
	char *end;

	if ((command->takes != NOTHING) != (argument != NULL))
		return reply(false, "%s takes %s", command->name,
			     command->takes == NOTHING ? "nothing" :
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

// SPDX-License-Identifier: Apache-2.0
/*
 * One command: started from a MSG_RUN, with its streams on virtio-console ports, until its end.
 *
 * The command leads a session of its own. Its streams are pipes, or one pseudo-terminal; the agent
 * copies between these and the ports. It has ended when its first process has: output that the
 * pipes then hold is still delivered, but processes that it leaves behind are not waited for.
 */
#ifndef AGENT_COMMAND_H
#define AGENT_COMMAND_H

#include "init.h"
#include "protocol.h"
#include "streams.h"

#include <signal.h>
#include <sys/ioctl.h>
#include <sys/types.h>
#include <termios.h>

#define MAX_COMMANDS 10
#define CONNECT_TIMEOUT_MS 2000
#define STREAMS 3

struct command {
	int used;
	uint16_t number;
	pid_t pid;
	int ended; /* the first process has been reaped */
	struct ended_message result;
	int terminal; /* master of its pseudo-terminal, or -1 */
	struct copy copies[STREAMS];
};

/* A failure between fork and exec, as the child reports it through a pipe. */
struct start_failure {
	uint32_t kind, error;
};

static struct command commands[MAX_COMMANDS];
static char port_prefix[64]; /* device names of ports without their number: "vport0p" */

static struct command *find_command(uint16_t number)
{
	for (int i = 0; i < MAX_COMMANDS; i++)
		if (commands[i].used && commands[i].number == number)
			return &commands[i];
	return NULL;
}

static uint32_t oom_kills(void)
{
	static const char key[] = "oom_kill ";
	char line[128];
	uint32_t count = 0;
	FILE *counters = fopen(OWN "/proc/vmstat", "re");

	while (counters && fgets(line, sizeof(line), counters))
		if (!strncmp(line, key, sizeof(key) - 1))
			count = strtoul(line + sizeof(key) - 1, NULL, 10);
	if (counters)
		fclose(counters);
	return count;
}

/* Open port `number`. The VMM's end of it may be announced a moment later, and until then the port
 * looks like one without a reader, so `to_port` waits for that. */
static int open_stream_port(unsigned int number, int to_port)
{
	char name[sizeof(port_prefix) + 16];
	struct pollfd state = { .events = POLLOUT };

	snprintf(name, sizeof(name), "%s%u", port_prefix, number);
	state.fd = open_port(name);
	for (int ms = 0; to_port && state.fd >= 0 && ms < CONNECT_TIMEOUT_MS; ms++) {
		state.revents = 0;
		poll(&state, 1, 0);
		if (!(state.revents & POLLHUP))
			break;
		sleep_ms(1);
	}
	return state.fd;
}

static void set_nonblocking(int fd)
{
	fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
}

static void set_size(int terminal, uint16_t rows, uint16_t columns)
{
	struct winsize size = { .ws_row = rows, .ws_col = columns };

	ioctl(terminal, TIOCSWINSZ, &size);
}

/* Make the pipes of a command: `inner` are its ends, `outer` the agent's. Returns 0 or an errno. */
static int make_pipes(int inner[STREAMS], int outer[STREAMS])
{
	int ends[2];

	for (int stream = 0; stream < STREAMS; stream++) {
		if (pipe2(ends, O_CLOEXEC))
			return errno;
		inner[stream] = ends[stream ? 1 : 0];
		outer[stream] = ends[stream ? 0 : 1];
		set_nonblocking(outer[stream]);
	}
	return 0;
}

/* Make a pseudo-terminal: its slave is every inner end. Returns 0 or an errno. */
static int make_terminal(const struct run_message *run, int inner[STREAMS], int outer[STREAMS])
{
	int unlocked = 0, master, slave;
	unsigned int number;
	char path[64];

	master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (master < 0 || ioctl(master, TIOCSPTLCK, &unlocked) || ioctl(master, TIOCGPTN, &number))
		return errno;
	snprintf(path, sizeof(path), "/dev/pts/%u", number);
	slave = open(path, O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (slave < 0)
		return errno;
	set_size(master, run->rows, run->columns);
	set_nonblocking(master);
	for (int stream = 0; stream < STREAMS; stream++)
		inner[stream] = slave;
	outer[0] = master;
	return 0;
}

static void fail_start(int report, uint32_t kind)
{
	struct start_failure failure = { kind, errno };

	if (write(report, &failure, sizeof(failure)) < 0)
		_exit(126);
	_exit(127);
}

/* Become the command: in the child, between fork and exec. */
static void __attribute__((noreturn))
exec_command(const struct run_message *run, const int inner[STREAMS], int report,
	     const char *directory, char **arguments, char **variables)
{
	sigset_t none;
	int fd;

	setsid();
	if (run->flags & RUN_TERMINAL)
		ioctl(inner[0], TIOCSCTTY, 0);
	for (int stream = 0; stream < STREAMS; stream++)
		dup2(inner[stream], stream); /* the agent's own 0 to 2 are open: none of `inner` is */
	signal(SIGPIPE, SIG_DFL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	fd = open(OWN "/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
	if (fd >= 0 && write(fd, "0", 1) == 1)
		close(fd);
	if (chdir(directory))
		fail_start(report, END_NO_DIRECTORY);
	environ = variables;
	execvp(arguments[0], arguments);
	fail_start(report, END_NOT_STARTED);
	_exit(127);
}

/* Start the process. Returns 0, or -1 with the reason in `command->result`. */
static int start_process(struct command *command, const struct run_message *run,
			 const int inner[STREAMS], const char *directory, char **arguments,
			 char **variables)
{
	struct start_failure failure;
	int report[2];
	ssize_t length;

	if (pipe2(report, O_CLOEXEC))
		return -1;
	command->pid = fork();
	if (!command->pid)
		exec_command(run, inner, report[1], directory, arguments, variables);
	close(report[1]);
	do
		length = command->pid < 0 ? 0 : read(report[0], &failure, sizeof(failure));
	while (length < 0 && errno == EINTR);
	close(report[0]);
	if (command->pid > 0 && length != sizeof(failure))
		return 0; /* closed by a successful exec */
	if (command->pid < 0)
		failure = (struct start_failure){ END_REFUSED, errno };
	command->result.kind = failure.kind;
	command->result.value = failure.error;
	command->pid = -1;
	return -1;
}

static void connect_pipes(struct command *command, const int outer[STREAMS],
			  const int ports[STREAMS])
{
	start_copy(&command->copies[0], ports[0], outer[0], 0, 0);
	for (int stream = 1; stream < STREAMS; stream++)
		start_copy(&command->copies[stream], outer[stream], ports[stream], 1, 0);
}

static void connect_terminal(struct command *command, int master, int port)
{
	command->terminal = fcntl(master, F_DUPFD_CLOEXEC, 0);
	start_copy(&command->copies[0], port, master, 0, 0);
	start_copy(&command->copies[1], fcntl(master, F_DUPFD_CLOEXEC, 0),
		   fcntl(port, F_DUPFD_CLOEXEC, 0), 1, 1);
}

static void close_all(int descriptors[STREAMS])
{
	for (int stream = 0; stream < STREAMS; stream++)
		if (descriptors[stream] >= 0)
			close(descriptors[stream]);
}

/* Run a command; a failure is a result, too, which the main loop reports. */
static void start_command(struct command *command, uint16_t number, const struct run_message *run,
			  const char *directory, char **arguments, char **variables)
{
	int inner[STREAMS] = { -1, -1, -1 }, outer[STREAMS] = { -1, -1, -1 };
	int ports[STREAMS] = { -1, -1, -1 };
	int terminal = run->flags & RUN_TERMINAL, error;

	*command = (struct command){ .used = 1, .number = number, .pid = -1, .terminal = -1 };
	for (int stream = 0; stream < STREAMS; stream++)
		start_copy(&command->copies[stream], -1, -1, 0, 0);
	command->result.oom_kills = oom_kills(); /* until the end: the count at the start */
	error = terminal ? make_terminal(run, inner, outer) : make_pipes(inner, outer);
	for (int stream = 0; stream < (terminal ? 1 : STREAMS) && !error; stream++) {
		ports[stream] = open_stream_port(run->port[stream], stream || terminal);
		if (ports[stream] < 0)
			error = errno;
	}
	if (error) {
		command->result.kind = END_REFUSED;
		command->result.value = error;
	}
	if (error || start_process(command, run, inner, directory, arguments, variables)) {
		close_all(outer);
		close_all(ports);
		command->ended = 1;
	} else if (terminal) {
		connect_terminal(command, outer[0], ports[0]);
	} else {
		connect_pipes(command, outer, ports);
	}
	if (terminal)
		inner[1] = inner[2] = -1; /* the same descriptor */
	close_all(inner);
}

/* Note the end of the first process, reaped with `status`. */
static void end_command(struct command *command, int status)
{
	command->ended = 1;
	command->result.kind = WIFEXITED(status) ? END_EXITED : END_SIGNALED;
	command->result.value = WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status);
	end_output(&command->copies[0]);
}

/* True once the command has ended and all its output has gone to the ports. */
static int command_finished(const struct command *command)
{
	int active = 0;

	for (int stream = 0; stream < STREAMS; stream++)
		active |= copy_active(&command->copies[stream]);
	return command->ended && !active;
}

#endif

// SPDX-License-Identifier: Apache-2.0
/*
 * agent: run commands for the VMM, each with streams of its own (see protocol.h).
 *
 * One loop waits for messages on the control port, for ends of processes and for data to copy. As
 * the first process it also sets the guest up, and reaps every orphan.
 *
 * agent archive PATH writes a tar archive of PATH to standard output (see archive.h).
 */
#define _GNU_SOURCE
#include "archive.h"
#include "command.h"

#include <sys/signalfd.h>
#include <sys/wait.h>

struct control {
	int fd;
	uint32_t received, sent, to_send;
	unsigned char message[sizeof(struct message_header) + MAX_PAYLOAD];
	unsigned char reply[64 * (sizeof(struct message_header) + sizeof(struct ended_message))];
};

static struct control control;

static void send_message(uint16_t type, uint16_t number, const void *payload, uint32_t length)
{
	struct message_header header = { length, type, number };

	if (control.to_send + sizeof(header) + length > sizeof(control.reply))
		die("the VMM takes no messages");
	memcpy(control.reply + control.to_send, &header, sizeof(header));
	memcpy(control.reply + control.to_send + sizeof(header), payload, length);
	control.to_send += sizeof(header) + length;
}

static void send_pending(void)
{
	ssize_t done = write(control.fd, control.reply + control.sent, control.to_send - control.sent);

	if (done > 0)
		control.sent += done;
	if (control.sent == control.to_send)
		control.sent = control.to_send = 0;
}

/* Take `count` strings from the payload at *text; NULL if it does not hold so many. */
static char **take_strings(char **text, char *end, unsigned int count)
{
	char **strings = calloc(count + 1, sizeof(*strings)), *stop;

	for (unsigned int i = 0; strings && i < count; i++) {
		stop = memchr(*text, 0, end - *text);
		if (!stop) {
			free(strings);
			return NULL;
		}
		strings[i] = *text;
		*text = stop + 1;
	}
	return strings;
}

static void run_command(uint16_t number, char *payload, uint32_t length)
{
	struct ended_message refused = { .kind = END_REFUSED, .value = EAGAIN };
	char *text = payload + sizeof(struct run_message), *end = payload + length;
	char **directory = NULL, **arguments = NULL, **variables = NULL;
	struct command *command = NULL;
	struct run_message run;

	for (int i = 0; i < MAX_COMMANDS && !command; i++)
		if (!commands[i].used)
			command = &commands[i];
	if (length >= sizeof(run)) {
		memcpy(&run, payload, sizeof(run));
		directory = take_strings(&text, end, 1);
		arguments = directory ? take_strings(&text, end, run.arguments) : NULL;
		variables = arguments ? take_strings(&text, end, run.variables) : NULL;
	}
	if (!variables || !run.arguments)
		refused.value = EINVAL;
	if (variables && run.arguments && command)
		start_command(command, number, &run, directory[0], arguments, variables);
	else
		send_message(MSG_ENDED, number, &refused, sizeof(refused));
	free(directory);
	free(arguments);
	free(variables);
}

static void handle_message(uint16_t type, uint16_t number, char *payload, uint32_t length)
{
	struct command *command = find_command(number);
	uint16_t size[2];
	struct hello_reply reply = { .version = PROTOCOL_VERSION };
	uint32_t signal_number;
	uint64_t input_end;

	if (type == MSG_HELLO && length == sizeof(reply.value)) {
		memcpy(&reply.value, payload, sizeof(reply.value));
		send_message(MSG_HELLO_REPLY, 0, &reply, sizeof(reply));
	} else if (type == MSG_RUN) {
		run_command(number, payload, length);
	} else if (type == MSG_SIGNAL && length == sizeof(signal_number)) {
		memcpy(&signal_number, payload, sizeof(signal_number));
		if (command && !command->ended)
			kill(-command->pid, signal_number);
	} else if (type == MSG_INPUT_END && length == sizeof(input_end)) {
		memcpy(&input_end, payload, sizeof(input_end));
		if (command && command->terminal < 0) {
			command->copies[0].input_end = input_end;
			check_input_end(&command->copies[0]);
		}
	} else if (type == MSG_RESIZE && length == sizeof(size)) {
		memcpy(size, payload, sizeof(size));
		if (command && command->terminal >= 0)
			set_size(command->terminal, size[0], size[1]);
	}
}

/* Handle every complete message that has arrived. */
static void receive_messages(void)
{
	struct message_header header;
	ssize_t done = read(control.fd, control.message + control.received,
			    sizeof(control.message) - control.received);
	uint32_t whole;

	if (done > 0)
		control.received += done;
	while (control.received >= sizeof(header)) {
		memcpy(&header, control.message, sizeof(header));
		if (header.length > MAX_PAYLOAD)
			die("a message of %u bytes", header.length);
		whole = sizeof(header) + header.length;
		if (control.received < whole)
			break;
		handle_message(header.type, header.command,
			       (char *)control.message + sizeof(header), header.length);
		control.received -= whole;
		memmove(control.message, control.message + whole, control.received);
	}
}

/* The VMM has closed its end, as after a migration: another one will start with a new message. That
 * one's first message may be here already, and the reply to it in the buffer, which is kept: every
 * VMM ignores replies to others. A message that is written in part is completed. */
static void lose_vmm(void)
{
	control.received = 0;
	sleep_ms(10);
}

static void reap(int signals)
{
	struct signalfd_siginfo info;
	int status;
	pid_t pid;

	while (read(signals, &info, sizeof(info)) == sizeof(info))
		;
	while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
		for (int i = 0; i < MAX_COMMANDS; i++)
			if (commands[i].used && commands[i].pid == pid && !commands[i].ended)
				end_command(&commands[i], status);
}

static void report_finished(void)
{
	for (int i = 0; i < MAX_COMMANDS; i++) {
		struct command *command = &commands[i];

		if (!command->used || !command_finished(command))
			continue;
		command->result.oom_kills = oom_kills() - command->result.oom_kills;
		for (int stream = 1; stream < STREAMS; stream++)
			command->result.written[stream - 1] = command->copies[stream].written;
		send_message(MSG_ENDED, command->number, &command->result, sizeof(command->result));
		if (command->terminal >= 0)
			close(command->terminal);
		command->used = 0;
	}
}

/* Serve the VMM; does not return. */
static void serve(int signals)
{
	struct pollfd waits[2 + MAX_COMMANDS * STREAMS];
	struct copy *waiting[MAX_COMMANDS * STREAMS];
	int ended[MAX_COMMANDS * STREAMS];

	for (;;) {
		int count = 0, timeout = -1;

		waits[0] = (struct pollfd){ control.fd, POLLIN | (control.to_send ? POLLOUT : 0), 0 };
		waits[1] = (struct pollfd){ signals, POLLIN, 0 };
		for (int i = 0; i < MAX_COMMANDS * STREAMS; i++) {
			struct command *command = &commands[i / STREAMS];
			struct copy *copy = &command->copies[i % STREAMS];

			if (!command->used || !copy_active(copy))
				continue;
			if (command->ended)
				timeout = 10;
			waits[2 + count] = copy_events(copy);
			waiting[count] = copy;
			ended[count++] = command->ended;
		}
		poll(waits, 2 + count, timeout);
		if (waits[0].revents & POLLHUP)
			lose_vmm();
		if (waits[0].revents & POLLOUT)
			send_pending();
		if (waits[0].revents & POLLIN)
			receive_messages();
		if (waits[1].revents)
			reap(signals);
		for (int i = 0; i < count; i++) {
			if (!waiting[i]->to_port && waits[2 + i].revents & POLLHUP)
				sleep_ms(1); /* poll(2) does not wait for the VMM to come back */
			if (waits[2 + i].revents || ended[i])
				advance_copy(waiting[i], waits[2 + i].revents, ended[i]);
		}
		report_finished();
	}
}

/* Wait for the control port. Beside another init the VMM need not have one: nothing is wrong then. */
static void connect_control(void)
{
	int only_init = getpid() == 1, pause_ms = only_init ? 1 : 100;
	char port[sizeof(port_prefix)];

	for (int ms = 0; !find_port(CONTROL_PORT, port, sizeof(port)); ms += pause_ms) {
		if (ms > PORT_TIMEOUT_MS) {
			if (!only_init)
				_exit(0);
			die("there is no virtio-console port " CONTROL_PORT);
		}
		sleep_ms(pause_ms);
	}
	control.fd = open_port(port);
	if (control.fd < 0)
		die("%s: %s", port, strerror(errno));
	memcpy(port_prefix, port, sizeof(port));
	*(strrchr(port_prefix, 'p') + 1) = 0;
}

static void ignore_oom(void)
{
	int fd = open(OWN "/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);

	if (fd < 0 || write(fd, "-1000", 5) != 5)
		fprintf(stderr, "pyvmm agent: oom_score_adj: %s\n", strerror(errno));
	if (fd >= 0)
		close(fd);
}

/* A kernel without a console opens no descriptors 0 to 2; streams of commands must not get them. */
static void open_standard_descriptors(void)
{
	int fd;

	do
		fd = open(OWN "/dev/null", O_RDWR);
	while (fd >= 0 && fd <= 2);
	if (fd > 2)
		close(fd);
}

static void set_up(void)
{
	char init[PATH_MAX];

	umask(022);
	mount_own();
	open_standard_descriptors();
	load_modules();
	if (!read_init(init, sizeof(init))) {
		mount_usual();
	} else if (fork()) {
		execv(init, (char *[]){ init, NULL });
		die("%s: %s", init, strerror(errno));
	}
}

int main(int argc, char **argv)
{
	sigset_t children;

	if (argc == 3 && !strcmp(argv[1], "archive"))
		return archive(argv[2]);
	set_up();
	ignore_oom();
	signal(SIGPIPE, SIG_IGN);
	sigemptyset(&children);
	sigaddset(&children, SIGCHLD);
	sigprocmask(SIG_BLOCK, &children, NULL);
	connect_control();
	serve(signalfd(-1, &children, SFD_NONBLOCK | SFD_CLOEXEC));
}

// SPDX-License-Identifier: Apache-2.0
/*
 * Copying between a virtio-console port and a command's pipe or terminal.
 *
 * A `struct copy` moves bytes in one direction with a buffer of its own. It reads only when the
 * buffer is empty, so a full pipe or a VMM that does not take data stops the other end, and nothing
 * grows. All descriptors are non-blocking.
 */
#ifndef AGENT_STREAMS_H
#define AGENT_STREAMS_H

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <time.h>
#include <unistd.h>

#define COPY_BYTES (32 * 1024) /* the most that the driver of the port writes at a time */
#define TERMINAL_LINGER_MS 100

struct copy {
	int from, to; /* -1: this direction is finished or unused */
	int to_port;
	int from_terminal;
	uint32_t begin, end;
	uint64_t taken, written; /* bytes read and written */
	uint64_t input_end;	 /* of input: its length, once it is known */
	int64_t idle_since_ms; /* when a terminal was first seen empty after the command's end */
	unsigned char buffer[COPY_BYTES];
};

static int64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000LL + now.tv_nsec / 1000000;
}

static void start_copy(struct copy *copy, int from, int to, int to_port, int from_terminal)
{
	copy->from = from;
	copy->to = to;
	copy->to_port = to_port;
	copy->from_terminal = from_terminal;
	copy->begin = copy->end = 0;
	copy->taken = copy->written = 0;
	copy->input_end = UINT64_MAX;
	copy->idle_since_ms = 0;
}

static int copy_active(const struct copy *copy)
{
	return copy->from >= 0 || copy->to >= 0;
}

static void end_input(struct copy *copy)
{
	if (copy->from >= 0)
		close(copy->from);
	copy->from = -1;
}

static void end_output(struct copy *copy)
{
	end_input(copy);
	if (copy->to >= 0)
		close(copy->to);
	copy->to = -1;
	copy->begin = copy->end = 0;
}

/* Say what the copy waits for. */
static struct pollfd copy_events(const struct copy *copy)
{
	if (copy->begin < copy->end)
		return (struct pollfd){ .fd = copy->to, .events = POLLOUT };
	return (struct pollfd){ .fd = copy->from, .events = POLLIN };
}

/* Write the buffer; returns 1 if something moved. A port without a host end drops its data. */
static int copy_out(struct copy *copy)
{
	ssize_t done = write(copy->to, copy->buffer + copy->begin, copy->end - copy->begin);

	if (done < 0) {
		if (errno == EAGAIN || errno == EINTR)
			return 0;
		end_output(copy); /* EPIPE: there is no reader */
		return 1;
	}
	copy->begin += done;
	copy->written += done;
	if (copy->begin < copy->end)
		return done > 0;
	copy->begin = copy->end = 0;
	if (copy->from < 0)
		end_output(copy);
	return 1;
}

/* End input whose last byte has been passed on. */
static void check_input_end(struct copy *copy)
{
	if (!copy->to_port && copy->taken >= copy->input_end && copy->begin == copy->end)
		end_output(copy);
}

/* Nothing can be read. After the command's end that is the end of its output, except that a
 * terminal passes data on a little later. */
static void copy_empty(struct copy *copy, int command_ended)
{
	if (!command_ended || !copy->to_port)
		return;
	if (copy->from_terminal) {
		if (!copy->idle_since_ms)
			copy->idle_since_ms = now_ms();
		if (now_ms() - copy->idle_since_ms < TERMINAL_LINGER_MS)
			return;
	}
	end_output(copy);
}

/* Fill the empty buffer; returns 1 if something moved. */
static int copy_in(struct copy *copy, int command_ended)
{
	ssize_t done = read(copy->from, copy->buffer, COPY_BYTES);

	if (done < 0 && (errno == EAGAIN || errno == EINTR)) {
		copy_empty(copy, command_ended);
		return 0;
	}
	if (!done && !copy->to_port)
		return 0; /* the VMM has not opened its end yet, or is being replaced */
	if (done <= 0) { /* EIO: the last process has closed the terminal */
		end_output(copy);
		return 1;
	}
	copy->idle_since_ms = 0;
	copy->end = done;
	copy->taken += done;
	return 1;
}

/* Move what can be moved, up to two buffers, so that copies take turns. `events` are what poll(2)
 * reported: POLLHUP on a port says that the VMM has closed its end, after which writers block. */
static void advance_copy(struct copy *copy, short events, int command_ended)
{
	if (copy->to_port && copy->begin < copy->end && events & POLLHUP)
		end_output(copy);
	for (int turns = 0; turns < 4 && copy_active(copy); turns++)
		if (!(copy->begin < copy->end ? copy_out(copy) : copy_in(copy, command_ended)))
			break;
	check_input_end(copy);
}

#endif

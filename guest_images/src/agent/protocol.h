// SPDX-License-Identifier: Apache-2.0
/*
 * Messages between the guest agent and the VMM, over the virtio-console port "pyvmm.agent".
 *
 * Both sides send messages: a header, then `length` bytes of payload. Numbers are little-endian and
 * packed, strings end with a NUL. A command's data does not travel here: each of its streams has a
 * virtio-console port, whose flow control it uses. docs/reference/protocols/agent.md is the
 * specification, pyvmm/agent/messages.py the other implementation.
 */
#ifndef AGENT_PROTOCOL_H
#define AGENT_PROTOCOL_H

#include <stdint.h>

#define CONTROL_PORT "pyvmm.agent"
#define PROTOCOL_VERSION 1
#define MAX_PAYLOAD (160 * 1024) /* ARG_MAX of a small kernel is 128 KiB */

enum message_type {
	/* from the VMM */
	MSG_RUN = 1,	/* struct run_message, then strings: directory, arguments, environment */
	MSG_SIGNAL = 2, /* uint32_t signal number, for the command's process group */
	MSG_RESIZE = 3, /* uint16_t rows, columns of the command's terminal */
	MSG_HELLO = 4,	/* uint64_t, any value: asks whether the agent runs */
	MSG_INPUT_END = 5, /* uint64_t: length of the whole input, which ends there */
	/* from the agent */
	MSG_HELLO_REPLY = 16, /* struct hello_reply: the answer to MSG_HELLO */
	MSG_ENDED = 17,	  /* struct ended_message: the last one about this command */
};

struct message_header {
	uint32_t length; /* of the payload */
	uint16_t type;
	uint16_t command; /* chosen by the VMM, unique among running commands */
} __attribute__((packed));

struct hello_reply {
	uint32_t version;
	uint64_t value; /* of the MSG_HELLO */
} __attribute__((packed));

#define RUN_TERMINAL 1u /* one terminal for all streams, on the port of standard input */

struct run_message {
	uint32_t flags;
	uint16_t rows, columns;
	uint16_t port[3]; /* virtio-console port numbers of standard input, output and error */
	uint16_t arguments, variables;
} __attribute__((packed));

enum end_kind {
	END_EXITED = 0,      /* value: exit status */
	END_SIGNALED = 1,    /* value: signal */
	END_NOT_STARTED = 2, /* value: errno of execve or of the step before it */
	END_NO_DIRECTORY = 3, /* value: errno of chdir */
	END_REFUSED = 4,     /* value: errno; the agent cannot run it: no such port, too many */
};

struct ended_message {
	uint32_t kind, value;
	uint32_t oom_kills; /* processes that the OOM killer ended while the command ran */
	uint64_t written[2]; /* bytes written to the ports of standard output and error */
} __attribute__((packed));

#endif

# SPDX-License-Identifier: Apache-2.0
"""The control socket: QEMU's machine protocol, QMP, over a unix socket.

From the bottom up: `json_stream` finds messages in a stream of bytes, `qmp` gives them their
meaning, `commands` is the table of what can be asked of a machine, `session` is one client's
conversation, `server` connects sessions to sockets and to the machine's events. `client` and `cli`
are the other end. Everything on the machine's side runs on one asyncio event loop.
"""

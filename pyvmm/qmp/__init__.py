# SPDX-License-Identifier: Apache-2.0
"""The control socket: QEMU's machine protocol, QMP, over a unix socket.

The codec consists of `json_stream`, which finds messages in a stream of bytes, and `messages`; both
are independent of the rest. A `command` declares its parameters and documents itself. `commands` is
the table of all; they are in `vm_commands`, `guest_request_commands`, `migration_commands`,
`snapshot_commands` and `qom`, and act on the VM through the Protocol in `vm_control`. `session` is
one client's state and `connection` its socket; `server` accepts clients and sends them the VM's
events, which `event_throttle` limits. `client` is the other end, for the command line.
"""

# SPDX-License-Identifier: Apache-2.0
"""The host's side of the guest's consoles and ports.

`writer` writes output to a descriptor from a thread of its own. `ports` are the ports of the
console device for callers outside the device lock; `writer_host` and `socket_host` connect one to
a `ConsoleWriter` and to the clients of a unix socket.
"""

# SPDX-License-Identifier: Apache-2.0
"""Names of the console's ports and their number; imports nothing, to check a configuration quickly.

In a Linux guest a port is `/dev/vportXpN`, where udev adds the link `/dev/virtio-ports/NAME`. So a
name is a file name.
"""

from __future__ import annotations

MAX_PORTS = 32
"""Most ports of a device, port 0 included."""
MAX_NAME_BYTES = 64
"""Longest name of a port, in UTF-8."""
CONSOLE_NAME = "console"
"""Name of port 0, the console."""


def is_port_name(name: str) -> bool:
    """Return whether a port may have this name: a file name of at most `MAX_NAME_BYTES` bytes."""
    printable = name.isprintable() and not any(each.isspace() for each in name)
    plain = printable and "/" not in name and name not in (".", "..")
    return plain and 0 < len(name.encode(errors="replace")) <= MAX_NAME_BYTES

# SPDX-License-Identifier: Apache-2.0
"""Feature bits and configuration space of the console (VIRTIO 1.2, 5.3.3 and 5.3.4).

`cols` and `rows` are the size of the console on port 0, in characters, 0 if it is not known.
`max_nr_ports` is one more than the highest number of a port. `emerg_wr` does not exist, as
EMERG_WRITE is not offered: the serial port has the first output of a kernel, and a driver that
writes one character after the other cannot be made to wait for a slow reader.
"""

from __future__ import annotations

from devices.ports import Tracer
from devices.registers import Access, Register, RegisterTable

SIZE = 1 << 0
"""`cols` and `rows` are valid."""
MULTIPORT = 1 << 1
"""The device has several ports, `max_nr_ports` and the control queues."""
FEATURE_NAMES = {SIZE: "SIZE", MULTIPORT: "MULTIPORT"}
"""The names of the features, by bit mask."""


def config_space(max_ports: int, tracer: Tracer) -> RegisterTable:
    """Return the registers of a device with ports 0 to `max_ports` - 1."""
    return RegisterTable(
        "console.config",
        [
            Register("cols", 0, 2, Access.RO),
            Register("rows", 2, 2, Access.RO),
            Register("max_nr_ports", 4, 4, Access.RO, reset=max_ports),
        ],
        tracer=tracer,
    )

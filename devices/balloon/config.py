# SPDX-License-Identifier: Apache-2.0
"""Configuration space of the balloon (VIRTIO 1.2, section 5.5.4), little-endian.

`num_pages` is how many pages the device wants in the balloon, `actual` how many the driver says
are in it. The two later fields of the structure exist only with features that are not offered
here, so the space ends after `actual`; it is the same in both dialects.
"""

from __future__ import annotations

from collections.abc import Callable

from devices.ports import Tracer
from devices.registers import Access, Register, RegisterTable


def config_space(on_actual_written: Callable[[int], None], tracer: Tracer) -> RegisterTable:
    """The fields as registers; `on_actual_written` gets whatever the driver writes to `actual`."""
    return RegisterTable(
        "balloon_config",
        [
            Register("num_pages", 0, 4, Access.RO),
            Register("actual", 4, 4, write=on_actual_written),
        ],
        tracer=tracer,
    )

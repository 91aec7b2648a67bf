# SPDX-License-Identifier: Apache-2.0
"""Configuration space of the balloon (VIRTIO 1.2, section 5.5.4), little-endian.

`num_pages` is how many pages the device wants in the balloon, `actual` how many the driver says
are in it. What follows depends on the dialect and the features offered: `free_page_hint_cmd_id` is
there with FREE_PAGE_HINT, `poison_val` with PAGE_POISON. A field that is not there reads as 0 and
ignores writes.

The structure has its full length all the same. Offered the bitmap dialect, a stock Linux that
poisons free pages takes MISC_VQ for PAGE_POISON and writes `poison_val`; its kernel stops with a
BUG where the structure is too short for that.
"""

from __future__ import annotations

from collections.abc import Callable

from devices.balloon.dialects import Dialect
from devices.ports import Tracer
from devices.registers import Access, Register, RegisterTable


def config_space(
    dialect: Dialect, offered: int, on_actual_written: Callable[[int], None], tracer: Tracer
) -> RegisterTable:
    """The fields as registers; `on_actual_written` gets whatever the driver writes to `actual`."""
    fields = [field for feature, field in dialect.further_config if offered & feature]
    absent = {8, 12} - {field.offset for field in fields}
    return RegisterTable(
        "balloon_config",
        [
            Register("num_pages", 0, 4, Access.RO),
            Register("actual", 4, 4, write=on_actual_written),
            *fields,
            *(Register(f"absent_{offset}", offset, 4, Access.RO) for offset in absent),
        ],
        tracer=tracer,
    )

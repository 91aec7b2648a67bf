# SPDX-License-Identifier: Apache-2.0
"""Configuration space of the balloon (VIRTIO 1.2, section 5.5.4), little-endian.

`num_pages` is the size of the balloon that the device requests, `actual` the size that the driver
reports, both in 4 KiB pages. The rest depends on the dialect and the features offered:
`free_page_hint_cmd_id` exists with FREE_PAGE_HINT, `poison_val` with PAGE_POISON. An absent field
reads as 0 and ignores writes.

The structure always has its full length. Offered the bitmap dialect, a stock Linux that poisons
free pages mistakes MISC_VQ for PAGE_POISON and writes `poison_val`; its kernel stops with a BUG if
the structure is too short for that.
"""

from __future__ import annotations

from collections.abc import Callable

from devices.balloon.dialects import Dialect
from devices.ports import Tracer
from devices.registers import Access, Register, RegisterTable


def config_space(
    dialect: Dialect, offered: int, on_actual_written: Callable[[int], None], tracer: Tracer
) -> RegisterTable:
    """Return the registers; `on_actual_written` is called with each value written to `actual`."""
    fields = [field for feature, field in dialect.further_config if offered & feature]
    absent = {8, 12} - {field.offset for field in fields}
    return RegisterTable(
        "balloon.config",
        [
            Register("num_pages", 0, 4, Access.RO),
            Register("actual", 4, 4, write=on_actual_written),
            *fields,
            *(Register(f"absent_{offset}", offset, 4, Access.RO) for offset in absent),
        ],
        tracer=tracer,
    )

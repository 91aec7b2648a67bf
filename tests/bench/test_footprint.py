# SPDX-License-Identifier: Apache-2.0
"""Memory beside guest RAM, read from smaps."""

from __future__ import annotations

import mmap

import pytest

from bench.footprint import mappings, resident_beside_ram

SMAPS = """\
55d0a000-55d0c000 r-xp 00000000 08:01 42                         /usr/bin/vmm
Size:                  8 kB
Rss:                   8 kB
Pss:                   2 kB
7f0000000000-7f0004000000 rw-p 00000000 00:00 0
Size:              65536 kB
Rss:               40960 kB
Pss:               40960 kB
7f0008000000-7f0008002000 rw-p 00000000 00:00 0                  [heap]
Rss:                   4 kB
Pss:                   4 kB
"""


def test_guest_ram_is_not_counted() -> None:
    assert resident_beside_ram(SMAPS, 64 << 20) == {"Rss": 12 << 10, "Pss": 6 << 10}


def test_a_process_without_a_guest_is_refused() -> None:
    with pytest.raises(AssertionError, match="holds no guest"):
        resident_beside_ram(SMAPS, 65 << 20)


def test_the_mappings_of_this_process_are_read() -> None:
    with mmap.mmap(-1, 3 << 20) as area:
        area.write(bytes(3 << 20))
        with open("/proc/self/smaps") as smaps:
            found = list(mappings(smaps.read()))
    assert 3 << 20 in [figures["Rss"] for size, figures in found if size == 3 << 20]

# SPDX-License-Identifier: Apache-2.0
"""Which benchmarks there are, and where each can run."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto


class Kvm(Enum):
    """What a benchmark needs; where this machine has no such KVM, the lab has."""

    NONE = auto()
    RUNS = auto()  # a guest of a few instructions
    FIT = auto()  # for Linux: see pyvmm.probe


@dataclass(frozen=True)
class Benchmark:
    """A row of the catalogue; its code is `measure` in `bench.<module>`."""

    module: str
    title: str
    kvm: Kvm
    lab_mib: int = 4096
    """RAM of that lab."""
    by_name: bool = False
    """Takes so long that it runs thoroughly only when it is named."""


CATALOGUE = {
    "device": Benchmark("device_path", "Device path, no guest: 7 of 8 GiB given back", Kvm.NONE),
    "scaling": Benchmark("scaling", "One inflate against its size and fragmentation", Kvm.NONE),
    "exits": Benchmark("exits", "VM exits: what a register access costs", Kvm.RUNS, 2048),
    "balloon": Benchmark("balloon", "A real guest's balloon: 7 of 8 GiB", Kvm.FIT, 12288),
    "boot": Benchmark("boot", "Boot to the first line of user space", Kvm.FIT),
    "footprint": Benchmark("footprint", "Memory beside guest RAM", Kvm.FIT),
    "migration": Benchmark(
        "migration",
        "Live migration: an 8 GiB guest, with and without unused pages",
        Kvm.FIT,
        18432,
        by_name=True,
    ),
    "snapshot": Benchmark(
        "snapshot",
        "Snapshots: an 8 GiB guest, with and without unused pages",
        Kvm.FIT,
        18432,
        by_name=True,
    ),
}

# SPDX-License-Identifier: Apache-2.0
"""Which benchmarks there are, and where each can run."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto


class Kvm(Enum):
    """What a benchmark needs; where this machine has no such KVM, the lab has."""

    NONE = auto()
    RUNS = auto()  # a guest of a few instructions
    FIT = auto()  # for Linux: see pyvmm.machine.kvm_probe


SMALL_LAB_MIB = 4096
"""Enough for any quick run; one size for all, as the first lab of each size has to be booted."""


class Unnamed(Enum):
    """When a benchmark runs although nobody has named it."""

    ALWAYS = auto()
    QUICKLY = auto()  # only with --quick: its thorough run takes long
    NEVER = auto()


@dataclass(frozen=True)
class Benchmark:
    """A row of the catalogue; its code is `function` in `bench.<module>`."""

    module: str
    title: str
    kvm: Kvm
    lab_mib: int = SMALL_LAB_MIB
    """RAM of that lab."""
    unnamed: Unnamed = Unnamed.ALWAYS
    function: str = "measure"


CATALOGUE = {
    "device": Benchmark("device_path", "Device path, no guest: 7 of 8 GiB given back", Kvm.NONE),
    "scaling": Benchmark("scaling", "One inflate against its size and fragmentation", Kvm.NONE),
    "exits": Benchmark("exits", "VM exits: what a register access costs", Kvm.RUNS, 2048),
    "balloon": Benchmark("balloon", "A real guest's balloon: 7 of 8 GiB", Kvm.FIT, 12288),
    "balloon-smp": Benchmark(
        "balloon",
        "A real guest's balloon: 7 of 8 GiB, 4 vCPUs",
        Kvm.FIT,
        12288,
        Unnamed.NEVER,
        "measure_smp",
    ),
    "boot": Benchmark("boot", "Boot to the first line of user space", Kvm.FIT),
    "footprint": Benchmark("footprint", "Memory beside guest RAM", Kvm.FIT),
    "migration": Benchmark(
        "migration",
        "Live migration: an 8 GiB guest, with and without unused pages",
        Kvm.FIT,
        18432,
        unnamed=Unnamed.QUICKLY,
    ),
    "migration-writing": Benchmark(
        "migration",
        "Live migration: an 8 GiB guest that writes 50 MB/s",
        Kvm.FIT,
        18432,
        Unnamed.QUICKLY,
        "measure_writing",
    ),
    "snapshot": Benchmark(
        "snapshot",
        "Snapshots: an 8 GiB guest, with and without unused pages",
        Kvm.FIT,
        18432,
        unnamed=Unnamed.QUICKLY,
    ),
}

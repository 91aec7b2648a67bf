# SPDX-License-Identifier: Apache-2.0
"""Which benchmarks there are, and where each can run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Benchmark:
    """A row of the catalogue; its code is `measure` in `bench.<module>`."""

    module: str
    title: str
    kvm: bool
    """Whether it needs a KVM that runs Linux; where there is none it runs in the lab."""
    lab_mib: int = 4096
    """RAM of that lab."""


CATALOGUE = {
    "device": Benchmark("device_path", "Device path, no guest: 7 of 8 GiB given back", kvm=False),
    "scaling": Benchmark("scaling", "One inflate against its size and fragmentation", kvm=False),
    "exits": Benchmark("exits", "VM exits: what a register access costs", kvm=False),
    "balloon": Benchmark("balloon", "A real guest's balloon: 7 of 8 GiB", kvm=True, lab_mib=12288),
    "boot": Benchmark("boot", "Boot to the first line of user space", kvm=True),
    "footprint": Benchmark("footprint", "Memory beside guest RAM", kvm=True),
}

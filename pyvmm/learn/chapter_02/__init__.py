# SPDX-License-Identifier: Apache-2.0
"""A driver finds a virtio device in three steps: the ids in its PCI configuration space, the base
address registers (BARs), to which it assigns addresses, and the list of capabilities, which say in
which BAR each structure of registers lies.

A Linux guest with a virtio-rng device boots now. Below are the first accesses of its kernel to the
configuration space of that device, and then the addresses that its BARs got.
"""

from pyvmm.learn.chapter import Chapter

CHAPTER = Chapter(
    number=2,
    slug="pci-discovery",
    title="How a driver finds its device",
    goal="Find the registers of a virtio device from its PCI configuration space.",
    minutes=20,
    run_needs="guest",
    view="registers/rng",
)

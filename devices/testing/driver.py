# SPDX-License-Identifier: Apache-2.0
"""A virtio PCI driver that uses nothing but registers, for tests.

`VirtioDriver` finds the device as an operating system does (VIRTIO 1.2, 3.1 and 4.1.5.1): it sizes
and assigns BARs, walks the capability list, negotiates features, sets up queues and enables MSI-X,
all by reads and writes of configuration space and memory. Offsets and bits are those of the Linux
user API header `linux/virtio_pci.h`, defined again on purpose: a mistake in the device's
own tables is not shared.

    driver = VirtioDriver(Board(device)).start()
    used = driver.send(0, [b"request"], [16])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from devices.testing.board import APERTURE, Board
from devices.testing.driver_queue import DriverQueue, Used

ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET, FAILED = 1, 2, 4, 8, 64, 128
"""VIRTIO_CONFIG_S_*, the bits of the device status (2.1)."""
INDIRECT_DESC, EVENT_IDX, VERSION_1, RING_RESET = 1 << 28, 1 << 29, 1 << 32, 1 << 40
"""VIRTIO_F_* and VIRTIO_RING_F_* as masks (6)."""
ALL_FEATURES = (1 << 64) - 1
"""Accepts every feature that the device offers."""

COMMON_CFG, NOTIFY_CFG, ISR_CFG, DEVICE_CFG, PCI_CFG = 1, 2, 3, 4, 5
"""VIRTIO_PCI_CAP_*, the types of structures (4.1.4)."""
CAP_VENDOR, CAP_MSIX = 0x09, 0x11
"""PCI capability ids."""
NO_VECTOR = 0xFFFF
"""VIRTIO_MSI_NO_VECTOR."""

RINGS_GPA = 32 << 20
"""Default address of the queues."""
QUEUE_SPACING_BYTES = 4 << 20
"""Distance of the memory of two queues."""

COMMON = {
    "device_feature_select": (0, 4),
    "device_feature": (4, 4),
    "driver_feature_select": (8, 4),
    "driver_feature": (12, 4),
    "config_msix_vector": (16, 2),
    "num_queues": (18, 2),
    "device_status": (20, 1),
    "config_generation": (21, 1),
    "queue_select": (22, 2),
    "queue_size": (24, 2),
    "queue_msix_vector": (26, 2),
    "queue_enable": (28, 2),
    "queue_notify_off": (30, 2),
    "queue_desc_lo": (32, 4),
    "queue_desc_hi": (36, 4),
    "queue_driver_lo": (40, 4),
    "queue_driver_hi": (44, 4),
    "queue_device_lo": (48, 4),
    "queue_device_hi": (52, 4),
    "queue_reset": (58, 2),
}
"""(offset, size in bytes) of each field of the common configuration structure (4.1.4.3)."""


@dataclass(frozen=True)
class Structure:
    """A virtio structure: `bar`, `offset` and `length` in it in bytes.

    `capability` is the offset of its PCI capability.
    """

    bar: int
    offset: int
    length: int
    capability: int


class VirtioDriver:
    """Driver of the device on `board`.

    Queue N and its buffers lie in the device's memory from `rings_gpa` + N * 4 MiB, which has to be
    RAM, and BARs from `bars_gpa`. After `start`, `queues` has the driver's side of each queue by
    number and `features` the features negotiated. After `probe`, `bars` maps the number of a BAR to
    its address, `structures` the type of a structure to its place; `msix_capability` is the offset
    of that capability (0: none) and `notify_multiplier` that of the notification structure.
    `memory` is the device's.
    """

    def __init__(
        self, board: Board, *, rings_gpa: int = RINGS_GPA, bars_gpa: int = APERTURE[0]
    ) -> None:
        self.board = board
        self.memory = board.device.memory
        self.rings_gpa = rings_gpa
        self.bars_gpa = bars_gpa
        self.bars: dict[int, int] = {}
        self.structures: dict[int, Structure] = {}
        self.msix_capability = 0
        self.notify_multiplier = 0
        self.features = 0
        self.queues: dict[int, DriverQueue] = {}

    # PCI configuration space.

    def read_pci(self, offset: int, size: int = 4) -> int:
        """Read `size` bytes of the function's configuration space."""
        return self.board.function.config_read(offset, size)

    def write_pci(self, offset: int, size: int, value: int) -> None:
        """Write `size` bytes of the function's configuration space."""
        self.board.function.config_write(offset, size, value)

    def probe(self) -> Self:
        """Assign BARs, walk the capability list, enable memory space and bus mastering."""
        self._assign_bars()
        pointer = self.read_pci(0x34, 1)
        while pointer:
            if self.read_pci(pointer, 1) == CAP_VENDOR:
                self._note_structure(pointer)
            elif self.read_pci(pointer, 1) == CAP_MSIX:
                self.msix_capability = pointer
            pointer = self.read_pci(pointer + 1, 1)
        self.write_pci(0x04, 2, 0b110)
        return self

    def _assign_bars(self) -> None:
        gpa, index = self.bars_gpa, 0
        while index < 6:
            register = 0x10 + 4 * index
            flags = self.read_pci(register) & 0xF
            wide = flags & 0b100
            self.write_pci(register, 4, 0xFFFF_FFFF)
            mask = self.read_pci(register) & ~0xF
            if mask:
                size_bytes = (~mask & 0xFFFF_FFFF) + 1
                gpa = -(-gpa // size_bytes) * size_bytes
                self.write_pci(register, 4, gpa)
                if wide:
                    self.write_pci(register + 4, 4, 0)
                self.bars[index] = gpa
                gpa += size_bytes
            index += 2 if wide else 1

    def _note_structure(self, pointer: int) -> None:
        cap_len, cfg_type, bar = (self.read_pci(pointer + i, 1) for i in (2, 3, 4))
        offset, length = self.read_pci(pointer + 8), self.read_pci(pointer + 12)
        assert cap_len >= 16
        self.structures.setdefault(cfg_type, Structure(bar, offset, length, pointer))
        if cfg_type == NOTIFY_CFG:
            self.notify_multiplier = self.read_pci(pointer + 16)

    # Structures in BARs.

    def structure_gpa(self, cfg_type: int, offset: int = 0) -> int:
        """Return the address of byte `offset` of the structure `cfg_type`, such as COMMON_CFG."""
        structure = self.structures[cfg_type]
        return self.bars[structure.bar] + structure.offset + offset

    def read_common(self, name: str) -> int:
        """Read a field of the common configuration."""
        offset, size = COMMON[name]
        return self.board.mmio.read(self.structure_gpa(COMMON_CFG, offset), size)

    def write_common(self, name: str, value: int) -> None:
        """Write a field of the common configuration."""
        offset, size = COMMON[name]
        self.board.mmio.write(self.structure_gpa(COMMON_CFG, offset), size, value)

    @property
    def status(self) -> int:
        """The device status field (2.1)."""
        return self.read_common("device_status")

    def add_status(self, bit: int) -> int:
        """Set a further status bit; return the status that the device then reports."""
        self.write_common("device_status", self.status | bit)
        return self.status

    def read_isr(self) -> int:
        """Read the ISR status, which clears it (4.1.4.5)."""
        return self.board.mmio.read(self.structure_gpa(ISR_CFG), 1)

    def read_config(self, offset: int, size: int = 4) -> int:
        """Read `size` bytes of the device-specific configuration (4.1.4.6)."""
        return self.board.mmio.read(self.structure_gpa(DEVICE_CFG, offset), size)

    def write_config(self, offset: int, size: int, value: int) -> None:
        """Write `size` bytes of the device-specific configuration."""
        self.board.mmio.write(self.structure_gpa(DEVICE_CFG, offset), size, value)

    # Initialisation, VIRTIO 1.2, 3.1.1.

    def start(
        self,
        *,
        features: int = ALL_FEATURES,
        queues: Sequence[int] | None = None,
        size: int | None = None,
        msix: bool = True,
    ) -> Self:
        """Bring the device up to DRIVER_OK and serve it once.

        Accepts those of `features` that are offered, and sets up `queues` (by default all that
        exist) with `size` entries (by default as many as offered). Configuration changes interrupt
        with vector 0 and queue N with vector N + 1, or all with INTx if not `msix`.
        """
        self.probe()
        if msix:
            self.enable_msix()
        self.negotiate(features)
        if msix:
            self.write_common("config_msix_vector", 0)
        for index in self.existing_queues() if queues is None else queues:
            self.set_up_queue(index, size=size, vector=index + 1 if msix else NO_VECTOR)
        assert self.add_status(DRIVER_OK) & DRIVER_OK
        self.board.serve()
        return self

    def reset(self) -> None:
        """Reset the device and forget all queues."""
        self.write_common("device_status", 0)
        assert self.status == 0
        self.queues = {}

    def read_device_features(self) -> int:
        """Return the features that the device offers."""
        features = 0
        for select in (0, 1):
            self.write_common("device_feature_select", select)
            features |= self.read_common("device_feature") << 32 * select
        return features

    def negotiate(self, features: int = ALL_FEATURES) -> None:
        """Reset, then accept those of `features` that are offered, up to FEATURES_OK."""
        self.reset()
        self.add_status(ACKNOWLEDGE)
        self.add_status(DRIVER)
        self.features = self.read_device_features() & features
        self.write_driver_features(self.features)
        assert self.add_status(FEATURES_OK) & FEATURES_OK

    def write_driver_features(self, features: int) -> None:
        """Write the features that the driver accepts, without FEATURES_OK."""
        for select in (0, 1):
            self.write_common("driver_feature_select", select)
            self.write_common("driver_feature", features >> 32 * select & 0xFFFF_FFFF)

    def existing_queues(self) -> list[int]:
        """Return the numbers of the queues that exist: those whose size is not 0 (4.1.4.3.1)."""
        existing = []
        for index in range(self.read_common("num_queues")):
            self.write_common("queue_select", index)
            if self.read_common("queue_size"):
                existing.append(index)
        return existing

    def set_up_queue(
        self, index: int, *, size: int | None = None, vector: int = NO_VECTOR
    ) -> DriverQueue:
        """Lay out a queue in memory, configure the device with it and enable it (4.1.5.1.3)."""
        self.write_common("queue_select", index)
        size = size or self.read_common("queue_size")
        self.write_common("queue_size", size)
        self.write_common("queue_msix_vector", vector)
        assert self.read_common("queue_msix_vector") == vector
        queue = DriverQueue(
            self.memory,
            size,
            base_gpa=self.rings_gpa + index * QUEUE_SPACING_BYTES,
            event_idx=bool(self.features & EVENT_IDX),
            indirect=bool(self.features & INDIRECT_DESC),
        )
        for area in ("desc", "driver", "device"):
            gpa = getattr(queue, {"driver": "avail", "device": "used"}.get(area, area) + "_gpa")
            self.write_common(f"queue_{area}_lo", gpa & 0xFFFF_FFFF)
            self.write_common(f"queue_{area}_hi", gpa >> 32)
        self.write_common("queue_enable", 1)
        self.queues[index] = queue
        return queue

    def enable_msix(self) -> None:
        """Give vector N the message (0xFEE0_0000, 0x40 + N), unmask all and enable MSI-X."""
        table = self.read_pci(self.msix_capability + 4)
        base = self.bars[table & 7] + (table & ~7)
        for vector in range(self.msix_vectors):
            entry = base + 16 * vector
            words = (0xFEE0_0000, 0, 0x40 + vector, 0)
            for i, word in enumerate(words):
                self.board.mmio.write(entry + 4 * i, 4, word)
        self.write_pci(self.msix_capability + 2, 2, 1 << 15)

    @property
    def msix_vectors(self) -> int:
        """Number of vectors in the MSI-X table."""
        return (self.read_pci(self.msix_capability + 2, 2) & 0x7FF) + 1

    # Operation.

    def notify(self, index: int) -> None:
        """Send an available buffer notification for queue `index` (4.1.5.2)."""
        self.write_common("queue_select", index)
        offset = self.read_common("queue_notify_off") * self.notify_multiplier
        self.board.mmio.write(self.structure_gpa(NOTIFY_CFG, offset), 2, index)

    def send(
        self,
        index: int,
        readable: Sequence[bytes] = (),
        writable: Sequence[int] = (),
        *,
        indirect: bool = False,
    ) -> list[Used]:
        """Send one buffer through queue `index` and serve it; return the used buffers.

        Arguments are those of `DriverQueue.add`. ValueError for a queue that is not set up.
        """
        if index not in self.queues:
            raise ValueError(f"queue {index} is not set up, only {sorted(self.queues)}")
        queue = self.queues[index]
        queue.add(readable, writable, indirect=indirect)
        if queue.should_notify():
            self.notify(index)
        self.board.serve()
        return queue.take_used()

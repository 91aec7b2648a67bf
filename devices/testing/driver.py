# SPDX-License-Identifier: Apache-2.0
"""A virtio PCI driver that knows nothing but registers, for tests.

`VirtioDriver` finds the device the way an operating system does (VIRTIO 1.2, 3.1 and 4.1.5.1):
it sizes and assigns BARs, walks the capability list, negotiates features, sets queues up and turns
MSI-X on, all by reads and writes of configuration space and memory. Offsets are those of the
Linux user API header `linux/virtio_pci.h`, written down here a second time on purpose.

    driver = started(STANDARD)
    driver.send(INFLATE, [pfn_array([100, 101])])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from devices.balloon.dialects import Dialect
from devices.testing.board import APERTURE, MIB, AnonymousRam, Board
from devices.testing.driver_queue import MockDriver, Used

INFLATE, DEFLATE, STATS = 0, 1, 2

ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET, FAILED = 1, 2, 4, 8, 64, 128
INDIRECT_DESC, EVENT_IDX, VERSION_1, RING_RESET = 1 << 28, 1 << 29, 1 << 32, 1 << 40
ALL_FEATURES = (1 << 64) - 1

COMMON_CFG, NOTIFY_CFG, ISR_CFG, DEVICE_CFG, PCI_CFG = 1, 2, 3, 4, 5
CAP_VENDOR, CAP_MSIX = 0x09, 0x11
NO_VECTOR = 0xFFFF

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

QUEUE_SPACING_BYTES = 4 * MIB


@dataclass(frozen=True)
class Structure:
    """Where one virtio structure lies, and where its capability does in configuration space."""

    bar: int
    offset: int
    length: int
    capability: int


class VirtioDriver:
    """Driver of the device on `board`, whose rings and buffers lie in RAM from `rings_gpa`."""

    def __init__(
        self, board: Board, *, rings_gpa: int = 32 * MIB, bars_gpa: int = APERTURE[0]
    ) -> None:
        self.board = board
        self.memory = board.ram.memory
        self.rings_gpa = rings_gpa
        self.bars_gpa = bars_gpa
        self.bars: dict[int, int] = {}
        self.structures: dict[int, Structure] = {}
        self.msix_capability = 0
        self.notify_multiplier = 0
        self.features = 0
        self.queues: dict[int, MockDriver] = {}

    # Configuration space.

    def config(self, offset: int, size: int = 4) -> int:
        return self.board.function.config_read(offset, size)

    def set_config(self, offset: int, size: int, value: int) -> None:
        self.board.function.config_write(offset, size, value)

    def probe(self) -> VirtioDriver:
        """Assign BARs, walk the capability list, enable memory space and bus mastering."""
        self._assign_bars()
        pointer = self.config(0x34, 1)
        while pointer:
            if self.config(pointer, 1) == CAP_VENDOR:
                self._note_structure(pointer)
            elif self.config(pointer, 1) == CAP_MSIX:
                self.msix_capability = pointer
            pointer = self.config(pointer + 1, 1)
        self.set_config(0x04, 2, 0b110)
        return self

    def _assign_bars(self) -> None:
        gpa, index = self.bars_gpa, 0
        while index < 6:
            register = 0x10 + 4 * index
            flags = self.config(register) & 0xF
            wide = flags & 0b100
            self.set_config(register, 4, 0xFFFF_FFFF)
            mask = self.config(register) & ~0xF
            if mask:
                size_bytes = (~mask & 0xFFFF_FFFF) + 1
                gpa = -(-gpa // size_bytes) * size_bytes
                self.set_config(register, 4, gpa)
                if wide:
                    self.set_config(register + 4, 4, 0)
                self.bars[index] = gpa
                gpa += size_bytes
            index += 2 if wide else 1

    def _note_structure(self, pointer: int) -> None:
        cap_len, cfg_type, bar = (self.config(pointer + i, 1) for i in (2, 3, 4))
        offset, length = self.config(pointer + 8), self.config(pointer + 12)
        assert cap_len >= 16
        self.structures.setdefault(cfg_type, Structure(bar, offset, length, pointer))
        if cfg_type == NOTIFY_CFG:
            self.notify_multiplier = self.config(pointer + 16)

    # Structures in BARs.

    def gpa(self, cfg_type: int, offset: int = 0) -> int:
        structure = self.structures[cfg_type]
        return self.bars[structure.bar] + structure.offset + offset

    def get(self, name: str) -> int:
        """Read a field of the common configuration."""
        offset, size = COMMON[name]
        return self.board.mmio.read(self.gpa(COMMON_CFG, offset), size)

    def put(self, name: str, value: int) -> None:
        """Write a field of the common configuration."""
        offset, size = COMMON[name]
        self.board.mmio.write(self.gpa(COMMON_CFG, offset), size, value)

    @property
    def status(self) -> int:
        return self.get("device_status")

    def add_status(self, bit: int) -> int:
        """Set one more status bit; returns what the device makes of it."""
        self.put("device_status", self.status | bit)
        return self.status

    def read_isr(self) -> int:
        return self.board.mmio.read(self.gpa(ISR_CFG), 1)

    def read_device(self, offset: int, size: int = 4) -> int:
        return self.board.mmio.read(self.gpa(DEVICE_CFG, offset), size)

    def write_device(self, offset: int, size: int, value: int) -> None:
        self.board.mmio.write(self.gpa(DEVICE_CFG, offset), size, value)

    # Initialisation, VIRTIO 1.2, 3.1.1.

    def start(
        self,
        *,
        wanted: int = ALL_FEATURES,
        queues: Sequence[int] | None = None,
        size: int | None = None,
        msix: bool = True,
    ) -> VirtioDriver:
        """The whole sequence up to DRIVER_OK; `queues` defaults to all that exist."""
        self.probe()
        if msix:
            self.enable_msix()
        self.negotiate(wanted)
        if msix:
            self.put("config_msix_vector", 0)
        for index in self.existing_queues() if queues is None else queues:
            self.set_up_queue(index, size=size, vector=index + 1 if msix else NO_VECTOR)
        assert self.add_status(DRIVER_OK) & DRIVER_OK
        self.board.serve()
        return self

    def reset(self) -> None:
        self.put("device_status", 0)
        assert self.status == 0
        self.queues = {}

    def offered(self) -> int:
        features = 0
        for select in (0, 1):
            self.put("device_feature_select", select)
            features |= self.get("device_feature") << 32 * select
        return features

    def negotiate(self, wanted: int = ALL_FEATURES) -> None:
        """Reset, then accept what is both offered and wanted."""
        self.reset()
        self.add_status(ACKNOWLEDGE)
        self.add_status(DRIVER)
        self.features = self.offered() & wanted
        self.accept(self.features)
        assert self.add_status(FEATURES_OK) & FEATURES_OK

    def accept(self, features: int) -> None:
        for select in (0, 1):
            self.put("driver_feature_select", select)
            self.put("driver_feature", features >> 32 * select & 0xFFFF_FFFF)

    def existing_queues(self) -> list[int]:
        """4.1.5.1.3: a queue of size 0 does not exist."""
        existing = []
        for index in range(self.get("num_queues")):
            self.put("queue_select", index)
            if self.get("queue_size"):
                existing.append(index)
        return existing

    def set_up_queue(
        self, index: int, *, size: int | None = None, vector: int = NO_VECTOR
    ) -> MockDriver:
        """Place a queue in memory, tell the device and enable it."""
        self.put("queue_select", index)
        size = size or self.get("queue_size")
        self.put("queue_size", size)
        self.put("queue_msix_vector", vector)
        assert self.get("queue_msix_vector") == vector
        queue = MockDriver(
            self.memory,
            size,
            base_gpa=self.rings_gpa + index * QUEUE_SPACING_BYTES,
            event_idx=bool(self.features & EVENT_IDX),
            indirect=bool(self.features & INDIRECT_DESC),
        )
        for area in ("desc", "driver", "device"):
            gpa = getattr(queue, {"driver": "avail", "device": "used"}.get(area, area) + "_gpa")
            self.put(f"queue_{area}_lo", gpa & 0xFFFF_FFFF)
            self.put(f"queue_{area}_hi", gpa >> 32)
        self.put("queue_enable", 1)
        self.queues[index] = queue
        return queue

    def enable_msix(self) -> None:
        """Give vector N the message (0xFEE0_0000, 0x40 + N), unmask all, enable."""
        table = self.config(self.msix_capability + 4)
        base = self.bars[table & 7] + (table & ~7)
        for vector in range(self.msix_vectors):
            entry = base + 16 * vector
            words = (0xFEE0_0000, 0, 0x40 + vector, 0)
            for i, word in enumerate(words):
                self.board.mmio.write(entry + 4 * i, 4, word)
        self.set_config(self.msix_capability + 2, 2, 1 << 15)

    @property
    def msix_vectors(self) -> int:
        return (self.config(self.msix_capability + 2, 2) & 0x7FF) + 1

    # Operation.

    def kick(self, index: int) -> None:
        """Notify the device of queue `index` (4.1.5.2)."""
        self.put("queue_select", index)
        offset = self.get("queue_notify_off") * self.notify_multiplier
        self.board.mmio.write(self.gpa(NOTIFY_CFG, offset), 2, index)

    def send(self, index: int, readable: Sequence[bytes], *, indirect: bool = False) -> list[Used]:
        """One buffer through queue `index`, served; returns what the device gave back."""
        queue = self.queues[index]
        queue.add(readable, indirect=indirect)
        if queue.kick_wanted():
            self.kick(index)
        self.board.serve()
        return queue.take_used()


def probed(dialect: Dialect, ram: AnonymousRam | None = None) -> VirtioDriver:
    """A driver that has found a balloon and its structures, and done nothing more."""
    return VirtioDriver(Board.with_balloon(dialect, ram=ram)).probe()


def started(
    dialect: Dialect,
    ram: AnonymousRam | None = None,
    *,
    offered: int | None = None,
    wanted: int = ALL_FEATURES,
    msix: bool = True,
) -> VirtioDriver:
    """A driver that has brought a balloon up to DRIVER_OK."""
    board = Board.with_balloon(dialect, ram=ram, offered=offered)
    return VirtioDriver(board).start(wanted=wanted, msix=msix)

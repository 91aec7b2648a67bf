# SPDX-License-Identifier: Apache-2.0
"""A guest, a kernel that logs what it writes, and a destination, for tests of migrations.

`WritingGuest` writes, frees and gives away pages at every moment that the migration gives it: when
the log is read or cleared, when it is asked for unused pages, and before every message. `LoggingVm`
keeps KVM's dirty log for it, with manual protection or without, so that the `KvmDirtyLog` under
test is the real one. `FakeTarget` is where it goes. `migrate` runs both sides, each in its thread,
over a socket pair.
"""

from __future__ import annotations

import mmap
import socket
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import cast

from hypothesis import strategies as st
from typing_extensions import Buffer

from pykvm import Vm, abi
from pyvmm.config import MachineConfig
from pyvmm.memory.dirty_log import KvmDirtyLog
from pyvmm.memory.layout import ram_ranges
from pyvmm.memory.precopy import UnusedPages
from pyvmm.memory.ram import Ram
from pyvmm.migration.destination import DestinationMigration
from pyvmm.migration.link import MigrationLink
from pyvmm.migration.progress import Progress, Settings
from pyvmm.migration.source import SourceMigration
from pyvmm.sockets.link import SocketLink
from pyvmm.state.records import Kind, Record
from pyvmm.units import MIB
from pyvmm_native.discard import discard
from pyvmm_native.memory import GuestMemory
from pyvmm_native.pages import touched
from pyvmm_native.runs import PageRuns

PAGE = 4096
KINDS = {"cpu": Kind(1, 1000, max_instances=4), "disk": Kind(1, 10)}
PARTS = [Record("cpu", 1, b"registers", 0), Record("cpu", 1, b"more", 1), Record("disk", 1, b"")]


def config_of(ram_mib: int) -> MachineConfig:
    return MachineConfig(
        kernel=Path("vmlinux"),
        initrd=None,
        command_line="quiet",
        ram_bytes=ram_mib * MIB,
        vcpus=2,
        dialect="bitmap",
    )


class PlainRam:
    """RAM without a VM, whose pages a test reads and writes past every log."""

    def __init__(self, ram_bytes: int) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000  # MAP_NORESERVE
        self._maps = [(gpa, mmap.mmap(-1, n, flags=flags)) for gpa, n in ram_ranges(ram_bytes)]
        for _, area in self._maps:
            area.madvise(mmap.MADV_NOHUGEPAGE)
        self.memory = GuestMemory(self._maps)
        self.vm: LoggingVm | None = None

    def attach(self, vm: LoggingVm, flags: int = 0) -> None:
        vm.set_logging(len(self._maps), bool(flags & abi.KVM_MEM_LOG_DIRTY_PAGES))

    def discard(self, runs: PageRuns) -> int:
        return discard(self.memory, runs).bytes

    def slot_of(self, pfn: int) -> tuple[int, int, mmap.mmap]:
        """Slot, page number in it, and the slot's memory."""
        for slot, (gpa, area) in enumerate(self._maps):
            page = pfn - gpa // PAGE
            if 0 <= page < len(area) // PAGE:
                return slot, page, area
        raise ValueError(pfn)

    def page(self, pfn: int) -> bytes:
        _, page, area = self.slot_of(pfn)
        return area[page * PAGE : (page + 1) * PAGE]


class LoggingVm:
    """KVM's dirty log (Documentation/virt/kvm/api.rst, 4.8, 4.117, 7.18)."""

    def __init__(self, manual: bool) -> None:
        self._known = abi.KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE if manual else 0
        self._enabled = 0
        self._dirty: list[set[int]] | None = None

    def check_extension(self, cap: int) -> int:
        assert cap == abi.KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2
        return self._known

    def enable_cap(self, cap: int, *args: int, flags: int = 0) -> None:
        assert cap == abi.KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2
        (self._enabled,) = args

    def set_logging(self, slots: int, on: bool) -> None:
        self._dirty = [set() for _ in range(slots)] if on else None

    def written(self, slot: int, page: int) -> None:
        if self._dirty is not None:
            self._dirty[slot].add(page)

    def get_dirty_log(self, slot: int, bitmap: bytearray) -> None:
        assert self._dirty is not None
        bitmap[:] = bytes(len(bitmap))
        for page in self._dirty[slot]:
            bitmap[page // 8] |= 1 << page % 8
        if not self._enabled:
            self._dirty[slot].clear()

    def clear_dirty_log(self, slot: int, first: int, count: int, bitmap: bytearray) -> None:
        assert self._enabled
        assert self._dirty is not None
        assert first % 64 == 0
        assert len(bitmap) * 8 >= count
        self._dirty[slot] -= {
            first + bit for bit in range(count) if bitmap[bit // 8] >> bit % 8 & 1
        }


@dataclass
class Act:
    """Something the guest or a device does to a page."""

    pfn: int
    value: int
    """0 to 255: fill it with that; -1: give it to the balloon."""


class WritingGuest:
    """Satisfies `pyvmm.migration.source.Guest`; `acts` are done `step` at a time."""

    def __init__(
        self,
        config: MachineConfig,
        before: Iterable[Act] = (),
        acts: Iterable[Act] = (),
        *,
        unused: Iterable[int] = (),
        step: int = 1,
        manual: bool = True,
    ) -> None:
        self.config = config
        self.ram = PlainRam(config.ram_bytes)
        self.memory = self.ram.memory
        self.running = True
        self.left_out: set[int] = set()
        self.stops = 0
        self.throttled: list[int] = []
        self._vm = LoggingVm(manual)
        self._unused = set(unused)
        self._step = step
        self.do(before)
        self._acts = iter(acts)

    def log_dirty_pages(self) -> KvmDirtyLog:
        self.left_out = set()
        return _NosyLog(self, cast(Vm, self._vm), cast(Ram, self.ram))

    def unused_pages(self, timeout_s: float) -> UnusedPages:
        self.go()
        self.left_out = set(self._unused)
        answer = UnusedPages(PageRuns((pfn, 1) for pfn in self._unused), "answered")
        self.go()
        return answer

    def throttle(self, percentage: int) -> None:
        self.throttled.append(percentage)

    def stop(self) -> bool:
        self.go()
        self.stops += 1
        self.running = False
        return True

    def save_parts(self) -> Sequence[Record]:
        assert not self.running
        return PARTS

    def resume(self) -> None:
        assert not self.running
        self.running = True

    def go(self) -> None:
        """Do the next few acts, if it runs."""
        if self.running:
            self.do(islice(self._acts, self._step))

    def do(self, acts: Iterable[Act]) -> None:
        """Do `acts` now."""
        for act in acts:
            self._do(act)

    def _do(self, act: Act) -> None:
        slot, page, area = self.ram.slot_of(act.pfn)
        self.left_out.discard(act.pfn)
        if act.value < 0:
            self.ram.discard(PageRuns([(act.pfn, 1)]))
        else:
            area[page * PAGE : (page + 1) * PAGE] = bytes([act.value]) * PAGE
            self._vm.written(slot, page)


class _NosyLog(KvmDirtyLog):
    """The log under test; the guest goes on before and after everything it does."""

    def __init__(self, guest: WritingGuest, vm: Vm, ram: Ram) -> None:
        super().__init__(vm, ram)
        self._guest = guest

    def collect(self) -> PageRuns:
        self._guest.go()
        changed = super().collect()
        self._guest.go()
        return changed

    def clear(self, start_pfn: int, pages: int) -> None:
        self._guest.go()
        super().clear(start_pfn, pages)
        self._guest.go()


LOW_MIB = 65  # two chunks, the second of one MiB
PAGES = LOW_MIB * MIB // PAGE
CONFIG = config_of(LOW_MIB)
HOT = [0, 1, 2, 3, 511, 512, 513, 16383, 16384, 16385, PAGES - 1]
pfns = st.one_of(st.sampled_from(HOT), st.integers(0, PAGES - 1))
acts = st.builds(Act, pfns, st.sampled_from([-1, 0, 0, 1, 2, 3, 255]))


@st.composite
def guests(draw: st.DrawFn) -> WritingGuest:
    return WritingGuest(
        CONFIG,
        draw(st.lists(acts, max_size=30)),
        draw(st.lists(acts, max_size=60)),
        unused=draw(st.sets(pfns, max_size=20)),
        step=draw(st.integers(1, 4)),
        manual=draw(st.booleans()),
    )


def check_memory(guest: WritingGuest, copy: PlainRam | None) -> None:
    """Every page is what it was, but for those nobody has used since the guest was asked."""
    assert copy is not None
    ram = PageRuns(guest.memory.page_ranges)
    there = touched(guest.memory, ram).union(touched(copy.memory, ram))
    pfns = {pfn for start_pfn, count in there for pfn in range(start_pfn, start_pfn + count)}
    pfns -= guest.left_out
    assert [pfn for pfn in sorted(pfns) if guest.ram.page(pfn) != copy.page(pfn)] == []


class FakeTarget:
    """Satisfies `pyvmm.migration.destination.Target`."""

    kinds: Mapping[str, Kind] = KINDS

    def __init__(self, on_restore: Callable[[], None] = lambda: None) -> None:
        self.ram: PlainRam | None = None
        self.parts: Sequence[Record] = ()
        self.runs: bool | None = None
        self._on_restore = on_restore

    def create_machine(self, config: MachineConfig) -> PlainRam:
        self.config = config
        self.ram = PlainRam(config.ram_bytes)
        return self.ram

    def restore(self, parts: Sequence[Record]) -> None:
        self._on_restore()
        self.parts = parts

    def start(self, *, running: bool) -> None:
        self.runs = running


Meddle = Callable[[bytes, int], bytes]


def untouched(data: bytes, place: int) -> bytes:
    return data


class Wire(MigrationLink):
    """A link on which `meddle(data, place)` may change or cut what is sent at byte `place`."""

    def __init__(
        self,
        stream: socket.socket,
        meddle: Meddle = untouched,
        before: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(SocketLink(stream))
        self._meddle = meddle
        self._before = before
        self.sent = 0

    def send(self, data: Buffer) -> None:
        self._before()
        before = bytes(data)
        data = self._meddle(before, self.sent)
        self.sent += len(before)
        super().send(data)
        if len(data) < len(before):
            self.abort()


def cut_at(place: int) -> Meddle:
    """Break the connection after `place` bytes."""
    return lambda data, sent: data[: max(place - sent, 0)] if place < sent + len(data) else data


def flip_at(place: int, bit: int) -> Meddle:
    """Change one bit."""

    def meddle(data: bytes, sent: int) -> bytes:
        if sent <= place < sent + len(data):
            changed = bytearray(data)
            changed[place - sent] ^= 1 << bit
            return bytes(changed)
        return data

    return meddle


@dataclass
class Story:
    """What became of a migration."""

    progress: Progress = field(default_factory=Progress)
    source_error: Exception | None = None
    target_error: Exception | None = None
    sent_bytes: int = 0
    replied_bytes: int = 0


def migrate(
    guest: WritingGuest,
    home: FakeTarget,
    settings: Settings | None = None,
    *,
    spoil_source: Meddle = untouched,
    spoil_target: Meddle = untouched,
    watch: Callable[[SourceMigration, Story], None] = lambda precopy, story: None,
) -> Story:
    """Let `guest` move `home`; errors of both sides are in the story."""
    one, other = socket.socketpair()
    story = Story()

    def before() -> None:
        guest.go()
        watch(precopy, story)

    source_wire = Wire(one, spoil_source, before)
    target_wire = Wire(other, spoil_target)
    arrival = DestinationMigration(home, target_wire)
    precopy = SourceMigration(guest, source_wire, settings or Settings(), story.progress)

    def arrive() -> None:
        try:
            arrival.run()
        except Exception as error:
            story.target_error = error
        finally:
            target_wire.close()

    thread = threading.Thread(target=arrive)
    thread.start()
    try:
        precopy.run()
    except Exception as error:
        story.source_error = error
    finally:
        source_wire.close()
    thread.join(60)
    assert not thread.is_alive()
    story.sent_bytes, story.replied_bytes = source_wire.sent, target_wire.sent
    return story

# SPDX-License-Identifier: Apache-2.0
"""A guest that writes to its memory, and a destination, for tests of migrations and snapshots.

`WritingGuest` writes and discards pages whenever it can be observed: when the log is read or
cleared, when it is asked for unused pages, and before every message. `LoggingVm` keeps KVM's dirty
log for it, with manual protection or without, so that the `KvmDirtyLog` under test is the real one.
`FakeTarget` is a destination without a machine. `migrate` runs both sides, each in its thread, over
a socket pair, and one more for each further stream.
"""

from __future__ import annotations

import mmap
import socket
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
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
from pyvmm.migration.errors import MigrationError
from pyvmm.migration.link import MigrationLink
from pyvmm.migration.page_channel import BufferedPages, PageChannel
from pyvmm.migration.progress import MigrationProgress, Settings
from pyvmm.migration.source import SourceMigration
from pyvmm.migration.timeouts import TIMEOUTS, Timeouts
from pyvmm.sockets.link import SocketLink
from pyvmm.state.records import Kind, Record
from pyvmm.units import MIB
from pyvmm_native.checksum import Checksum
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
    """RAM without a VM, whose pages a test reads and writes without logging them."""

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

    def zero(self, runs: PageRuns) -> None:
        self.discard(runs)

    def slot_of(self, pfn: int) -> tuple[int, int, mmap.mmap]:
        """Return slot, page number in it, and the slot's memory."""
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

    @property
    def logging(self) -> bool:
        """The slots are logged."""
        return self._dirty is not None

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
class PageWrite:
    """A change of a page by the guest or a device."""

    pfn: int
    value: int
    """0 to 255: fill the page with that byte; -1: discard it, as the balloon does."""


class WritingGuest:
    """Satisfies `pyvmm.migration.source.SourceGuest`; does `writes`, `step` of them at a time.

    The pages `before` are written first, without a log.
    """

    def __init__(
        self,
        config: MachineConfig,
        before: Iterable[PageWrite] = (),
        writes: Iterable[PageWrite] = (),
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
        self.write(before)
        self._writes = iter(writes)

    @property
    def logging(self) -> bool:
        """Changes to its memory are logged."""
        return self._vm.logging

    def log_dirty_pages(self) -> KvmDirtyLog:
        self.left_out = set()
        return _InterleavingLog(self, cast(Vm, self._vm), cast(Ram, self.ram))

    def request_unused_pages(self, timeout_s: float) -> Future[UnusedPages]:
        answer: Future[UnusedPages] = Future()
        self.run_next()
        self.left_out = set(self._unused)
        runs = PageRuns((pfn, 1) for pfn in self._unused)
        answer.set_result(UnusedPages(runs, "answered"))
        self.run_next()
        return answer

    def throttle(self, percentage: int) -> None:
        self.throttled.append(percentage)

    def stop(self) -> bool:
        self.run_next()
        self.stops += 1
        self.running = False
        return True

    def save_parts(self) -> Sequence[Record]:
        assert not self.running
        return PARTS

    def resume(self) -> None:
        assert not self.running
        self.running = True

    def run_next(self) -> None:
        """Do the next `step` writes, if the guest runs."""
        if self.running:
            self.write(islice(self._writes, self._step))

    def write(self, writes: Iterable[PageWrite]) -> None:
        """Do `writes` now."""
        for write in writes:
            self._write(write)

    def _write(self, write: PageWrite) -> None:
        slot, page, area = self.ram.slot_of(write.pfn)
        self.left_out.discard(write.pfn)
        if write.value < 0:
            self.ram.discard(PageRuns([(write.pfn, 1)]))
        else:
            area[page * PAGE : (page + 1) * PAGE] = bytes([write.value]) * PAGE
            self._vm.written(slot, page)


class _InterleavingLog(KvmDirtyLog):
    """The log under test; the guest writes before and after each of its operations."""

    def __init__(self, guest: WritingGuest, vm: Vm, ram: Ram) -> None:
        super().__init__(vm, ram)
        self._guest = guest

    def collect(self) -> PageRuns:
        self._guest.run_next()
        changed = super().collect()
        self._guest.run_next()
        return changed

    def clear(self, start_pfn: int, pages: int) -> None:
        self._guest.run_next()
        super().clear(start_pfn, pages)
        self._guest.run_next()


LOW_MIB = 65  # two chunks, the second of one MiB
PAGES = LOW_MIB * MIB // PAGE
CONFIG = config_of(LOW_MIB)
HOT = [0, 1, 2, 3, 511, 512, 513, 16383, 16384, 16385, PAGES - 1]
pfns = st.one_of(st.sampled_from(HOT), st.integers(0, PAGES - 1))
page_writes = st.builds(PageWrite, pfns, st.sampled_from([-1, 0, 0, 1, 2, 3, 255]))


@st.composite
def guests(draw: st.DrawFn) -> WritingGuest:
    return WritingGuest(
        CONFIG,
        draw(st.lists(page_writes, max_size=30)),
        draw(st.lists(page_writes, max_size=60)),
        unused=draw(st.sets(pfns, max_size=20)),
        step=draw(st.integers(1, 4)),
        manual=draw(st.booleans()),
    )


def check_memory(guest: WritingGuest, copy: PlainRam | None) -> None:
    """Compare all pages, except unused ones that nothing has used since the guest was asked."""
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


Corruption = Callable[[bytes, int], bytes]


def unchanged(data: bytes, offset: int) -> bytes:
    return data


def nothing() -> None:
    """Do nothing."""


class Wire(MigrationLink):
    """A link whose `corrupt(data, offset)` may change or cut off data, which begins at `offset`."""

    def __init__(
        self,
        stream: socket.socket,
        corrupt: Corruption = unchanged,
        before: Callable[[], None] = nothing,
    ) -> None:
        super().__init__(SocketLink(stream, local=True))
        self._corrupt = corrupt
        self._before = before
        self.sent = 0

    def pages(self, memory: GuestMemory, checksum: Checksum) -> PageChannel:
        if self._corrupt is unchanged and self._before is nothing:
            return super().pages(memory, checksum)
        return BufferedPages(self, memory, checksum)

    def send(self, data: Buffer) -> None:
        self._before()
        before = bytes(data)
        data = self._corrupt(before, self.sent)
        self.sent += len(before)
        super().send(data)
        if len(data) < len(before):
            self.abort()


def cut_at(offset: int) -> Corruption:
    """Break the connection after `offset` bytes."""
    return lambda data, sent: data[: max(offset - sent, 0)] if offset < sent + len(data) else data


def flip_at(offset: int, bit: int) -> Corruption:
    """Change one bit."""

    def corrupt(data: bytes, sent: int) -> bytes:
        if sent <= offset < sent + len(data):
            changed = bytearray(data)
            changed[offset - sent] ^= 1 << bit
            return bytes(changed)
        return data

    return corrupt


def join(migration: DestinationMigration, link: MigrationLink) -> None:
    """Have `migration` admit `link`, as a waiting destination does; close it if that refuses."""
    greeting = DestinationMigration(FakeTarget(), link)
    try:
        hello = greeting.receive_hello(20)
        assert hello is not None
        migration.streams.admit(hello, link)
    except MigrationError as error:
        greeting.refuse(str(error))
        link.close()


class Streams:
    """Makes the further connections to `destination`; `corrupt` changes what the source sends.

    The stream is identified by `number`, which is that of the connection, from 0 on.
    """

    def __init__(
        self, destination: DestinationMigration, corrupt: Callable[[int], Corruption]
    ) -> None:
        self._destination = destination
        self._corrupt = corrupt
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self.wires: list[Wire] = []

    def connect(self) -> Wire:
        one, other = socket.socketpair()
        with self._lock:
            wire = Wire(one, self._corrupt(len(self.wires)))
            self.wires.append(wire)
        thread = threading.Thread(target=join, args=(self._destination, Wire(other)))
        with self._lock:
            self._threads.append(thread)
        thread.start()
        return wire

    def close(self) -> None:
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive()


@dataclass
class MigrationResult:
    """The errors and figures of both sides of a migration."""

    progress: MigrationProgress = field(default_factory=MigrationProgress)
    source_error: Exception | None = None
    target_error: Exception | None = None
    sent_bytes: int = 0
    replied_bytes: int = 0
    stream_bytes: list[int] = field(default_factory=list)
    """Bytes sent on each further connection."""


def migrate(
    guest: WritingGuest,
    target: FakeTarget,
    settings: Settings | None = None,
    *,
    corrupt_source: Corruption = unchanged,
    corrupt_target: Corruption = unchanged,
    corrupt_stream: Callable[[int], Corruption] = lambda number: unchanged,
    watch: Callable[[SourceMigration, MigrationResult], None] = lambda source, result: None,
    timeouts: Timeouts = TIMEOUTS,
) -> MigrationResult:
    """Migrate `guest` to `target`; errors of both sides are in the result.

    `watch` is called before each message of the source, which `corrupt_source` may change.
    """
    one, other = socket.socketpair()
    result = MigrationResult()

    def before() -> None:
        guest.run_next()
        watch(source, result)

    source_wire = Wire(one, corrupt_source, before)
    target_wire = Wire(other, corrupt_target)
    destination = DestinationMigration(target, target_wire, timeouts)
    streams = Streams(destination, corrupt_stream)
    source = SourceMigration(
        guest, source_wire, settings or Settings(), result.progress, timeouts, streams.connect
    )

    def receive() -> None:
        try:
            destination.run()
        except Exception as error:
            result.target_error = error
        finally:
            target_wire.close()

    thread = threading.Thread(target=receive)
    thread.start()
    try:
        source.run()
    except Exception as error:
        result.source_error = error
    finally:
        source_wire.close()
    thread.join(60)
    assert not thread.is_alive()
    streams.close()
    result.stream_bytes = [wire.sent for wire in streams.wires]
    result.sent_bytes, result.replied_bytes = source_wire.sent, target_wire.sent
    return result

# SPDX-License-Identifier: Apache-2.0
"""The path of a snapshot without a guest: from RAM into a file, and from a file into RAM.

The code that saves and loads a real snapshot, with a guest that has no state and writes nothing,
is compared with the simplest programs that move the same memory: pwrite(2) and preadv(2) of the
mapping in pieces of 1 MiB, with a CRC-32C and without. They leave room for a header of a page, as
the place of data in a file decides how the kernel caches it, and load the same file. All of the
memory is random bytes, in huge pages where there are any.

A save ends when the file has been synced and has its name. Files are in a tmpfs, where only the
path itself takes time, and in the directory for temporary files, which should be on a disk: a file
there is removed from the page cache before it is loaded. `load` is what a host without userfaultfd
does, into RAM that has been touched before. `load on access` is what others do, while nothing
accesses RAM; it can only fill RAM that has not been touched, and so do the plain programs there.
After every turn the contents are verified.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench.measure import Case, Contender, Plan, Values, seconds, take_turns
from bench.migratable_guests import MEMORY as MEMORY_DIRECTORY
from bench.path_ram import EmptyLog, checksum_of, clear, fill
from bench.snapshot_path_cases import (
    CHECKED,
    DISK,
    FILE,
    LOAD,
    LOAD_ON_ACCESS,
    MEMORY,
    PYVMM,
    SAVE,
    case_name,
)
from bench.touched_ram import TouchedRam, have_huge_pages
from pyvmm.config import MachineConfig
from pyvmm.errors import UserError
from pyvmm.memory.precopy import UnusedPages
from pyvmm.snapshot.copier import Copier
from pyvmm.snapshot.format import PAGES_OFFSET
from pyvmm.snapshot.reader import SnapshotFile
from pyvmm.snapshot.userfaultfd_loader import UserfaultfdLoader
from pyvmm.snapshot.writer import SnapshotWriter
from pyvmm.state.config_record import config_record
from pyvmm.units import GIB, MIB
from pyvmm_native.checksum import crc32c
from pyvmm_native.lazy_pages import LazyPages
from pyvmm_native.memory import GuestMemory
from pyvmm_native.runs import PageRuns

RAM_BYTES = GIB
QUICK_BYTES = 64 * MIB
PIECE_BYTES = MIB
ROUNDS = 7
LIMIT_S = 120


def measure(plan: Plan) -> list[Case]:
    """Measure saving and both ways of loading, with files in memory and on the disk.

    Loading on access is left out where the kernel does not let this process watch page faults.
    """
    path = _Path(QUICK_BYTES if plan.quick else RAM_BYTES)
    cases = []
    works = (SAVE, LOAD, LOAD_ON_ACCESS) if _have_userfaultfd() else (SAVE, LOAD)
    for place, parent in ((MEMORY, MEMORY_DIRECTORY), (DISK, None)):
        with tempfile.TemporaryDirectory(dir=parent) as name:
            path.directory = Path(name)
            for work in works:
                cases.append(_measure(path, work, place, plan))
    return cases


def _measure(path: _Path, work: str, place: str, plan: Plan) -> Case:
    case = Case(case_name(work, place), "s", against=FILE, panel=place)
    turns = {SAVE: path.save, LOAD: path.load, LOAD_ON_ACCESS: path.load_on_access}
    contenders: dict[str, Contender] = {
        name: partial(turns[work], name) for name in (PYVMM, CHECKED, FILE)
    }
    rounds = plan.rounds(ROUNDS)
    return take_turns(case, contenders, rounds, plan, warm_up=not plan.quick, limit_s=LIMIT_S)


class _Path:
    """RAM of `size_bytes` that is saved, and as much to load into; files are in `directory`."""

    def __init__(self, size_bytes: int) -> None:
        self.directory = Path()
        self._ram, self._copy = TouchedRam(size_bytes), TouchedRam(size_bytes)
        for ram in (self._ram, self._copy):
            ram.use_huge_pages(have_huge_pages())
        fill(self._ram)
        self._crc = checksum_of(self._ram)

    def save(self, contender: str) -> Values:
        """Save RAM to a new file; return how long it took."""
        path = self.directory / contender
        path.unlink(missing_ok=True)
        if contender == PYVMM:
            took = _seconds(lambda: _save(self._ram, path))
        else:
            took = _seconds(lambda: _save_plainly(self._ram, path, checked=contender == CHECKED))
        clear(self._copy)
        self._read(contender, path)
        if contender != PYVMM:
            path.unlink()
        return took

    def load(self, contender: str) -> Values:
        """Load RAM that has been touched from the file; return how long it took."""
        clear(self._copy)
        return self._read(contender, self._uncached())

    def load_on_access(self, contender: str) -> Values:
        """Load RAM that has not been touched; return how long it took."""
        self._copy.close()
        return self._read(contender, self._uncached(), on_access=True)

    def _read(self, contender: str, path: Path, *, on_access: bool = False) -> Values:
        if contender != PYVMM:
            took = _seconds(lambda: self._load_plainly(path, checked=contender == CHECKED))
        elif on_access:
            took = _seconds(lambda: _load_on_access(self._copy, path))
        else:
            took = _seconds(lambda: _load(self._copy, path))
        if checksum_of(self._copy) != self._crc:
            raise UserError(f"{contender} has not saved and loaded all memory")
        return took

    def _load_plainly(self, path: Path, *, checked: bool) -> None:
        crc = _load_plainly(self._copy, path, checked=checked)
        if checked and crc != self._crc:
            raise UserError("wrong CRC-32C")

    def _uncached(self) -> Path:
        """Return the snapshot that was saved last, dropped from the cache of its disk."""
        path = self.directory / PYVMM
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
        return path


def _have_userfaultfd() -> bool:
    try:
        LazyPages(GuestMemory([]), [], -1)
    except PermissionError:
        return False
    return True


def _seconds(work: Callable[[], object]) -> Values:
    begin = time.monotonic()
    work()
    return seconds(time.monotonic() - begin)


def _save(ram: TouchedRam, path: Path) -> None:
    config = MachineConfig(Path("/none"), None, "", ram.size_bytes, 1, "bitmap")
    none = UnusedPages(PageRuns(), "")
    with SnapshotWriter(path, ram.memory) as file:
        copier = Copier(ram.memory, EmptyLog(), file, none, lambda pages: None)
        copier.copy_last_round()
        file.finish([config_record(config), copier.report(0).record()])


def _load(ram: TouchedRam, path: Path) -> None:
    with SnapshotFile(path, {}) as snapshot:
        snapshot.load(ram.memory)


def _load_on_access(ram: TouchedRam, path: Path) -> None:
    failures: list[UserError] = []
    with SnapshotFile(path, {}) as snapshot:
        loader = UserfaultfdLoader(snapshot, ram, failures.append)
    loader.start()
    loader.join()
    for failure in failures:
        raise failure


def _save_plainly(ram: TouchedRam, path: Path, *, checked: bool) -> None:
    """Write all of RAM, in order, to a file that is synced and then gets its name."""
    part = path.with_suffix(".part")
    crc, offset = 0, PAGES_OFFSET
    fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    for _, area in ram.areas:
        for at in range(0, len(area), PIECE_BYTES):
            piece = area[at : at + PIECE_BYTES]
            if checked:
                crc = crc32c(piece, crc)
            offset += os.pwrite(fd, piece, offset)
    os.fsync(fd)
    os.close(fd)
    part.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)


def _load_plainly(ram: TouchedRam, path: Path, *, checked: bool) -> int:
    """Read all of RAM, in order; return its CRC-32C if it is `checked`."""
    crc, offset = 0, PAGES_OFFSET
    fd = os.open(path, os.O_RDONLY)
    for _, area in ram.areas:
        for at in range(0, len(area), PIECE_BYTES):
            piece = area[at : at + PIECE_BYTES]
            offset += os.preadv(fd, [piece], offset)
            if checked:
                crc = crc32c(piece, crc)
    os.close(fd)
    return crc

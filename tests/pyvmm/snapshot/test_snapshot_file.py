# SPDX-License-Identifier: Apache-2.0
"""Snapshot files: written and read back, refused when damaged, replaced only by whole ones."""

from __future__ import annotations

import errno
import os
import random
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyvmm.cli.remedies import remedy
from pyvmm.config import MachineConfig
from pyvmm.errors import UserError
from pyvmm.memory.ram import Ram
from pyvmm.snapshot import format as layout
from pyvmm.snapshot.reader import SnapshotFile
from pyvmm.snapshot.report import PageReport
from pyvmm.snapshot.writer import SnapshotWriter
from pyvmm.sockets import lab_paths
from pyvmm.state.config_record import config_record
from pyvmm.state.records import Kind, Record
from pyvmm.units import GIB, MIB
from pyvmm_native.page_blocks import BLOCK_PAGES
from pyvmm_native.pages import bitmap
from pyvmm_native.runs import PageRuns

KINDS = {"part": Kind(2, 100, max_instances=3)}
PARTS = [Record("part", 2, b"two", 2), Record("part", 2, b"one")]
RAM_BYTES = 65 * MIB
PAGES = PageRuns([(0, 3), (511, 2), (1024, 512), (RAM_BYTES // 4096 - 1, 1)])


def config(ram_bytes: int = RAM_BYTES) -> MachineConfig:
    return MachineConfig(
        kernel=Path("/k\udcff"),
        initrd=None,
        command_line="console=ttyS0 é",
        ram_bytes=ram_bytes,
        vcpus=2,
        dialect="standard",
        offer=("reporting",),
    )


def report(pages: PageRuns, ram_bytes: int = RAM_BYTES) -> PageReport:
    return PageReport(pages.pages, 0, 0, ram_bytes // 4096 - pages.pages, 7, "no answer")


def filled(pages: PageRuns = PAGES, ram_bytes: int = RAM_BYTES, seed: int = 1) -> Ram:
    ram, numbers = Ram(ram_bytes), random.Random(seed)
    for start, count in pages:
        ram.memory.write(start * 4096, numbers.randbytes(count * 4096))
    return ram


def write(
    path: Path,
    ram: Ram,
    pages: PageRuns = PAGES,
    records: list[Record] = PARTS,
    on_block: Callable[[int], object] = lambda number: None,
    force: bool = False,
) -> int:
    own = [config_record(config(ram.size_bytes)), report(pages, ram.size_bytes).record()]
    with SnapshotWriter(path, ram.memory, force=force) as file:
        for number, bits in blocks_of(pages, ram):
            file.store(number, bits, bits)
            on_block(number)
        return file.finish([*own, *records])


def blocks_of(pages: PageRuns, ram: Ram) -> Iterator[tuple[int, int]]:
    """Yield number and bits of each block that has some of `pages`."""
    for start_pfn, count in ram.memory.page_ranges:
        for first_pfn in range(start_pfn, start_pfn + count, BLOCK_PAGES):
            if bits := int.from_bytes(bitmap(pages, first_pfn, BLOCK_PAGES), "little"):
                yield first_pfn // BLOCK_PAGES, bits


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    path = tmp_path / "snapshot"
    write(path, filled())
    return path


def read(path: Path) -> Ram:
    with SnapshotFile(path, KINDS) as snapshot:
        ram = Ram(snapshot.config.ram_bytes)
        snapshot.load(ram.memory)
    return ram


def same(one: Ram, other: Ram) -> bool:
    return one.size_bytes == other.size_bytes and all(
        one.memory.read(gpa, length) == other.memory.read(gpa, length)
        for gpa, length in one.memory.regions
    )


def test_a_snapshot_is_read_as_it_was_written(snapshot: Path) -> None:
    with SnapshotFile(snapshot, KINDS) as opened:
        assert opened.config == config()
        assert opened.report == report(PAGES)
        assert opened.parts == PARTS
        seen: list[int] = []
        opened.check(seen.append)
        assert seen == [4, 1, 512, 1]
    assert same(read(snapshot), filled())
    assert os.stat(snapshot).st_mode & 0o777 == 0o600


def test_the_file_is_hardly_larger_than_its_pages(snapshot: Path) -> None:
    assert PAGES.pages * 4096 < snapshot.stat().st_size < (PAGES.pages + 2) * 4096


def test_pages_above_4_gib_are_saved(tmp_path: Path) -> None:
    pages = PageRuns([(3 * GIB // 4096 - 2, 2), (4 * GIB // 4096, 1), (5 * GIB // 4096 - 1, 1)])
    ram = filled(pages, 4 * GIB)
    write(tmp_path / "s", ram, pages)
    copy = read(tmp_path / "s")
    for start, count in pages:
        gpa, length = start * 4096, count * 4096
        assert copy.memory.read(gpa, length) == ram.memory.read(gpa, length)


@pytest.mark.parametrize("part", range(12))
def test_a_flipped_bit_is_detected_anywhere_in_the_file(snapshot: Path, part: int) -> None:
    """One in each part of the file but the padding after the header."""
    data = bytearray(snapshot.read_bytes())
    header = 52 + 24
    places = [*range(header), *range(4096, len(data))]
    place = places[len(places) * part // 12 + part]
    data[place] ^= 1 << part % 8
    snapshot.write_bytes(data)
    with pytest.raises(UserError, match="cannot be used") as caught:
        read(snapshot)
    assert remedy(caught.value) == "take another one"


@pytest.mark.parametrize("size", [0, 1, 75, 76, 4095, 4096, 10000, -5000, -1])
def test_a_truncated_file_is_refused(snapshot: Path, size: int) -> None:
    os.truncate(snapshot, size % snapshot.stat().st_size)
    with pytest.raises(UserError, match=r"it is not a snapshot|it has \d+ bytes and not"):
        read(snapshot)


def test_trailing_bytes_are_refused(snapshot: Path) -> None:
    with snapshot.open("ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match="bytes and not"):
        read(snapshot)


def rewritten(path: Path, *records: Record, **header: int) -> None:
    """Replace the records of the file; all checksums are right."""
    pages = path.read_bytes()[4096 : (1 + PAGES.pages) * 4096]
    tail = b"".join(record.encode() for record in records)
    numbers = {"ram_bytes": RAM_BYTES, "room": PAGES.pages, "records_bytes": len(tail), **header}
    path.write_bytes(layout.Header(**numbers).encode() + pages + tail)


def own_records(path: Path) -> list[Record]:
    with SnapshotFile(path, KINDS) as snapshot:
        blocks = layout.encode_blocks(snapshot.blocks)
    return [config_record(config()), report(PAGES).record(), blocks]


def refused(path: Path, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(path)


def test_a_missing_record_is_refused_by_name(snapshot: Path) -> None:
    whole = own_records(snapshot)
    for record in whole:
        rewritten(snapshot, *(each for each in whole if each is not record))
        refused(snapshot, f"record '{record.kind}' is missing")


def test_a_repeated_record_is_refused_by_name(snapshot: Path) -> None:
    rewritten(snapshot, *own_records(snapshot), PARTS[0], PARTS[0])
    refused(snapshot, "record 'part' appears twice")


def test_a_configuration_with_another_ram_size_is_refused(snapshot: Path) -> None:
    _, *rest = own_records(snapshot)
    rewritten(snapshot, config_record(config(128 * MIB)), *rest)
    refused(snapshot, "record 'config' is of a guest with 134217728 bytes of RAM")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ram_bytes", 1 << 60, "bytes of RAM here"),
        ("ram_bytes", RAM_BYTES + 1, "bytes of RAM here"),
        ("room", 1 << 60, "claims more pages or records"),
        ("records_bytes", 1 << 60, "claims more pages or records"),
    ],
)
def test_a_header_with_impossible_sizes_is_refused(
    snapshot: Path, name: str, value: int, message: str
) -> None:
    rewritten(snapshot, *own_records(snapshot), **{name: value})
    refused(snapshot, message)


ONE = b"\1".ljust(64, b"\0")


@pytest.mark.parametrize(
    "blocks",
    [
        [layout.Block(1, 0, 0, ONE), layout.Block(0, 1, 0, ONE)],
        [layout.Block(0, 0, 0, ONE), layout.Block(0, 1, 0, ONE)],
        [layout.Block(0, 0, 0, bytes(64))],
        [layout.Block(32, 0, 0, b"\xff" * 64)],  # half of it is RAM
        [layout.Block(33, 0, 0, ONE)],
        [layout.Block(0xFFFF_FFFF, 0, 0, ONE)],
        [layout.Block(0, PAGES.pages, 0, ONE)],  # beyond the room for pages
        [layout.Block(0, 0xFFFF_FFFF, 0, ONE)],
        [layout.Block(0, 3, 0, ONE), layout.Block(1, 3, 0, ONE)],  # in one place
        [layout.Block(0, 1, 0, ONE), layout.Block(1, 0, 0, b"\3".ljust(64, b"\0"))],
    ],
)
def test_an_impossible_page_index_is_refused(snapshot: Path, blocks: list[layout.Block]) -> None:
    config_, report_, _ = own_records(snapshot)
    rewritten(snapshot, config_, report_, layout.encode_blocks(blocks))
    refused(snapshot, "record 'pages' names")


# --- Replacing a snapshot -------------------------------------------------------------------------
def test_a_full_disk_leaves_the_old_snapshot_as_it_was(tmp_path: Path) -> None:
    """On a tmpfs with room for the old snapshot and part of the new one."""
    script = """
import pathlib, sys
from tests.pyvmm.snapshot.test_snapshot_file import *
path = pathlib.Path(sys.argv[1]) / "snapshot"
write(path, filled())
old = path.read_bytes()
more = PageRuns([(0, 2048)])
try:
    write(path, filled(more), more)
except UserError as error:
    print(error)
assert path.read_bytes() == old
assert os.listdir(path.parent) == ["snapshot"]
print("whole")
"""
    done = subprocess.run(
        ["unshare", "--mount", "--map-root-user", "sh", "-c",
         'mount -t tmpfs -o size=5m none "$1" && exec "$2" -c "$3" "$1"',
         "sh", str(tmp_path), sys.executable, script],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(f"no file system of our own here: {done.stderr}")
    assert done.stdout.endswith("whole\n"), done.stderr
    assert "No space left on device" in done.stdout


def test_a_killed_writer_leaves_the_old_snapshot_as_it_was(snapshot: Path) -> None:
    """Killed at several moments, the last just before the rename."""
    old = snapshot.read_bytes()
    script = """
import os, pathlib, signal, sys
from tests.pyvmm.snapshot.test_snapshot_file import *
moment = int(sys.argv[2])
def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)
if moment == 4:
    pathlib.Path.replace = die
seen = []
def on_block(number):
    seen.append(number)
    if len(seen) == moment + 1:
        die()
write(pathlib.Path(sys.argv[1]), filled(seed=2), on_block=on_block)
"""
    for moment in range(5):
        command = [sys.executable, "-c", script, str(snapshot), str(moment)]
        done = subprocess.run(command, timeout=60, check=False)
        assert done.returncode == -signal.SIGKILL
        assert snapshot.read_bytes() == old
        left = [path for path in snapshot.parent.iterdir() if path != snapshot]
        assert len(left) == 1, "the writer before has removed the file of the one before it"
    write(snapshot, filled(seed=3))
    assert os.listdir(snapshot.parent) == [snapshot.name]


def test_an_aborted_writer_leaves_no_file(snapshot: Path) -> None:
    old = snapshot.read_bytes()

    def abort(number: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(snapshot, filled(seed=2), on_block=abort)
    assert snapshot.read_bytes() == old
    assert os.listdir(snapshot.parent) == [snapshot.name]


def create_pipe(path: Path) -> None:
    os.mkfifo(path)


def create_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def create_device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root creates device nodes")


@pytest.mark.parametrize("link", [False, True], ids=["itself", "a link to it"])
@pytest.mark.parametrize(
    ("create", "kind"),
    [(create_pipe, "a pipe"), (create_socket, "a socket"), (create_device, "a character device")],
)
def test_a_special_file_is_never_replaced(
    tmp_path: Path, create: Callable[[Path], None], kind: str, link: bool
) -> None:
    path = named = tmp_path / "special"
    create(path)
    before = path.lstat()
    if link:
        named = tmp_path / "link"
        named.symlink_to(path)
    for force in (False, True):
        with pytest.raises(UserError, match=f"{named}: it is {kind}"):
            SnapshotWriter(named, Ram(RAM_BYTES).memory, force=force).__enter__()
    assert os.path.samestat(path.lstat(), before)
    assert path.lstat().st_ctime_ns == before.st_ctime_ns


def test_another_file_is_replaced_only_by_force(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    path.write_text("snapshot of a thought")
    with pytest.raises(UserError, match="is a file, but not a snapshot") as error:
        write(path, filled())
    assert "--force" in remedy(error.value)
    assert path.read_text() == "snapshot of a thought"
    assert os.listdir(tmp_path) == ["notes"]
    write(path, filled(), force=True)
    assert same(read(path), filled())


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with pytest.raises(UserError, match="is a file, but not a snapshot"):
        write(path, filled(), on_block=lambda number: path.write_text("mine"))
    assert path.read_text() == "mine"


def test_a_damaged_snapshot_is_replaced(snapshot: Path) -> None:
    os.truncate(snapshot, 100)
    write(snapshot, filled(seed=2))
    assert same(read(snapshot), filled(seed=2))


@pytest.mark.parametrize("exists", [False, True])
def test_a_symbolic_link_is_followed(tmp_path: Path, exists: bool) -> None:
    """The new file is created beside the target, which may be on another file system."""
    (tmp_path / "to").mkdir()
    target, link = tmp_path / "to" / "s", tmp_path / "link"
    if exists:
        write(target, filled())
    link.symlink_to("to/s")
    write(link, filled(seed=2))
    assert os.readlink(link) == "to/s"
    assert same(read(target), filled(seed=2))


def test_a_file_name_may_have_255_bytes(tmp_path: Path) -> None:
    path = tmp_path / ("é" * 127 + "x")
    write(path, filled())
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EIO])
def test_a_directory_that_cannot_be_synced_is_reported_as_such(
    snapshot: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """EINVAL: the file system has nothing to sync. Another error: the new file is there, still."""
    sync = os.fsync

    def fail_for_directories(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(code, os.strerror(code))
        sync(fd)

    monkeypatch.setattr(os, "fsync", fail_for_directories)
    if code == errno.EINVAL:
        write(snapshot, filled(seed=2))
    else:
        with pytest.raises(UserError, match=r"is complete, but .* its directory") as error:
            write(snapshot, filled(seed=2))
        assert "untouched" not in remedy(error.value) + str(error.value)
    assert same(read(snapshot), filled(seed=2))


@pytest.mark.parametrize("link", [False, True])
def test_a_snapshot_that_the_lab_would_keep_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, link: bool
) -> None:
    path = Path(f"/dev/shm/pyvmm-test-{os.getpid()}")
    if link:
        (tmp_path / "link").symlink_to(path)
    monkeypatch.setenv(lab_paths.IN_LAB_VARIABLE, "1")
    for name, value in lab_paths.sockets_variable({Path("/vm.sock"): "/inner"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="does not share /dev with the host"):
        write(tmp_path / "link" if link else path, filled())
    assert not path.exists()


def test_unusable_paths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file or directory"):
        write(tmp_path / "nowhere" / "s", filled())
    (tmp_path / "directory").mkdir()
    with pytest.raises(UserError, match="directory"):
        write(tmp_path / "directory", filled())
    with pytest.raises(UserError, match="No such file"):
        SnapshotFile(tmp_path / "nothing", KINDS)

# SPDX-License-Identifier: Apache-2.0
"""The guest's memory program, compiled and run here: it must find exactly what was changed."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from guest_images.initramfs import compile_program
from guest_images.recipe import HERE

MIB = 1 << 20
PAGE_BYTES = 4096


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pattern") / "pattern"
    compile_program(HERE / "src" / "pattern.c", path)
    return path


class Session:
    """A running `pattern` that is spoken to on its standard input."""

    def __init__(self, program: Path) -> None:
        self.process = subprocess.Popen(
            [program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, command: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().rstrip("\n")

    def memory(self, mib: int) -> tuple[Path, int]:
        """Return the file of the process's memory and where its `mib` MiB lie in it."""
        maps = Path(f"/proc/{self.process.pid}/maps").read_text()
        for line in maps.splitlines():
            start, end = (int(text, 16) for text in line.split()[0].split("-"))
            # The kernel may have merged a neighbour into the mapping; ours are its last bytes.
            if mib * MIB <= end - start < (mib + 1) * MIB and "rw-p" in line:
                return Path(f"/proc/{self.process.pid}/mem"), end - mib * MIB
        raise AssertionError(maps)

    def overwrite(self, mib: int, offset: int, data: bytes) -> None:
        path, start = self.memory(mib)
        with path.open("r+b", buffering=0) as file:
            os.pwrite(file.fileno(), data, start + offset)

    def peek(self, mib: int, offset: int, length: int) -> bytes:
        path, start = self.memory(mib)
        with path.open("rb", buffering=0) as file:
            return os.pread(file.fileno(), length, start + offset)


@pytest.fixture
def session(program: Path) -> Iterator[Session]:
    session = Session(program)
    with session.process:
        yield session
        assert session.process.stdin is not None
        session.process.stdin.close()


def one_shot(program: Path, *arguments: str) -> tuple[int, list[str]]:
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout.splitlines()


def test_one_shot_runs_its_arguments_in_order(program: Path) -> None:
    status, replies = one_shot(program, *["alloc", "3", "fill", "7", "verify", "7", "free"])
    assert replies == [
        "ok allocated 3 MiB",
        "ok filled 3145728",
        "ok verified 3145728 wrong 0",
        "ok freed 3 MiB",
    ]
    assert status == 0


def test_another_seed_is_wrong_nearly_everywhere(program: Path) -> None:
    status, replies = one_shot(program, *["alloc", "1", "fill", "7", "verify", "8"])
    wrong = int(replies[-1].rpartition(" ")[2])
    assert wrong > 0.99 * MIB
    assert status == 1


def test_every_changed_byte_counts_once(session: Session) -> None:
    assert session.ask("alloc 4") == "ok allocated 4 MiB"
    assert session.ask("fill 42") == "ok filled 4194304"
    offsets = [0, 1, 4095, 4096, 2 * MIB + 3, 4 * MIB - 1]
    for count, offset in enumerate(offsets, start=1):
        (before,) = session.peek(4, offset, 1)
        session.overwrite(4, offset, bytes([before ^ 0x10]))
        assert session.ask("verify 42") == f"ok verified 4194304 wrong {count}"
    assert session.ask("fill 42") == "ok filled 4194304"
    assert session.ask("verify 42") == "ok verified 4194304 wrong 0"


def test_a_page_lost_or_moved_is_wrong(session: Session) -> None:
    session.ask("alloc 2")
    session.ask("fill 1")
    page = session.peek(2, 5 * PAGE_BYTES, PAGE_BYTES)
    session.overwrite(2, 5 * PAGE_BYTES, bytes(PAGE_BYTES))
    lost = int(session.ask("verify 1").rpartition(" ")[2])
    assert lost == PAGE_BYTES - page.count(0)
    session.overwrite(2, 5 * PAGE_BYTES, session.peek(2, 6 * PAGE_BYTES, PAGE_BYTES))
    moved = int(session.ask("verify 1").rpartition(" ")[2])
    assert moved > 0.95 * PAGE_BYTES


def test_memory_is_there_as_soon_as_it_is_allocated(session: Session) -> None:
    def resident_kib() -> int:
        status = Path(f"/proc/{session.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+)", status)
        assert found is not None
        return int(found[1])

    session.ask("meminfo")
    before = resident_kib()
    session.ask("alloc 16")
    assert resident_kib() >= before + 16 * 1024
    session.ask("free")
    assert resident_kib() < before + 1024


@pytest.mark.parametrize(
    ("command", "reply"),
    [
        ("fill 1", "error nothing is allocated"),
        ("verify 1", "error nothing is allocated"),
        ("free", "error nothing is allocated"),
        ("alloc", "error alloc takes a number"),
        ("alloc 1 2", "error '1 2' is not a number"),
        ("free 1", "error free takes nothing"),
        ("shell", "error shell takes a command"),
        ("thin 2", "error nothing is allocated"),
        ("grab 0", "error cannot allocate 0 MiB"),
        ("alloc 0", "error cannot allocate 0 MiB"),
        ("alloc -1", "error '-1' is not a number"),
        ("alloc 1x", "error '1x' is not a number"),
        ("alloc 99999999999999999999", "error '99999999999999999999' is not a number"),
        ("alloc 18446744073709551615", "error cannot allocate 18446744073709551615 MiB"),
        ("balloon 1", "error unknown command 'balloon'"),
        ("x" * 1400, "error line too long"),
    ],
)
def test_bad_commands_get_one_reply_and_change_nothing(
    session: Session, command: str, reply: str
) -> None:
    assert session.ask(command) == reply
    assert session.ask("alloc 1") == "ok allocated 1 MiB"


def test_more_memory_than_there_is_is_refused(session: Session) -> None:
    assert re.fullmatch(
        r"error 8388608 MiB asked for, \d+ MiB available", session.ask("alloc 8388608")
    )
    assert session.ask("alloc 1") == "ok allocated 1 MiB"
    assert session.ask("alloc 1") == "error 1 MiB are allocated already"


def test_thinned_memory_keeps_its_pattern_and_gives_the_rest_back(session: Session) -> None:
    session.ask("alloc 1")
    session.ask("fill 6")
    assert session.ask("thin 1") == "error cannot keep every 1. page"
    assert session.ask("thin 3") == f"ok kept {86 * PAGE_BYTES}"
    assert session.ask("verify 6") == f"ok verified {86 * PAGE_BYTES} wrong 0"
    for page in (1, 2, 255):
        given_back = bytes(PAGE_BYTES)
        assert (session.peek(1, page * PAGE_BYTES, PAGE_BYTES) == given_back) == (page % 3 != 0)
    session.overwrite(1, 255 * PAGE_BYTES, bytes(PAGE_BYTES))
    assert session.ask("verify 6").startswith(f"ok verified {86 * PAGE_BYTES} wrong 4")
    assert session.ask("thin 2") == "error cannot keep every 2. page"
    assert session.ask("free") == "ok freed 1 MiB"
    assert session.ask("alloc 1") == "ok allocated 1 MiB"
    assert session.ask("fill 6") == f"ok filled {MIB}"


@pytest.mark.parametrize(
    ("command", "reply"),
    [
        ("true", "ok 0 "),
        ("echo one; echo two >&2; exit 3", r"ok 3 one\ntwo\n"),
        (r"printf 'a\\b\nc'", r"ok 0 a\\b\nc"),
        ("kill -9 $$", "ok 137 "),
    ],
)
def test_the_shell_s_words_come_on_one_line(session: Session, command: str, reply: str) -> None:
    assert session.ask(f"shell {command}") == reply


def test_the_first_error_ends_a_one_shot_run(program: Path) -> None:
    assert one_shot(program, "alloc", "1", "fill", "x", "free") == (
        1,
        ["ok allocated 1 MiB", "error 'x' is not a number"],
    )
    assert one_shot(program, "alloc") == (1, ["error alloc takes a number"])


def test_meminfo_says_what_proc_says(session: Session) -> None:
    reply = session.ask("meminfo")
    found = re.fullmatch(r"ok total_kib (\d+) free_kib (\d+) available_kib (\d+)", reply)
    assert found is not None
    total = re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())
    assert total is not None
    assert found[1] == total[1]


def test_blank_lines_get_no_reply_and_quit_ends(session: Session) -> None:
    assert session.ask("\n  \nquit") == "ok bye"
    assert session.process.wait(10) == 0

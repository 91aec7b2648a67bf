# SPDX-License-Identifier: Apache-2.0
"""`pattern`, the guest's memory program, compiled and run here: it finds every changed byte."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from guest_images.initramfs import compile_program
from guest_images.recipe import HERE
from pyvmm.units import MIB
from pyvmm_native import PAGE_BYTES


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pattern") / "pattern"
    compile_program(HERE / "src" / "pattern.c", path)
    return path


class Session:
    """A running `pattern` that takes commands on its standard input."""

    def __init__(self, program: Path) -> None:
        self.process = subprocess.Popen(
            [program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def command(self, command: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().rstrip("\n")

    def memory(self, mib: int) -> tuple[Path, int]:
        """Return the file of the process's memory and the offset of its `mib` MiB in it."""
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

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Stop all threads of the process for the duration of the block."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitpid(self.process.pid, os.WUNTRACED)
        yield
        self.process.send_signal(signal.SIGCONT)


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


def test_commands_given_as_arguments_run_in_order(program: Path) -> None:
    status, replies = one_shot(program, *["alloc", "3", "fill", "7", "verify", "7", "free"])
    assert replies == [
        "ok allocated 3 MiB",
        "ok filled 3145728",
        "ok verified 3145728 wrong 0",
        "ok freed 3 MiB",
    ]
    assert status == 0


def test_the_pattern_of_another_seed_differs_in_nearly_all_bytes(program: Path) -> None:
    status, replies = one_shot(program, *["alloc", "1", "fill", "7", "verify", "8"])
    wrong = int(replies[-1].rpartition(" ")[2])
    assert wrong > 0.99 * MIB
    assert status == 1


def test_every_changed_byte_is_counted_once(session: Session) -> None:
    assert session.command("alloc 4") == "ok allocated 4 MiB"
    assert session.command("fill 42") == "ok filled 4194304"
    offsets = [0, 1, 4095, 4096, 2 * MIB + 3, 4 * MIB - 1]
    for count, offset in enumerate(offsets, start=1):
        (before,) = session.peek(4, offset, 1)
        session.overwrite(4, offset, bytes([before ^ 0x10]))
        assert session.command("verify 42") == f"ok verified 4194304 wrong {count}"
    assert session.command("fill 42") == "ok filled 4194304"
    assert session.command("verify 42") == "ok verified 4194304 wrong 0"


def test_a_lost_or_moved_page_is_found(session: Session) -> None:
    session.command("alloc 2")
    session.command("fill 1")
    page = session.peek(2, 5 * PAGE_BYTES, PAGE_BYTES)
    session.overwrite(2, 5 * PAGE_BYTES, bytes(PAGE_BYTES))
    lost = int(session.command("verify 1").rpartition(" ")[2])
    assert lost == PAGE_BYTES - page.count(0)
    session.overwrite(2, 5 * PAGE_BYTES, session.peek(2, 6 * PAGE_BYTES, PAGE_BYTES))
    moved = int(session.command("verify 1").rpartition(" ")[2])
    assert moved > 0.95 * PAGE_BYTES


def test_allocated_memory_is_resident(session: Session) -> None:
    def resident_kib() -> int:
        status = Path(f"/proc/{session.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+)", status)
        assert found is not None
        return int(found[1])

    session.command("meminfo")
    before = resident_kib()
    session.command("alloc 16")
    assert resident_kib() >= before + 16 * 1024
    session.command("free")
    assert resident_kib() < before + 1024


@pytest.mark.parametrize(
    ("command", "reply"),
    [
        ("fill 1", "error nothing is allocated"),
        ("verify 1", "error nothing is allocated"),
        ("free", "error nothing is allocated"),
        ("churn 1", "error nothing is allocated"),
        ("write 1", "error nothing is allocated"),
        ("report", "error nothing is running in the background"),
        ("stop", "error nothing is running in the background"),
        ("beat 0", "error cannot beat every 0 ms"),
        ("alloc", "error alloc takes a number"),
        ("alloc 1 2", "error '1 2' is not a number"),
        ("free 1", "error free takes no argument"),
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
def test_invalid_commands_get_one_reply_and_change_nothing(
    session: Session, command: str, reply: str
) -> None:
    assert session.command(command) == reply
    assert session.command("alloc 1") == "ok allocated 1 MiB"


def test_allocating_more_than_the_free_memory_is_refused(session: Session) -> None:
    assert re.fullmatch(
        r"error 8388608 MiB requested, \d+ MiB available", session.command("alloc 8388608")
    )
    assert session.command("alloc 1") == "ok allocated 1 MiB"
    assert session.command("alloc 1") == "error 1 MiB are allocated already"


def test_thin_keeps_the_pattern_of_the_pages_it_does_not_free(session: Session) -> None:
    session.command("alloc 1")
    session.command("fill 6")
    assert session.command("thin 1") == "error cannot keep one page in 1"
    assert session.command("thin 3") == f"ok kept {86 * PAGE_BYTES}"
    assert session.command("verify 6") == f"ok verified {86 * PAGE_BYTES} wrong 0"
    for page in (1, 2, 255):
        given_back = bytes(PAGE_BYTES)
        assert (session.peek(1, page * PAGE_BYTES, PAGE_BYTES) == given_back) == (page % 3 != 0)
    session.overwrite(1, 255 * PAGE_BYTES, bytes(PAGE_BYTES))
    assert session.command("verify 6").startswith(f"ok verified {86 * PAGE_BYTES} wrong 4")
    assert session.command("thin 2") == "error cannot keep one page in 2"
    assert session.command("free") == "ok freed 1 MiB"
    assert session.command("alloc 1") == "ok allocated 1 MiB"
    assert session.command("fill 6") == f"ok filled {MIB}"


@pytest.mark.parametrize(
    ("command", "reply"),
    [
        ("true", "ok 0 "),
        ("echo one; echo two >&2; exit 3", r"ok 3 one\ntwo\n"),
        (r"printf 'a\\b\nc'", r"ok 0 a\\b\nc"),
        ("kill -9 $$", "ok 137 "),
    ],
)
def test_shell_output_is_escaped_into_one_line(session: Session, command: str, reply: str) -> None:
    assert session.command(f"shell {command}") == reply


def test_the_first_error_ends_a_run_with_arguments(program: Path) -> None:
    assert one_shot(program, "alloc", "1", "fill", "x", "free") == (
        1,
        ["ok allocated 1 MiB", "error 'x' is not a number"],
    )
    assert one_shot(program, "alloc") == (1, ["error alloc takes a number"])


def test_meminfo_agrees_with_proc(session: Session) -> None:
    reply = session.command("meminfo")
    found = re.fullmatch(r"ok total_kib (\d+) free_kib (\d+) available_kib (\d+)", reply)
    assert found is not None
    total = re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())
    assert total is not None
    assert found[1] == total[1]


def test_blank_lines_are_ignored_and_quit_ends_the_program(session: Session) -> None:
    assert session.command("\n  \nquit") == "ok bye"
    assert session.process.wait(10) == 0


def figures(reply: str) -> dict[str, int]:
    """Return the figures in a reply to `report` or `stop`."""
    words = reply.split()
    assert words[0] == "ok"
    return dict(zip(words[1::2], map(int, words[2::2]), strict=True))


CHANGED_PAGES = 64
SEEN_BYTES = int(0.9 * CHANGED_PAGES * PAGE_BYTES)
"""Fewer than were changed: a thread may have compared a page and not yet rewritten it."""


def pages_of(memory: bytes) -> list[bytes]:
    return [memory[at : at + PAGE_BYTES] for at in range(0, len(memory), PAGE_BYTES)]


def reported(session: Session, figure: str, least: int) -> dict[str, int]:
    """Return the reply to `report` once `figure` has reached a value."""
    deadline = time.monotonic() + 60
    while (report := figures(session.command("report")))[figure] < least:
        assert time.monotonic() < deadline, report
        time.sleep(0.01)
    return report


def test_churned_memory_changes_and_stays_correct(session: Session) -> None:
    session.command("alloc 2")
    assert re.fullmatch(r"ok churning by [1-9]\d*", session.command("churn 7"))
    before = session.peek(2, 0, 2 * MIB)
    while session.peek(2, 0, 2 * MIB) == before:
        time.sleep(0.01)
    first = reported(session, "rounds", 2)
    assert first["bytes"] >= 2 * 2 * MIB
    last = figures(session.command("stop"))
    assert last["bytes"] >= first["bytes"] + 2 * MIB
    assert (last["wrong"], last["backward_us"]) == (0, 0)
    assert last["kb_per_s"] > 0
    still = session.peek(2, 0, 2 * MIB)
    time.sleep(0.02)
    assert session.peek(2, 0, 2 * MIB) == still
    assert session.command("free") == "ok freed 2 MiB"


def test_stale_or_lost_pages_of_churned_memory_are_found(session: Session) -> None:
    session.command("alloc 2")
    session.command("churn 7")
    old = session.peek(2, 0, CHANGED_PAGES * PAGE_BYTES)
    while any(map(bytes.__eq__, pages_of(old), pages_of(session.peek(2, 0, len(old))))):
        time.sleep(0.01)
    with session.stopped():
        session.overwrite(2, 0, old)
    found = reported(session, "wrong", SEEN_BYTES)["wrong"]
    with session.stopped():
        session.overwrite(2, 300 * PAGE_BYTES, bytes(CHANGED_PAGES * PAGE_BYTES))
    last = figures(session.command("stop"))
    assert last["wrong"] - found >= SEEN_BYTES
    assert session.command("quit") == "ok bye"
    assert session.process.wait(10) == 1


def test_a_stopped_process_sees_a_long_step_of_the_clock(session: Session) -> None:
    session.command("alloc 1")
    session.command("churn 7")
    rounds = reported(session, "rounds", 1)["rounds"]
    with session.stopped():
        time.sleep(0.3)
    reported(session, "rounds", rounds + 1)
    last = figures(session.command("stop"))
    assert last["step_us"] >= 250_000
    assert last["wrong"] == last["backward_us"] == 0


def test_write_keeps_its_rate(session: Session) -> None:
    session.command("alloc 4")
    session.command("fill 123456789")
    before = session.peek(4, 0, 4 * MIB)
    assert session.command("write 0") == "error cannot write 0 MB/s"
    assert session.command("write 40") == "ok writing 40 MB/s"
    assert session.command("verify 3").startswith("error memory is changing")
    report = reported(session, "rounds", 2)
    after = session.peek(4, 0, 4 * MIB)
    assert all(map(bytes.__ne__, pages_of(before), pages_of(after)))
    assert report["bytes"] >= 2 * 4 * MIB
    assert report["wrong"] == 0
    assert report["kb_per_s"] <= 41_000
    session.overwrite(4, 9 * PAGE_BYTES, bytes(PAGE_BYTES))
    reported(session, "rounds", report["rounds"] + 2)
    assert 0 < figures(session.command("stop"))["wrong"] <= 8


def test_memory_in_use_by_the_background_is_not_changed(session: Session) -> None:
    session.command("alloc 1")
    session.command("churn 7")
    for command in ("fill 1", "verify 1", "thin 2", "free", "churn 8", "write 1"):
        assert session.command(command) == (
            "error memory is changing in the background; stop that first"
        )
    assert session.command("shell echo well") == r"ok 0 well\n"
    session.command("stop")
    session.command("thin 2")
    assert session.command("churn 7") == "error only one page in 2 was kept"


def test_heartbeats_are_numbered_between_replies(session: Session) -> None:
    assert session.command("beat 5") == "ok every 5 ms"
    assert session.process.stdout is not None
    assert [session.process.stdout.readline() for _ in range(3)] == [
        "beat 1\n",
        "beat 2\n",
        "beat 3\n",
    ]
    session.command("beat 5")
    lines = [session.process.stdout.readline() for _ in range(9)]
    assert all(
        re.fullmatch(r"beat \d+\n|error the heartbeat is already running\n", line) for line in lines
    )

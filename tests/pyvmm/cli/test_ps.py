# SPDX-License-Identifier: Apache-2.0
"""`pyvmm ps` as a process, with announced guests whose processes answer, stay silent or end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from pyvmm.cli import guest_states
from pyvmm.cli.guest_states import query_states
from pyvmm.runtime_directory.announcement import Announcement, announce
from pyvmm.runtime_directory.guests import running_guests
from pyvmm.units import MIB
from tests.pyvmm.qmp.in_memory_vm import InMemoryVm, served_in_thread


@pytest.fixture(autouse=True)
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the runtime directory of a test; its path is short."""
    with TemporaryDirectory(prefix="pyvmm-", dir="/tmp") as base:
        monkeypatch.setenv("XDG_RUNTIME_DIR", base)
        yield Path(base) / "pyvmm"


@contextmanager
def announced(
    name: str, image: str = "/guest.img", incoming: str | None = None
) -> Iterator[Announcement]:
    with announce(name) as announcement:
        announcement.describe(image, 256 * MIB, incoming)
        yield announcement


@contextmanager
def running(name: str, vm: InMemoryVm, image: str = "/guest.img") -> Iterator[None]:
    with announced(name, image) as announcement, served_in_thread(vm, announcement):
        yield


def pyvmm(*arguments: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "pyvmm", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def ps() -> list[dict[str, Any]]:
    status, out, err = pyvmm("ps", "--json")
    assert (status, err) == (0, "")
    guests: list[dict[str, Any]] = json.loads(out)["guests"]
    return guests


def test_ps_lists_the_running_guests_by_name(runtime: Path) -> None:
    paused = InMemoryVm(512 * MIB)
    paused.status = "paused"
    with running("web", InMemoryVm(256 * MIB)), running("db", paused, "/a b/vm.snap"):
        status, out, err = pyvmm("ps")
        lines = [line.split() for line in out.splitlines()]
        assert (status, err) == (0, "")
        assert lines[0] == ["NAME", "PID", "STATUS", "RAM", "ACTUAL", "RSS", "UP", "IMAGE"]
        assert lines[1][:9] == [
            "db",
            str(os.getpid()),
            "paused",
            "512",
            "MiB",
            "512",
            "MiB",
            "64",
            "MiB",
        ]
        assert out.splitlines()[1].endswith(" s  /a b/vm.snap")
        db, web = ps()
        assert (web["name"], web["status"], web["actual"]) == ("web", "running", 256 * MIB)
        assert (db["target"], db["rss"], db["image"]) == (512 * MIB, 64 * MIB, "/a b/vm.snap")
        assert web["qmp"] == f"unix:{runtime}/web.sock"
        assert pyvmm("status", "--qmp", web["qmp"])[0] == 0


def test_ps_without_a_guest_says_so() -> None:
    assert pyvmm("ps") == (0, "", "pyvmm: no guest is running\n")
    assert ps() == []


@pytest.mark.parametrize(
    ("incoming", "age_s", "status"),
    [
        (None, 0, "starting"),
        (None, 1000, "not responding"),
        ("tcp:127.0.0.1:4444", 0, "inmigrate"),
        ("tcp:127.0.0.1:4444", 1000, "inmigrate"),
    ],
)
def test_a_guest_that_does_not_answer_delays_nothing_but_its_own_row(
    monkeypatch: pytest.MonkeyPatch, incoming: str | None, age_s: int, status: str
) -> None:
    monkeypatch.setattr(guest_states, "STATE_TIMEOUT_S", 0.3)
    monkeypatch.setattr(guest_states, "START_TIMEOUT_S", 0.2)
    monkeypatch.setattr(guest_states, "STARTING_S", 60.0 if age_s == 0 else -1.0)
    with announced("silent", incoming=incoming), running("web", InMemoryVm(256 * MIB)):
        silent, web = query_states()
    assert (silent.guest.name, silent.status, silent.actual_bytes) == ("silent", status, None)
    assert (web.status, web.actual_bytes) == ("running", 256 * MIB)


def test_more_guests_than_threads_are_all_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_states, "MAX_THREADS", 2)
    with ExitStack() as stack:
        for number in range(5):
            stack.enter_context(running(f"guest-{number}", InMemoryVm(256 * MIB)))
        assert [state.status for state in query_states()] == ["running"] * 5


def test_a_guest_that_ends_while_it_is_asked_is_not_listed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with announced("web") as announcement:
        guests = running_guests()
        announcement.remove()
    lists = [guests, []]
    monkeypatch.setattr(guest_states, "running_guests", lambda: lists.pop(0))
    assert query_states() == []


def test_escape_sequences_of_a_description_are_not_printed() -> None:
    with running("web", InMemoryVm(256 * MIB), "/\x1b[31m\nx"):
        out = pyvmm("ps")[1]
    assert r"/\x1b[31m\nx" in out
    assert len(out.splitlines()) == 2


def test_a_directory_that_others_can_change_is_an_error(runtime: Path) -> None:
    runtime.mkdir()
    runtime.chmod(0o777)
    status, out, err = pyvmm("ps")
    assert (status, out) == (2, "")
    assert "other users may use the runtime directory" in err
    assert "set XDG_RUNTIME_DIR to a directory that only you may use" in err

# SPDX-License-Identifier: Apache-2.0
"""Announce guests in the runtime directory, with processes that are killed and hostile files."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pyvmm.runtime_directory.announcement import (
    MAX_NUMBER,
    Announcement,
    announce,
    announce_numbered,
    process_start_time,
)
from pyvmm.runtime_directory.errors import (
    GuestNameInUse,
    InvalidGuestName,
    NoSuchGuest,
    RuntimeDirectoryUnusable,
)
from pyvmm.runtime_directory.guests import find_guest, running_guests

ANNOUNCE = """
import sys, time
from pyvmm.runtime_directory.announcement import announce
announcement = announce(sys.argv[1])
announcement.describe("/image", 1 << 30, None)
print("announced", flush=True)
time.sleep(1000)
"""


def described(name: str, image: str = "/guest.img") -> Announcement:
    announcement = announce(name)
    announcement.describe(image, 1 << 30, None)
    return announcement


def process_with_guest(name: str) -> subprocess.Popen[str]:
    """Return a process that has announced a guest called `name`."""
    process = subprocess.Popen(
        [sys.executable, "-c", ANNOUNCE, name], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "announced\n"
    return process


def names() -> list[str]:
    return [guest.name for guest in running_guests()]


def test_an_announced_guest_is_found_by_its_name(runtime: Path) -> None:
    with described("web") as announcement:
        guest = find_guest("web")
        assert guest == running_guests()[0]
        assert guest.socket == announcement.path == runtime / "web.sock"
        assert (guest.image, guest.ram_bytes, guest.incoming) == ("/guest.img", 1 << 30, None)
        assert (guest.pid, guest.pid_start_time) == (os.getpid(), process_start_time("self"))
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(guest.socket))
    assert os.listdir(runtime) == []
    with pytest.raises(NoSuchGuest, match="no running guest is called web"):
        find_guest("web")


def test_the_files_of_a_guest_are_for_its_user_only(runtime: Path) -> None:
    with described("web"):
        assert stat.S_IMODE(runtime.stat().st_mode) == 0o700
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in runtime.iterdir()}
    assert modes == {"web.json": 0o1600, "web.sock": 0o600}


@pytest.mark.parametrize(
    "image", ["/a b/\N{SNOWMAN}\N{GRINNING FACE}", '/"\\\n\x1b[31m', "/not-utf-8-\udcff"]
)
def test_a_description_is_json_with_any_path(runtime: Path, image: str) -> None:
    with described("web", image):
        document = json.loads((runtime / "web.json").read_bytes())
        assert document["image"] == image == find_guest("web").image
        assert document["incoming"] is None
        assert (runtime / "web.json").read_bytes().isascii()


def test_a_name_belongs_to_one_running_guest(runtime: Path) -> None:
    with described("web"):
        with pytest.raises(GuestNameInUse, match="a guest called web is running"):
            announce("web")
        assert names() == ["web"]
    described("web").remove()


def test_a_guest_without_a_name_gets_the_next_number(runtime: Path) -> None:
    with announce_numbered("guest") as first, announce_numbered("guest") as second:
        assert (first.name, second.name) == ("guest-1", "guest-2")
        first.remove()
        with announce_numbered("guest") as third:
            assert third.name == "guest-1"


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("vmlinuz-6.1.0-18", "vmlinuz-6.1.0-18-1"),
        ("my image\n\x1b[0m", "my-image---0m-1"),
        (".hidden", "hidden-1"),
        ("\N{SNOWMAN}", "guest-1"),
        ("-" * 300, "guest-1"),
        ("x" * 300, "x" * 43 + "-1"),
    ],
)
def test_a_name_is_made_of_any_file_name(runtime: Path, stem: str, name: str) -> None:
    with announce_numbered(stem) as announcement:
        assert announcement.name == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../web", "a/b", "-v", ".web", "a b", "web\n", "w\0b", "é", "x" * 49]
)
def test_a_hostile_name_is_refused(runtime: Path, name: str) -> None:
    with pytest.raises(InvalidGuestName, match="a guest cannot be called"):
        announce(name)
    with pytest.raises(InvalidGuestName):
        find_guest(name)
    assert not runtime.exists()


def test_a_description_that_cannot_be_written_leaves_no_files(
    runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    announcement = announce("web")
    monkeypatch.setattr(os, "pwrite", fail)
    with pytest.raises(RuntimeDirectoryUnusable, match="cannot be used: No space left on device"):
        announcement.describe("/guest.img", 1 << 30, None)
    assert os.listdir(runtime) == []


def test_a_directory_that_cannot_be_read_is_reported(
    runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    runtime.mkdir(mode=0o700)
    with monkeypatch.context() as patches:
        patches.setattr(os, "scandir", fail)
        with pytest.raises(RuntimeDirectoryUnusable, match="cannot be used: Permission denied"):
            running_guests()


def test_a_killed_guest_is_not_listed_and_its_files_are_removed(runtime: Path) -> None:
    with process_with_guest("killed") as process, described("alive"):
        assert names() == ["alive", "killed"]
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (runtime / "killed.sock").exists()
        assert names() == ["alive"]
        assert sorted(os.listdir(runtime)) == ["alive.json", "alive.sock"]


def test_the_name_of_a_killed_guest_can_be_used_again(runtime: Path) -> None:
    with process_with_guest("web") as process:
        process.kill()
    with described("web", "/new"):
        assert find_guest("web").image == "/new"


def test_a_guest_that_is_starting_is_not_listed(runtime: Path) -> None:
    with announce("web"):
        assert names() == []
        assert (runtime / "web.json").exists()


def test_files_of_a_guest_with_the_same_name_are_not_removed(runtime: Path) -> None:
    first = described("web")
    for path in runtime.iterdir():  # somebody clears the directory
        path.unlink()
    with described("web", "/second"):
        first.remove()
        assert find_guest("web").image == "/second"


def test_threads_that_list_do_not_disturb_a_start(runtime: Path) -> None:
    stop = threading.Event()

    def list_all() -> None:
        while not stop.is_set():
            running_guests()

    listing = [threading.Thread(target=list_all) for _ in range(2)]
    for thread in listing:
        thread.start()
    try:
        for _ in range(100):
            with described("web"):
                assert names() == ["web"]
    finally:
        stop.set()
        for thread in listing:
            thread.join()


def test_thousands_of_leftovers_are_removed(runtime: Path) -> None:
    described("web").remove()
    for number in range(3000):
        (runtime / f"guest-{number}.json").write_text("{}")
        (runtime / f"guest-{number}.sock").touch()
    with described("web"):
        assert names() == ["web"]
        assert sorted(os.listdir(runtime)) == ["web.json", "web.sock"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "[" * 60000,
        '{"pid": 1}',
        '{"pid": "1", "pid-start-time": 1, "started": 1, "image": "", "base-memory": 1,'
        ' "incoming": null}',
        '{"pid": 1, "pid-start-time": -1, "started": 1, "image": "", "base-memory": 1,'
        ' "incoming": null}',
        '{"pid": 1, "pid-start-time": 1, "started": 1, "image": 7, "base-memory": 1,'
        ' "incoming": null}',
    ],
)
def test_an_invalid_description_announces_nothing(runtime: Path, text: str) -> None:
    with announce("web"):
        (runtime / "web.json").write_text(text)
        assert names() == []


def test_other_files_in_the_directory_are_left_alone(runtime: Path) -> None:
    with described("web"):
        os.mkfifo(runtime / "pipe.json")
        (runtime / "dir.json").mkdir()
        (runtime / "link.json").symlink_to("web.json")
        (runtime / "-x.json").touch()
        (runtime / "note").touch()
        before = sorted(os.listdir(runtime))
        assert names() == ["web"]
        assert sorted(os.listdir(runtime)) == before
        with pytest.raises(RuntimeDirectoryUnusable, match="symbolic links"):
            announce("link")


def test_all_numbers_in_use_are_reported(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_NUMBER > 1000
    monkeypatch.setattr("pyvmm.runtime_directory.announcement.MAX_NUMBER", 1)
    with announce_numbered("guest"), pytest.raises(RuntimeDirectoryUnusable, match="is full"):
        announce_numbered("guest")

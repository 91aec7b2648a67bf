# SPDX-License-Identifier: Apache-2.0
"""`pyvmm unused`: its map as a function, the command as a process on a real control socket."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from devices.testing.balloon.misc import GET_UNUSED_PAGES
from pyvmm.cli.unused import ASCII, BLOCKS, COLUMNS, MAX_ROWS, page_map
from pyvmm.units import GIB, MIB
from tests.pyvmm.qmp.in_memory_vm import InMemoryVm, served_in_thread

ROOT = Path(__file__).parents[3]


def unused(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pyvmm", "unused", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def rows_of(output: str) -> dict[int, str]:
    """Return the rows of the map by their addresses."""
    lines = [line for line in output.splitlines() if line.startswith("0x")]
    pairs = (line.split("  ", 1) for line in lines)
    return {int(address.replace("_", ""), 16): drawn for address, drawn in pairs}


def test_a_character_shows_the_share_of_unused_pages() -> None:
    drawn = [BLOCKS.of(n, 300) for n in (0, 1, 99, 100, 199, 200, 299, 300)]
    assert "".join(drawn) == "·░░▒▒▓▓█"
    assert BLOCKS.of(0, 0) == " ", "no RAM, nothing to be unused"
    assert ASCII.of(1, 1) == "#"


def test_a_small_memory_is_one_row_of_the_map() -> None:
    assert list(page_map(256, [256] * 4, [0, 10, 255, 256], ASCII)) == ["0x0_0000_0000  .-=#"]


def test_the_hole_in_memory_is_one_line() -> None:
    cell = GIB // 4096 // COLUMNS
    ram = [cell] * (3 * COLUMNS) + [0] * COLUMNS + [cell] * COLUMNS
    lines = list(page_map(cell, ram, ram, ASCII))
    assert lines == [
        "0x0_0000_0000  " + "#" * COLUMNS,
        "0x0_4000_0000  " + "#" * COLUMNS,
        "0x0_8000_0000  " + "#" * COLUMNS,
        "0x0_c000_0000  (no RAM here: 1 GiB)",
        "0x1_0000_0000  " + "#" * COLUMNS,
    ]


def test_the_command_prints_figures_and_a_map(tmp_path: Path) -> None:
    machine = InMemoryVm(64 * MIB)
    machine.misc_guest.unused = {*range(1024, 2048), *range(3 * 512, 3 * 512 + 4), 3072, 16383}
    with served_in_thread(machine, tmp_path / "qmp"):
        process = unused("--qmp", f"unix:{tmp_path}/qmp")
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    lines = process.stdout.splitlines()
    assert lines[0] == "unused: 1,026 pages, 4.01 MiB of 64 MiB (6.3%)"
    assert lines[1].startswith("runs: 3, the longest 4 MiB; answered in 0.")
    assert lines[-1].endswith("(one character is 32 KiB)")
    rows = rows_of(process.stdout)
    assert len(rows) == MAX_ROWS
    assert rows[0] == "·" * COLUMNS
    assert rows[4 * MIB] == rows[6 * MIB] == "█" * COLUMNS
    assert rows[12 * MIB] == "░" + "·" * (COLUMNS - 1)
    assert rows[62 * MIB] == "·" * (COLUMNS - 1) + "░"


def test_the_map_of_4_gib_has_the_hole_and_rows_above_it(tmp_path: Path) -> None:
    machine = InMemoryVm(4 * GIB)
    machine.misc_guest.unused = set(range(1 << 20, (1 << 20) + (1 << 15)))
    with served_in_thread(machine, tmp_path / "qmp"):
        process = unused("--qmp", f"unix:{tmp_path}/qmp")
    rows = rows_of(process.stdout)
    assert rows[3 * GIB] == "(no RAM here: 1 GiB)"
    assert rows[4 * GIB] == "█" * 32 + "·" * 32
    assert len(rows) == 17


def test_a_terminal_without_block_characters_gets_ascii(tmp_path: Path) -> None:
    with served_in_thread(InMemoryVm(64 * MIB), tmp_path / "qmp"):
        process = unused("--qmp", f"unix:{tmp_path}/qmp", PYTHONIOENCODING="latin-1")
    assert process.returncode == 0
    assert rows_of(process.stdout)[4 * MIB] == "#" * COLUMNS
    assert process.stdout.isascii()


def test_drop_caches_syncs_and_drops_caches_first(tmp_path: Path) -> None:
    machine = InMemoryVm(64 * MIB)
    guest = machine.misc_guest
    guest.unused, guest.cached, guest.dirty = {1}, set(range(64, 164)), {70}
    with served_in_thread(machine, tmp_path / "qmp"):
        process = unused("--drop-caches", "--qmp", f"unix:{tmp_path}/qmp")
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith("unused: 101 pages")


def test_a_driver_that_cannot_sync_is_reported(tmp_path: Path) -> None:
    machine = InMemoryVm(64 * MIB)
    machine.misc_guest.commands = {GET_UNUSED_PAGES}
    with served_in_thread(machine, tmp_path / "qmp"):
        process = unused("--drop-caches", "--qmp", f"unix:{tmp_path}/qmp")
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr == (
        "pyvmm: the request failed: the guest's balloon driver does not know SYNC;"
        " see 'pyvmm unused --help'\n"
    )


@pytest.mark.parametrize("timeout", ["0.2", "0"])
def test_a_guest_that_does_not_answer_gives_status_2(tmp_path: Path, timeout: str) -> None:
    machine = InMemoryVm(64 * MIB)
    machine.pause()
    with served_in_thread(machine, tmp_path / "qmp"):
        process = unused("--qmp", f"unix:{tmp_path}/qmp", "--timeout", timeout)
    assert process.returncode == 2
    assert ("is paused" if timeout == "0.2" else "'timeout' expects") in process.stderr


def test_help_names_the_purpose_and_the_requirements() -> None:
    process = unused("--help")
    assert process.returncode == 0
    for words in ("does not use", "--drop-caches", "unix:PATH", "MISC_VQ", "MemFree"):
        assert words in process.stdout
    assert (
        "unused"
        in subprocess.run(
            [sys.executable, "-m", "pyvmm", "--help"], cwd=ROOT, capture_output=True, text=True
        ).stdout
    )

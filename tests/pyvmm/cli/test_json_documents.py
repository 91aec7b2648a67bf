# SPDX-License-Identifier: Apache-2.0
"""`--json` of every command that has it: real documents have the members that the page lists."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from guest_images.manifest import Manifest
from pyvmm.cache.directory import cache_dir
from pyvmm.cli import image
from pyvmm.cli.demo.report import report
from pyvmm.cli.main import COMMANDS, main
from pyvmm.runtime_directory.announcement import announce
from pyvmm.units import MIB
from tests.pyvmm.cli.json_reference import differences, sections
from tests.pyvmm.cli.test_demo_report import figures
from tests.pyvmm.migration.migration_destination import Destination
from tests.pyvmm.migration.migration_guest import FakeTarget
from tests.pyvmm.qmp.in_memory_vm import InMemoryVm, served_in_thread

SECTIONS = sections()
Run = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemoryVm]:
    """Serve a VM whose address is in the environment."""
    machine = InMemoryVm(64 * MIB)
    machine.ram.memory.write(5000 * 4096, b"something")
    monkeypatch.setenv("PYVMM_QMP", f"unix:{tmp_path}/qmp")
    with served_in_thread(machine, tmp_path / "qmp"):
        yield machine


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command with `--json`; return its exit status and its document."""

    def run(*arguments: object) -> tuple[int, dict[str, Any]]:
        with pytest.raises(SystemExit) as exit_info:
            main([*map(str, arguments), "--json"])
        assert isinstance(exit_info.value.code, int)
        return exit_info.value.code, the_document(capsys)

    return run


def the_document(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Return the one line of standard output, decoded."""
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert out.endswith("\n")
    document: dict[str, Any] = json.loads(out)
    return document


def assert_described(document: dict[str, Any], section: str) -> None:
    assert list(differences(document, SECTIONS[section].members)) == []


def test_every_command_with_json_is_described() -> None:
    with_json = set()
    context = click.Context(main)
    for name in COMMANDS:
        command = main.get_command(context, name)
        assert command is not None
        commands = {name: command}
        if isinstance(command, click.Group):
            commands = {f"{name} {each}": sub for each, sub in command.commands.items()}
        with_json |= {
            f"pyvmm {path}"
            for path, each in commands.items()
            if any("--json" in parameter.opts for parameter in each.params)
        }
    titles = " and ".join(SECTIONS).replace(" --info", "").split(" and ")
    assert with_json | {"pyvmm run"} == set(titles)  # --status-file


@pytest.mark.parametrize("section", SECTIONS)
def test_the_example_has_the_members_of_the_table(section: str) -> None:
    assert_described(SECTIONS[section].example, section)


def test_a_document_that_differs_from_its_description_is_found() -> None:
    members = SECTIONS["pyvmm status"].members
    document = SECTIONS["pyvmm status"].example
    more = {**document, "actual": "1", "new-member": 1}
    del more["running"]
    assert list(differences(more, members)) == [
        "running is missing",
        "actual is not of type integer: '1'",
        "new-member is not described",
    ]
    assert list(differences({**document, "actual": None}, members)) == []
    assert list(differences({**document, "status": None}, members)) != []
    nested = SECTIONS["pyvmm doctor"].members
    wrong = {**SECTIONS["pyvmm doctor"].example, "findings": [{"subject": 1}]}
    assert "findings[].found is missing" in list(differences(wrong, nested))


def test_status_prints_its_document(machine: InMemoryVm, run: Run) -> None:
    status, document = run("status")
    assert (status, document["status"], document["actual"]) == (0, "running", 64 * MIB)
    assert_described(document, "pyvmm status")


def test_ps_and_top_print_their_documents(run: Run) -> None:
    with announce("web") as announcement, served_in_thread(InMemoryVm(64 * MIB), announcement):
        announcement.describe("/guest.img", 64 * MIB, None)
        status, document = run("ps")
        assert (status, document["guests"][0]["status"]) == (0, "running")
        assert_described(document, "pyvmm ps")
        status, document = run("top", "--interval", "0.1")
        assert (status, document["guests"][0]["exits"]["pio"]) == (0, 0)
        assert_described(document, "pyvmm top")


@pytest.mark.parametrize(
    ("arguments", "target", "reached"),
    [
        (["32M", "--force"], 32 * MIB, True),
        (["16M", "--no-wait", "--force"], 16 * MIB, False),
        ([], None, None),
    ],
)
def test_balloon_prints_its_document(
    machine: InMemoryVm,
    run: Run,
    arguments: list[str],
    target: int | None,
    reached: bool | None,
) -> None:
    status, document = run("balloon", *arguments)
    assert (status, document["target"], document["reached"]) == (0, target, reached)
    assert (document["seconds"] is None) == (arguments[:1] != ["32M"])
    assert_described(document, "pyvmm balloon")


def test_a_balloon_that_stops_short_is_not_reached(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], run: Run
) -> None:
    with served_in_thread(InMemoryVm(64 * MIB, stuck_at_bytes=48 * MIB), tmp_path / "qmp"):
        options = ("--force", "--timeout", 0.2, "--qmp", f"unix:{tmp_path}/qmp")
        status, document = run("balloon", "32M", *options)
    assert (status, document["reached"], document["actual"]) == (1, False, 48 * MIB)
    assert (document["target"], document["taken-back"]) == (32 * MIB, True)


def test_stats_prints_its_document(machine: InMemoryVm, run: Run) -> None:
    machine.stats_guest.statistics[16] = 9
    status, document = run("stats")
    assert (status, document["unknown"]) == (0, {"16": 9})
    assert document["stats"].keys() >= SECTIONS["pyvmm stats"].example["stats"].keys()
    assert_described(document, "pyvmm stats")


def test_unused_prints_its_document(machine: InMemoryVm, run: Run) -> None:
    machine.misc_guest.unused = {6000}
    status, document = run("unused")
    assert (status, document["unused-pages"], sum(document["cells"]["unused"])) == (0, 1, 1)
    assert_described(document, "pyvmm unused")


def test_snapshot_and_info_print_their_documents(
    machine: InMemoryVm, run: Run, tmp_path: Path
) -> None:
    """The control socket in the environment does not conflict with --info."""
    file = tmp_path / "s"
    status, document = run("snapshot", file)
    assert (status, document["file"], document["pages"]["stored"] > 0) == (0, str(file), True)
    assert_described(document, "pyvmm snapshot")
    status, shown = run("snapshot", file, "--info")
    assert (status, shown["pages"]) == (0, document["pages"])
    assert shown["base-memory"] == 64 * MIB
    assert_described(shown, "pyvmm snapshot --info")


def test_migrate_prints_its_document(machine: InMemoryVm, run: Run, tmp_path: Path) -> None:
    destination = Destination(tmp_path / "m", FakeTarget())
    status, document = run("migrate", f"unix:{tmp_path}/m", "--keep")
    destination.join()
    assert (status, document["status"], document["error-desc"]) == (0, "completed", None)
    assert document["source-status"] == "postmigrate"
    assert_described(document, "pyvmm migrate")


def test_a_failed_migration_has_a_document(machine: InMemoryVm, run: Run, tmp_path: Path) -> None:
    status, document = run("migrate", f"unix:{tmp_path}/m")
    assert (status, document["status"], document["downtime"]) == (1, "failed", None)
    assert "no destination can be reached" in document["error-desc"]
    assert document["source-status"] == "running"
    assert_described(document, "pyvmm migrate")


def test_doctor_prints_its_document(run: Run) -> None:
    status, document = run("doctor")
    assert document["usable"] == (status == 0)
    assert document["findings"]
    assert_described(document, "pyvmm doctor")


def test_the_cache_commands_print_their_documents(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (cache_dir("elf") / "table").write_bytes(b"12")
    for command in ("show", "prune"):
        status, document = run("cache", command)
        assert status == 0
        assert_described(document, f"pyvmm cache {command}")


def test_the_image_commands_print_their_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    manifest = Manifest("bitmap", "quiet", {"bitmap": "b", "standard": ""}, "6.12", "d", "t", "i")
    monkeypatch.setattr(image, "read_manifest", lambda file: manifest)
    monkeypatch.setattr(image, "image_path", lambda recipe: tmp_path)
    monkeypatch.setattr(image, "read_recipe", lambda source: None)
    monkeypatch.setattr(image, "build_image", lambda output, **options: tmp_path)
    status, document = run("image", "info", tmp_path)
    assert (status, document["command-lines"]["bitmap"]) == (0, "quiet b")
    assert_described(document, "pyvmm image info")
    for command in ("build", "where"):
        status, document = run("image", command)
        assert (status, document) == (0, {"file": str(tmp_path)})
        assert_described(document, "pyvmm image build and pyvmm image where")


def test_a_failed_demo_prints_its_document(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(figures(wrong_bytes=1), tmp_path, as_json=True) == 1
    document = the_document(capsys)
    assert document["failures"] == ["1 bytes of the memory that the guest kept have changed"]
    assert_described(document, "pyvmm demo")

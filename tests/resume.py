# SPDX-License-Identifier: Apache-2.0
"""Share a test run, and go on with one that was cut off: `pytest -p tests.resume --resume DIR`.

Runs with the same DIR, in whatever machines that see it, share their tests: who comes to a file of
tests first takes it, by making a file in DIR whose name ends in `.taken`. Every run notes in DIR,
test by test, what has passed, so that this is right whenever it is cut off; what has passed is left
out by all later runs. Remove the claims before such a run. Used by `tests.with_kvm`.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

FAILED = pytest.StashKey[bool]()
NOTES = pytest.StashKey[Path]()
TAKEN = pytest.StashKey[dict[Path, bool]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--resume", type=Path, required=True, metavar="DIR")


def pytest_configure(config: pytest.Config) -> None:
    fd, notes = tempfile.mkstemp(".passed", dir=config.getoption("--resume"))
    os.close(fd)
    config.stash[NOTES] = Path(notes)
    config.stash[TAKEN] = {}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    notes = config.getoption("--resume").glob("*.passed")
    passed = {node for note in notes for node in note.read_text().splitlines()}
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in passed])
    items[:] = [item for item in items if item.nodeid not in passed]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    """Pass over the tests of a file that another run has taken. True ends pytest's own protocol."""
    taken = item.config.stash[TAKEN]
    if item.path not in taken:
        taken[item.path] = _take(item.path, item.config)
    return None if taken[item.path] else True


def _take(path: Path, config: pytest.Config) -> bool:
    name = "-".join(path.relative_to(config.rootpath).parts)
    try:
        (config.getoption("--resume") / f"{name}.taken").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):  # type: ignore[no-untyped-def]
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    elif report.when == "teardown" and FAILED not in item.stash:
        with item.config.stash[NOTES].open("a") as file:
            file.write(f"{item.nodeid}\n")
    return report


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and not session.testsfailed:
        session.exitstatus = pytest.ExitCode.OK  # everything had passed before

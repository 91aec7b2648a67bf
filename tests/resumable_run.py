# SPDX-License-Identifier: Apache-2.0
"""Share a test run between processes, and resume one that was interrupted.

    pytest -p tests.resumable_run --resume DIR

Runs with the same DIR, on any machines that see it, share their tests: the first to reach a test
file claims it by creating a file in DIR whose name ends in `.claimed`. Each run records in DIR the
tests that have passed, one by one, so that the record is right after an interruption; later runs
skip these tests. Remove the claims before a later run. Used by `tests.with_kvm`.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

FAILED = pytest.StashKey[bool]()
RECORD = pytest.StashKey[Path]()
CLAIMED = pytest.StashKey[dict[Path, bool]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--resume", type=Path, required=True, metavar="DIR")


def pytest_configure(config: pytest.Config) -> None:
    fd, record = tempfile.mkstemp(".passed", dir=config.getoption("--resume"))
    os.close(fd)
    config.stash[RECORD] = Path(record)
    config.stash[CLAIMED] = {}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    record = config.getoption("--resume").glob("*.passed")
    passed = {node for file in record for node in file.read_text().splitlines()}
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in passed])
    items[:] = [item for item in items if item.nodeid not in passed]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    """Skip the tests of a file that another run has claimed: True ends pytest's own protocol."""
    claimed = item.config.stash[CLAIMED]
    if item.path not in claimed:
        claimed[item.path] = _claim(item.path, item.config)
    return None if claimed[item.path] else True


def _claim(path: Path, config: pytest.Config) -> bool:
    name = "-".join(path.relative_to(config.rootpath).parts)
    try:
        (config.getoption("--resume") / f"{name}.claimed").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):  # type: ignore[no-untyped-def]
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    elif report.when == "teardown" and FAILED not in item.stash:
        with item.config.stash[RECORD].open("a") as file:
            file.write(f"{item.nodeid}\n")
    return report


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and not session.testsfailed:
        session.exitstatus = pytest.ExitCode.OK  # all tests have passed before

# SPDX-License-Identifier: Apache-2.0
"""Go on with a test run that was cut off: `pytest -p tests.resume --resume FILE`.

Tests named in FILE, one node id a line, have passed and are left out; those that pass now are added
to it, one by one, so that the file is right whenever the run is cut off. Used by
`scripts/test-with-kvm`, where an emulated machine may hang under the tests.
"""

from __future__ import annotations

from pathlib import Path

import pytest

FAILED = pytest.StashKey[bool]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--resume", type=Path, required=True, metavar="FILE")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    passed = set(config.getoption("--resume").read_text().splitlines())
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in passed])
    items[:] = [item for item in items if item.nodeid not in passed]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):  # type: ignore[no-untyped-def]
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    elif report.when == "teardown" and FAILED not in item.stash:
        with item.config.getoption("--resume").open("a") as file:
            file.write(f"{item.nodeid}\n")
    return report


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and not session.testsfailed:
        session.exitstatus = pytest.ExitCode.OK  # everything had passed before

# SPDX-License-Identifier: Apache-2.0
"""The distributions of this checkout, built once for the tests of a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.project.packages import Environment, build_sdist, build_wheel, unpack_sdist

NEW_PACKAGE = {
    "devices/newcomer/__init__.py": '"""A package that no list names."""\n',
    "devices/newcomer/tables/__init__.py": '"""A package within it."""\n',
}


@pytest.fixture(scope="session")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sdist of the checkout, with one more package in it."""
    return build_sdist(tmp_path_factory.mktemp("sdist"), NEW_PACKAGE)


@pytest.fixture(scope="session")
def unpacked(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpack the sdist."""
    return unpack_sdist(sdist, tmp_path_factory.mktemp("unpacked"))


@pytest.fixture(scope="session")
def wheel(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel of the unpacked sdist."""
    return build_wheel(unpacked, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Install the wheel into a venv."""
    return Environment(tmp_path_factory.mktemp("venv"), wheel)

# SPDX-License-Identifier: Apache-2.0
"""requirements.lock pins everything that pyproject.toml requires, with hashes (`make lock`)."""

from __future__ import annotations

import itertools
import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.project.sources import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PYTHONS = re.findall(r"Python :: (3\.\d+)", " ".join(PYPROJECT["project"]["classifiers"]))
LOCK = (ROOT / "requirements.lock").read_text()
PIN = re.compile(r"^(\w[^\\]*)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", re.MULTILINE)


def required() -> list[Requirement]:
    """Return the requirements of the package, of its extras and of its build."""
    project = PYPROJECT["project"]
    groups = project["optional-dependencies"].values()
    lines = itertools.chain(project["dependencies"], *groups, PYPROJECT["build-system"]["requires"])
    return [Requirement(line) for line in lines]


def applies(requirement: Requirement, python: str) -> bool:
    """Return True if the marker of the requirement holds for this version of Python."""
    environment = {"python_version": python, "python_full_version": f"{python}.1"}
    return requirement.marker is None or requirement.marker.evaluate(environment)


def locked(python: str) -> dict[str, str]:
    """Return the version of each distribution that the lock pins for this version of Python."""
    pins = [Requirement(match[1]) for match in PIN.finditer(LOCK)]
    return {
        canonicalize_name(pin.name): next(iter(pin.specifier)).version
        for pin in pins
        if applies(pin, python)
    }


def test_every_line_of_the_lock_is_a_version_with_hashes() -> None:
    rest = PIN.sub("", LOCK).splitlines()
    assert [line for line in rest if line and not line.startswith("#")] == []


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_satisfies_every_requirement(python: str) -> None:
    pins = locked(python)
    applicable = [each for each in required() if applies(each, python)]
    versions = [(each, pins.get(canonicalize_name(each.name))) for each in applicable]
    unsatisfied = [
        f"{requirement}: {version} is locked"
        for requirement, version in versions
        if version is None or not requirement.specifier.contains(version)
    ]
    assert not unsatisfied, "run `make lock`"

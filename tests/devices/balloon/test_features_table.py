# SPDX-License-Identifier: Apache-2.0
"""docs/reference/features.md has a row for each feature bit, each with an existing test."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from devices.balloon.features import BY_DIALECT, Features

ROOT = Path(__file__).parents[3]
DOCUMENT = ROOT / "docs" / "reference" / "features.md"


class FeatureRow(NamedTuple):
    dialect: str
    bit: str
    name: str
    default: str
    shows: str
    test: str


def rows() -> list[FeatureRow]:
    lines = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("| ")]
    return [
        FeatureRow(*(cell.strip() for cell in line.strip("|").split("|"))) for line in lines[2:]
    ]


def default_word(features: Features, bit: int) -> str:
    if bit & features.fixed:
        return "always"
    return "offered" if bit & features.default else "withheld"


@pytest.mark.parametrize("dialect", BY_DIALECT)
def test_every_bit_has_its_row(dialect: str) -> None:
    features = BY_DIALECT[dialect]
    expected = [
        (str(bit.bit_length() - 1), name, default_word(features, bit))
        for bit, name in features.names.items()
        if bit & features.known
    ]
    assert [row[1:4] for row in rows() if row.dialect == dialect] == expected


def functions_in(file: str) -> list[str]:
    tree = ast.parse((ROOT / "tests" / "kvm" / file).read_text())
    return [each.name for each in tree.body if isinstance(each, ast.FunctionDef)]


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"{row.dialect}-{row.name}")
def test_every_row_names_a_test_with_a_real_guest(row: FeatureRow) -> None:
    file, _, function = row.test.partition("::")
    assert function in functions_in(file)


def test_the_text_names_tests_that_exist() -> None:
    named = re.findall(r"`(test_\w+)`", DOCUMENT.read_text())
    assert named
    assert set(named) <= set(functions_in("test_guest_features.py"))

# SPDX-License-Identifier: Apache-2.0
"""Tests with a guest in every dialect of the balloon, some of them left to the long tests."""

from __future__ import annotations

import pytest

from devices.balloon.dialects import NAMES


def each_dialect(*quick: str) -> pytest.MarkDecorator:
    """Parametrize a test with `dialect`; all but the `quick` ones belong to `make test-long`."""
    assert set(quick) <= set(NAMES)
    marks = {name: () if name in quick else (pytest.mark.long,) for name in NAMES}
    return pytest.mark.parametrize(
        "dialect", [pytest.param(name, marks=marks[name]) for name in NAMES]
    )

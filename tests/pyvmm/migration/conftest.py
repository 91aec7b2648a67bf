# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests of migrations."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pyvmm.migration import source


@pytest.fixture(scope="module")
def no_minimum_round_time() -> Iterator[None]:
    """Let rounds follow each other at once: some migrations of a module have dozens of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "MIN_ROUND_S", 0.0)
        yield

# SPDX-License-Identifier: Apache-2.0
"""A mistake in a page is reported with the page and the line, not by a traceback of the build."""

from __future__ import annotations

import io
import re

import pytest
from sphinx.application import Sphinx

from tests.project.sources import ROOT

MISTAKES = {
    "{api}\npykvm.missing": "no source of pykvm.missing",
    "{bit-layout} Title\n0 2": "not `OFFSET WIDTH NAME: MEANING`",
    "{bit-layout} Title\n:from: no_such_module:NAME": "No module named",
    "{bit-layout} Title\n:from: devices.balloon.bitmap:MISSING": "has no attribute 'MISSING'",
    "{docstring} pyvmm.missing": "no module pyvmm.missing",
    "{docstring} pyvmm.units\n:after: no such text": "not found in the docstring: 'no such text'",
    "{locks} pyvmm.missing": "no module pyvmm.missing",
    "{qmp-commands} pyvmm.units": "no command is in pyvmm.units",
    "{rooms} missing": "no contract of layers is called missing",
    "{sequence} Title\nA -> B: x": "the first line must be",
    "{values} no_such_module": "No module named",
    "{values} devices.balloon.misc:Missing": "has no attribute 'Missing'",
}


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Build one page with all mistakes; return the error of each directive."""
    pages = tmp_path_factory.mktemp("project") / "docs"
    pages.mkdir()
    (pages / "conf.py").touch()
    blocks = [f"```{directive}\n```\n\n" for directive in MISTAKES]
    (pages / "index.md").write_text("# Page\n\n" + "".join(blocks))
    (pages.parent / "pyproject.toml").write_text("[tool.importlinter]\ncontracts = []\n")
    (pages.parent / "pyvmm").symlink_to(ROOT / "pyvmm")
    names = ("api_reference", "bit_layout", "docstring", "locks", "qmp_reference", "rooms")
    extensions = [f"pyvmm_docs.{name}" for name in (*names, "sequence", "values")]
    settings: dict[str, object] = {"extensions": ["myst_parser", *extensions], "repository_url": ""}
    reported = io.StringIO()
    output = pages.parent / "output"
    Sphinx(pages, pages, output, output, "dummy", settings, None, reported).build()
    found = dict(
        re.findall(r"index\.md:(\d+): (.+)", re.sub(r"\x1b\[\d*m", "", reported.getvalue()))
    )
    lines = [3]
    for block in blocks:
        lines.append(lines[-1] + block.count("\n"))
    return {each: found.get(str(line), "") for each, line in zip(MISTAKES, lines, strict=False)}


@pytest.mark.parametrize("directive", MISTAKES)
def test_a_mistake_is_reported_with_its_line(directive: str, errors: dict[str, str]) -> None:
    assert MISTAKES[directive] in errors[directive]

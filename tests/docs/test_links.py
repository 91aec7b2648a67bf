# SPDX-License-Identifier: Apache-2.0
"""The link checker finds each kind of fault; links to sources lead to the repository."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvmm_docs.check_links import faults
from pyvmm_docs.repository_links import rewrite
from tests.project.sources import ROOT

URL = "https://example.org/pyvmm"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Return a site of two pages; a test gives the first one a link."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "second.html").write_text('<h1 id="top">Second</h1>')
    return tmp_path


@pytest.mark.parametrize(
    "tag",
    [
        '<a href="sub/second.html">',
        '<a href="sub/second.html#top">',
        '<a href="#here"></a><p id="here">',
        '<a href="https://example.org/elsewhere">',
        '<img src="data:image/png;base64,AA">',
        '<link rel="canonical" href="https://example.org/">',
    ],
)
def test_a_good_link_has_no_fault(tag: str, site: Path) -> None:
    (site / "first.html").write_text(tag)
    assert faults(site) == (1, [])


@pytest.mark.parametrize(
    ("tag", "fault"),
    [
        ('<a href="third.html">', "leads to no file"),
        ('<a href="../outside.html">', "leads to no file"),
        ('<a href="sub/second.html#bottom">', "leads to no anchor"),
        ('<a href="#nowhere">', "leads to no anchor"),
        ('<script src="https://example.org/x.js">', "is loaded from outside"),
        ('<link rel="stylesheet" href="//example.org/x.css">', "is loaded from outside"),
    ],
)
def test_a_faulty_link_is_reported_with_its_page(tag: str, fault: str, site: Path) -> None:
    (site / "first.html").write_text(tag)
    count, (line,) = faults(site)
    assert count == 1
    assert line.startswith("first.html: ")
    assert line.endswith(fault)


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ("[x](../../pyvmm/vm.py)", f"[x]({URL}/blob/main/pyvmm/vm.py)"),
        ("[x](../../pyvmm/vm.py#L7)", f"[x]({URL}/blob/main/pyvmm/vm.py#L7)"),
        ("[x](../../pyvmm)", f"[x]({URL}/tree/main/pyvmm)"),
        ("[x](../index.md)", "[x](../index.md)"),
        ("[x](../../pyvmm/no_such_file.py)", "[x](../../pyvmm/no_such_file.py)"),
        ("[x](https://example.org/../y)", "[x](https://example.org/../y)"),
        ("![x](../../docs/resident-memory.png)", "![x](../../docs/resident-memory.png)"),
    ],
)
def test_links_out_of_the_pages_lead_to_the_repository(link: str, expected: str) -> None:
    pages = ROOT / "docs"
    assert rewrite(link, pages / "reference" / "glossary.md", pages, URL) == expected

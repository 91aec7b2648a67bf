# SPDX-License-Identifier: Apache-2.0
"""Every snippet of every guide and lesson does what the page shows.

Those that need KVM are run by `tests/kvm/test_guides_on_kvm.py`.
"""

from __future__ import annotations

import difflib
from pathlib import Path

import pytest
from sphinx.util import parselinenos

from tests.docs.snippet_runner import SnippetRunner
from tests.docs.snippets import SnippetError, read_snippets
from tests.project.sources import ROOT

GUIDES = sorted(
    page for folder in ("guides", "learn") for page in (ROOT / "docs" / folder).glob("*.md")
)
MAX_COLUMNS = 80
"""The longest line of code that fits on the page, and on paper."""


def run_page(page: Path, folder: Path) -> None:
    with SnippetRunner(folder) as runner:
        runner.run(snippet for snippet in read_snippets(page) if not snippet.needs_kvm)


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_the_snippets_that_need_no_kvm_do_what_the_page_shows(page: Path, tmp_path: Path) -> None:
    run_page(page, tmp_path)


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_no_line_of_a_snippet_is_cut(page: Path) -> None:
    lines = [line for snippet in read_snippets(page) for line in snippet.text.splitlines()]
    assert [line for line in lines if len(line) > MAX_COLUMNS] == []


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_a_new_version_of_a_file_highlights_its_changes(page: Path) -> None:
    before: dict[str, list[str]] = {}
    for snippet in read_snippets(page):
        if snippet.kind == "file":
            lines = snippet.text.splitlines()
            if former := before.get(snippet.file):
                marked = parselinenos(snippet.highlighted or "0", len(lines))
                assert marked == changed_lines(former, lines), f"line {snippet.line}"
            before[snippet.file] = lines


def changed_lines(former: list[str], lines: list[str]) -> list[int]:
    """Return the indices of new and changed lines, without blank ones."""
    matcher = difflib.SequenceMatcher(None, former, lines, autojunk=False)
    return [
        index
        for tag, _, _, start, end in matcher.get_opcodes()
        if tag != "equal"
        for index in range(start, end)
        if lines[index].strip()
    ]


def page_of(tmp_path: Path, *blocks: str) -> Path:
    page = tmp_path / "page.md"
    page.write_text("\n\n".join(["# Page", *blocks]) + "\n")
    return page


FILE = (
    "```{code-block} python\n:caption: greet.py\n:emphasize-lines: 1\n\nprint('hello', 6 * 7)\n```"
)


def test_files_commands_and_sessions_share_a_folder_and_run_in_order(tmp_path: Path) -> None:
    run_page(
        page_of(
            tmp_path,
            FILE,
            "```console\n$ python greet.py\nhello 42\n$ python -m this | grep -c better\n8\n```",
            "```python\n>>> import greet\nhello ...\n>>> import asyncio\n```",
            "```{tip}\nMore.\n\n```",
            "```python\n>>> for word in await asyncio.sleep(0, [greet]):\n"
            "...     print(word.__name__)\ngreet\n```",
        ),
        tmp_path,
    )


def test_times_may_differ(tmp_path: Path) -> None:
    run_page(
        page_of(tmp_path, "```console\n$ echo took 0.25s, 1.5 s\ntook 7.00s, 2.5 s\n```"), tmp_path
    )


def test_an_expected_error_is_compared_without_its_stack(tmp_path: Path) -> None:
    error = "Traceback (most recent call last):\n    ...\nZeroDivisionError: division by zero"
    run_page(page_of(tmp_path, f"```python\n>>> 1 / 0\n{error}\n```"), tmp_path)


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        ("```console\n$ echo one\ntwo\n```", r"line 3: echo one\nthe page shows:\ntwo"),
        ("```console\n$ false\n```", "line 3: false: status 1"),
        ("```python\n>>> 6 * 7\n41\n```", r"line 3: 6 \* 7\n.*41\n.*is:\n42"),
        ("```python\n>>> raise OSError\n```", "OSError"),
        ("````{tip}\n\n```console\n$ false\n```\n````", "line 5: false: status 1"),
        ("```python\nprint()\n```", "3: a block of python is not run by any test"),
        ("```sh\nls\n```", "3: a block of sh is not run by any test"),
        ("```\nls\n```", "3: a block of no language is not run by any test"),
        ("    ls", "3: an indented block is not run by any test"),
    ],
)
def test_a_snippet_that_fails_or_is_never_run_is_an_error(
    block: str, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(SnippetError, match=f"(?s){reason}"):
        run_page(page_of(tmp_path, block), tmp_path)


def test_a_snippet_that_needs_kvm_is_left_to_the_tests_with_kvm(tmp_path: Path) -> None:
    block = "```{code-block} console\n:class: needs-kvm\n\n$ false\n```"
    page = page_of(tmp_path, FILE, block)
    assert [each.needs_kvm for each in read_snippets(page)] == [False, True]
    run_page(page, tmp_path)
    page.write_text("---\nsnippets: kvm\n---\n" + page.read_text())
    assert [each.needs_kvm for each in read_snippets(page)] == [True, True]

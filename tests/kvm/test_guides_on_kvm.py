# SPDX-License-Identifier: Apache-2.0
"""The snippets of guides and lessons that need KVM do what the pages show.

guest.img is in the folder in which they run.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from tests.docs.snippet_runner import SnippetRunner
from tests.docs.snippets import read_snippets
from tests.project.sources import ROOT

pytestmark = pytest.mark.kvm

GUIDES = [
    page
    for folder in ("guides", "learn")
    for page in sorted((ROOT / "docs" / folder).glob("*.md"))
    if any(snippet.needs_kvm for snippet in read_snippets(page))
]
LESSONS_EVERY_TIME = ("01-traps",)


def with_mark(page: Path) -> ParameterSet:
    """Return `page` as a parameter; lessons with a Linux guest are in the long tests."""
    lesson = page.parent.name == "learn" and page.stem not in LESSONS_EVERY_TIME
    return pytest.param(page, id=page.stem, marks=pytest.mark.long if lesson else ())


@pytest.mark.parametrize("page", [with_mark(page) for page in GUIDES])
def test_the_snippets_that_need_kvm_do_what_the_page_shows(
    page: Path, directory: Path, guest_image: Path
) -> None:
    (directory / "guest.img").symlink_to(guest_image)
    snippets = read_snippets(page)
    with SnippetRunner(directory) as runner:
        runner.run(each for each in snippets if each.needs_kvm or each.kind == "file")

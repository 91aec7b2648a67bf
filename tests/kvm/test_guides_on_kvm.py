# SPDX-License-Identifier: Apache-2.0
"""The snippets of guides and lessons that need KVM do what the pages show.

guest.img is in the folder in which they run.
"""

from __future__ import annotations

from pathlib import Path

import pytest

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


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_the_snippets_that_need_kvm_do_what_the_page_shows(
    page: Path, directory: Path, guest_image: Path
) -> None:
    (directory / "guest.img").symlink_to(guest_image)
    snippets = read_snippets(page)
    with SnippetRunner(directory) as runner:
        runner.run(each for each in snippets if each.needs_kvm or each.kind == "file")

# SPDX-License-Identifier: Apache-2.0
"""Links from pages to files of the repository that are no pages.

A page links to a source file by its relative path, as in `[vm.py](../pyvmm/vm.py)`, which works
where the Markdown is read in the repository. The site does not contain that file, so the link is
rewritten to the repository on the web. A path that does not exist is left as it is, and Sphinx
reports it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from sphinx.application import Sphinx

RELATIVE_LINK = re.compile(r"(?<!!)(?<=\]\()(?P<path>\.\./[^)\s#]+)(?P<anchor>#[^)\s]*)?(?=\))")
"""The target of a Markdown link that leaves its own folder; pictures stay what they are."""


def rewrite(text: str, page: Path, pages: Path, repository_url: str) -> str:
    """Return `text`, the source of `page`, with links out of the folder `pages` made absolute."""
    root = pages.parent

    def absolute(match: re.Match[str]) -> str:
        target = Path(os.path.normpath(page.parent / match["path"]))
        if target.is_relative_to(pages) or not (target.is_relative_to(root) and target.exists()):
            return match[0]
        kind = "tree" if target.is_dir() else "blob"
        return f"{repository_url}/{kind}/main/{target.relative_to(root)}{match['anchor'] or ''}"

    return RELATIVE_LINK.sub(absolute, text)


def _rewrite_source(app: Sphinx, name: str, source: list[str]) -> None:
    pages = Path(app.srcdir)
    source[0] = rewrite(source[0], Path(app.env.doc2path(name)), pages, app.config.repository_url)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension."""
    app.add_config_value("repository_url", "", "env")
    app.connect("source-read", _rewrite_source)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

# SPDX-License-Identifier: Apache-2.0
"""Check every link of a built site: `python -m pyvmm_docs.check_links build/docs`.

Sphinx warns of references that it cannot resolve, but not of links in raw or generated HTML, of
missing anchors, or of pages that load something from another server. This reads the pages as a
browser does: each `href` and `src` inside the site must lead to a file that exists and to an
anchor that the file has; nothing that a page loads may come from outside. Links to other sites are
counted, not followed: the `linkcheck` builder of Sphinx does that where there is a network.
"""

from __future__ import annotations

import functools
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urldefrag, urlsplit


class Link(NamedTuple):
    """A link of a page; `loaded` if the browser fetches its target with the page."""

    target: str
    loaded: bool


class Page(HTMLParser):
    """The links and anchors of one page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[Link] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect what the tag links to and its anchor."""
        values = {name: value or "" for name, value in attrs}
        if "id" in values:
            self.anchors.add(values["id"])
        if tag == "a" and "name" in values:
            self.anchors.add(values["name"])
        if "href" in values:
            loaded = tag == "link" and "canonical" not in values.get("rel", "")
            self.links.append(Link(values["href"], loaded))
        if "src" in values:
            self.links.append(Link(values["src"], True))


@functools.cache
def page_at(path: Path) -> Page:
    """Return the parsed page."""
    return Page(path.read_text())


def fault_of(link: Link, page: Path, site: Path) -> str | None:
    """Return the fault of a link on `page`, or None."""
    parts = urlsplit(link.target)
    if parts.scheme or parts.netloc:
        return "is loaded from outside" if link.loaded and parts.scheme != "data" else None
    path, anchor = urldefrag(link.target)
    path = unquote(path.partition("?")[0])
    target = (page.parent / path).resolve() if path else page
    if target.is_dir():
        target = target / "index.html"
    if not target.is_relative_to(site) or not target.is_file():
        return "leads to no file"
    if anchor and target.suffix == ".html" and unquote(anchor) not in page_at(target).anchors:
        return "leads to no anchor"
    return None


def faults(site: Path) -> tuple[int, list[str]]:
    """Return the number of links in a site, and a line for each faulty one."""
    site = site.resolve()
    count, lines = 0, []
    for page in sorted(site.rglob("*.html")):
        for link in page_at(page).links:
            count += 1
            if fault := fault_of(link, page, site):
                lines.append(f"{page.relative_to(site)}: {link.target} {fault}")
    return count, lines


def main() -> int:
    """Check the site named on the command line; return the exit status."""
    count, lines = faults(Path(sys.argv[1]))
    for line in lines:
        print(line, file=sys.stderr)
    print(f"{count} links, {len(lines)} faulty")
    return 1 if lines or not count else 0


if __name__ == "__main__":
    sys.exit(main())

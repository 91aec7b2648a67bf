# SPDX-License-Identifier: Apache-2.0
"""An exported page as text: its policy, and hostile data that stays data.

tests/scope/test_exported_page.py opens such pages in a browser.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from typing import Any

from pyvmm.scope.html_export import START, html_page
from pyvmm.scope.source import describe

HOSTILE = "</script><script>alert(1)</script><!-- \x1b[31m & \u202e"
CHUNKS = [b"</script>", bytes(range(256))]


def source() -> dict[str, Any]:
    return describe(
        live=False, name=HOSTILE, ram_bytes=None, devices=[], start_ns=2**63, notes=[HOSTILE]
    )


class Elements(HTMLParser):
    """The scripts and styles of a page, each with its attributes, and all addresses in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None], str]] = []
        self.addresses: list[str | None] = []
        self.policy = ""
        self._open = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.addresses += [values[name] for name in ("src", "href") if name in values]
        if values.get("http-equiv") == "Content-Security-Policy":
            self.policy = values["content"] or ""
            assert not self.found, "the policy is first"
        self._open = tag in ("script", "style")
        if self._open:
            self.found.append((tag, values, ""))

    def handle_data(self, data: str) -> None:
        if self._open:
            tag, values, text = self.found[-1]
            self.found[-1] = (tag, values, text + data)

    def handle_endtag(self, tag: str) -> None:
        self._open = False


def test_the_page_is_one_file_that_allows_its_own_script_and_styles_only() -> None:
    data = b"".join(html_page(CHUNKS, source()))
    assert data.startswith(START)
    page = Elements(data.decode())
    assert page.addresses == ["data:,"]
    code = [each for each in page.found if each[0] == "style" or each[1].get("type") == "module"]
    assert [tag for tag, _, _ in code] == ["style", "style", "script"]
    hashes = {
        tag: " ".join(hash_of(text) for each, _, text in code if each == tag)
        for tag in ("script", "style")
    }
    assert page.policy == (
        f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']};"
        " img-src data:; base-uri 'none'; form-action 'none'"
    )


def hash_of(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def test_chunks_and_the_description_are_data_that_ends_no_element() -> None:
    page = Elements(b"".join(html_page(CHUNKS, source())).decode())
    scripts = [(values, text) for tag, values, text in page.found if tag == "script"]
    texts = [text for values, text in scripts if values.get("class") == "embedded-chunk"]
    assert [base64.b64decode(text) for text in texts] == CHUNKS
    (description,) = [text for values, text in scripts if values.get("id") == "embedded-source"]
    assert json.loads(description) == source()
    assert len(scripts) == len(CHUNKS) + 2
    assert not re.search(r"innerHTML|https?:(?!//www\.w3\.org/2000/svg)", str(page.found))


def test_the_page_is_made_chunk_by_chunk() -> None:
    taken: list[int] = []

    def chunks() -> Any:
        for number in range(3):
            taken.append(number)
            yield b"chunk"

    parts = html_page(chunks(), source())
    while b"embedded-chunk" not in next(parts) or not taken:
        pass
    assert taken == [0]

# SPDX-License-Identifier: Apache-2.0
"""A recording as one HTML page: the page of the scope with its styles, its modules and the events.

The page needs neither a server nor a network, so a browser shows it from a file. The events are the
chunks of the recording, in base64, one in each of the `embedded-chunk` elements, which
`page/source.js` reads; the description of the source is JSON in `embedded-source`.

Text in both may come from the guest. Base64 has no markup, and "<" is escaped in the JSON, so
neither can end its element. The Content-Security-Policy allows the script and the styles that are
written here, by their hashes, and nothing else: no other script, no request, no plug-in.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from importlib.resources import files
from typing import Any

from pyvmm.scope.module_bundle import bundle

START = b"<!doctype html>\n<!-- pyvmm recording -->\n"
"""The first bytes of every page that is written here."""
_STYLE = re.compile(r'<link rel="stylesheet" href="page/([\w.]+)">')
_SCRIPT = re.compile(r'<script type="module" src="page/(\w+)\.js"></script>')
_ENDS = re.compile("</(script|style)|<!--", re.IGNORECASE)
"""Text that a script or style element cannot hold."""
_CHARSET = '<meta charset="utf-8">\n'
_CHUNK_BEGIN, _CHUNK_END = b'<script type="text/plain" class="embedded-chunk">', b"</script>\n"


def html_page(chunks: Iterable[bytes], source: dict[str, Any]) -> Iterator[bytes]:
    """Yield the parts of the page that shows `chunks`, of the recording that `source` describes.

    `source` is what `pyvmm.scope.source.describe` returns.
    """
    before, after = _document().split("</body>")
    yield START + before.encode()
    text = json.dumps(source).replace("<", "\\u003c")
    yield f'<script type="application/json" id="embedded-source">{text}</script>\n'.encode()
    for chunk in chunks:
        yield _CHUNK_BEGIN + base64.b64encode(chunk) + _CHUNK_END
    yield f"</body>{after}".encode()


def _document() -> str:
    """Return the page without its first line and its events."""
    hashes: dict[str, list[str]] = {"script": [], "style": []}

    def inline(element: str, attributes: str, text: str) -> str:
        if _ENDS.search(text):
            raise ValueError(f"a text that would end its {element} element")
        digest = hashlib.sha256(text.encode()).digest()
        hashes[element].append(f"'sha256-{base64.b64encode(digest).decode()}'")
        return f"<{element}{attributes}>{text}</{element}>"

    def style(link: re.Match[str]) -> str:
        return inline("style", "", _file(link[1]))

    def script(element: re.Match[str]) -> str:
        return inline("script", ' type="module"', bundle(element[1], _module))

    page = _file("index.html").removeprefix("<!doctype html>\n")
    page = _SCRIPT.sub(script, _STYLE.sub(style, page))
    policy = _policy(" ".join(hashes["script"]), " ".join(hashes["style"]))
    meta = f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
    return page.replace(_CHARSET, _CHARSET + meta)


def _policy(scripts: str, styles: str) -> str:
    return (
        f"default-src 'none'; script-src {scripts}; style-src {styles}; img-src data:;"
        " base-uri 'none'; form-action 'none'"
    )


def _module(name: str) -> str:
    return _file(f"{name}.js")


def _file(name: str) -> str:
    return files("pyvmm.scope.page").joinpath(name).read_text("utf-8")

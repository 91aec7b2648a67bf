# SPDX-License-Identifier: Apache-2.0
"""Inline SVG for diagrams that follow the reader's theme, print, and are read aloud.

Everything is drawn in `currentColor`, and areas are filled with it at a low opacity, so a diagram
has the colours of the text around it: light, dark or on paper. `figure` wraps a drawing in an
element with a title for all readers and a description for those who do not see the drawing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from html import escape
from typing import Literal

FONT_PX = 13
SMALL_PX = 11
_CHARACTER = 0.55
_CAPITAL = 0.72
"""Mean width of a character in units of the font size; estimates, as the reader's font is not
known."""
LINE_PX = 16

Anchor = Literal["start", "middle", "end"]


def text_px(text: str, *, small: bool = False) -> float:
    """Return the estimated width of `text`."""
    widths = sum(_CAPITAL if each.isupper() else _CHARACTER for each in text)
    return widths * (SMALL_PX if small else FONT_PX)


def text(
    x: float,
    y: float,
    content: str,
    *,
    anchor: Anchor = "middle",
    small: bool = False,
    turned: bool = False,
    halo: bool = False,
) -> str:
    """Return a line of text whose middle is at height `y`.

    `turned` text reads upwards; text with a `halo` covers the lines below it.
    """
    cover = ' class="halo"' if halo else ""
    turn = f' transform="rotate(-90 {x:g} {y:g})"' if turned else ""
    size = SMALL_PX if small else FONT_PX
    return (
        f'<text{cover} x="{x:g}" y="{y:g}" dy="0.35em" font-size="{size}"'
        f' text-anchor="{anchor}"{turn}>{escape(content)}</text>'
    )


def rectangle(
    x: float, y: float, width: float, height: float, *, opacity: float, dashed: bool = False
) -> str:
    """Return a box that is filled with `opacity`, from 0 to 1."""
    dash = ' stroke-dasharray="4 3"' if dashed else ""
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill-opacity="{opacity}"'
        f' stroke="currentColor"{dash}/>'
    )


def line(
    points: Iterable[tuple[float, float]], *, dashed: bool = False, faint: bool = False
) -> str:
    """Return a line through `points`."""
    path = " ".join(f"{x:g},{y:g}" for x, y in points)
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    opacity = ' stroke-opacity="0.45"' if faint else ""
    return f'<polyline points="{path}" fill="none" stroke="currentColor"{dash}{opacity}/>'


def arrow_head(x: float, y: float, direction: int) -> str:
    """Return an arrow head with its tip at (x, y); `direction` is 1 to the right or -1."""
    back = x - 9 * direction
    return f'<polygon points="{x:g},{y:g} {back:g},{y - 4.5:g} {back:g},{y + 4.5:g}"/>'


def figure(parts: Iterable[str], width: float, height: float, title: str, description: str) -> str:
    """Return the HTML of a drawing of `width` by `height` pixels with its visible title."""
    key = hashlib.sha256(f"{title}\n{description}".encode()).hexdigest()[:10]
    return (
        f'<figure class="diagram-figure"><svg class="diagram" role="img"'
        f' aria-labelledby="title-{key}" aria-describedby="text-{key}"'
        f' viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}"'
        f' fill="currentColor" font-family="var(--font-stack, sans-serif)"'
        f' xmlns="http://www.w3.org/2000/svg"><title id="title-{key}">{escape(title)}</title>'
        f'<desc id="text-{key}">{escape(description)}</desc>{"".join(parts)}</svg>'
        f"<figcaption>{escape(title)}</figcaption></figure>"
    )

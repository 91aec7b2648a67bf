# SPDX-License-Identifier: Apache-2.0
"""The directive `{sequence}`: who sends what to whom, from top to bottom, as inline SVG.

The argument is the title. The first line of the body names the participants from left to right,
and each further line is one step::

    participants: Driver, Device, Host
    Driver -> Device: writes num_pages     a message, or an action on the other
    Device --> Driver: used buffer         a notification or a response, drawn dashed
    Device -> Device: checks each page     an action of one participant
    note Driver: waits                     a note below one participant
    note Driver, Device: negotiated        a note that spans several
    == the driver restarts ==              a line across all
"""

from __future__ import annotations

import itertools
import re
import textwrap
from typing import NamedTuple

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from pyvmm_docs import svg

_MESSAGE = re.compile(r"(?P<sender>[^:]+?) (?P<arrow>-->|->) (?P<receiver>[^:]+?): (?P<text>.+)")
_NOTE = re.compile(r"note (?P<over>[^:]+?): (?P<text>.+)")
_DIVIDER = re.compile(r"== (?P<text>.+) ==")

_LABEL_CHARACTERS = 28
"""A longer label is broken into lines; one that spans several participants may be longer."""
_MIN_GAP_PX = 120
_MARGIN_PX = 12
_HEAD_PX = 30
_SELF_PX = 26
"""Width of the arrow of an action of one participant."""


class SequenceError(ValueError):
    """A line of a diagram is malformed, or names an unknown participant."""


class Message(NamedTuple):
    """A message between participants, by number; an action if they are the same."""

    sender: int
    receiver: int
    text: str
    dashed: bool


class Note(NamedTuple):
    """A note below the participants `first` to `last`, by number."""

    first: int
    last: int
    text: str


class Divider(NamedTuple):
    """A line across all participants."""

    text: str


class Diagram(NamedTuple):
    """A parsed diagram."""

    participants: tuple[str, ...]
    steps: tuple[Message | Note | Divider, ...]


def parse(lines: list[str]) -> Diagram:
    """Return the diagram that `lines` describe. Raises SequenceError."""
    first, *rest = [line.strip() for line in lines if line.strip()] or [""]
    if not first.startswith("participants: "):
        raise SequenceError("the first line must be `participants: A, B, ...`")
    participants = tuple(name.strip() for name in first.partition(": ")[2].split(","))
    return Diagram(participants, tuple(_step(line, participants) for line in rest))


def _step(line: str, participants: tuple[str, ...]) -> Message | Note | Divider:
    def number(name: str) -> int:
        if name.strip() not in participants:
            raise SequenceError(f"{name.strip()!r} is no participant: {line!r}")
        return participants.index(name.strip())

    if match := _DIVIDER.fullmatch(line):
        return Divider(match["text"])
    if match := _NOTE.fullmatch(line):
        over = [number(name) for name in match["over"].split(",")]
        return Note(min(over), max(over), match["text"])
    if match := _MESSAGE.fullmatch(line):
        sender, receiver = number(match["sender"]), number(match["receiver"])
        return Message(sender, receiver, match["text"], match["arrow"] == "-->")
    raise SequenceError(f"neither a message, a note nor a divider: {line!r}")


def describe(diagram: Diagram) -> str:
    """Return the steps as sentences, for readers who do not see the drawing."""
    sentences = []
    for step in diagram.steps:
        if isinstance(step, Divider):
            sentences.append(f"Then: {step.text}.")
        elif isinstance(step, Note):
            over = " and ".join(diagram.participants[n] for n in sorted({step.first, step.last}))
            sentences.append(f"Note on {over}: {step.text}.")
        else:
            sender, receiver = (diagram.participants[n] for n in step[:2])
            to = "" if sender == receiver else f" to {receiver}"
            sentences.append(f"{sender}{to}: {step.text}.")
    return " ".join(sentences)


def draw(diagram: Diagram, title: str) -> str:
    """Return the diagram as HTML."""
    lanes, width = _lanes(diagram)
    parts: list[str] = []
    y = _MARGIN_PX + _HEAD_PX + 12.0
    for step in diagram.steps:
        drawing, height = _draw_step(step, lanes, width, y)
        parts += drawing
        y += height
    lifelines = [svg.line([(x, _MARGIN_PX + _HEAD_PX), (x, y)], faint=True) for x in lanes]
    heads = [
        part
        for name, x in zip(diagram.participants, lanes, strict=True)
        for part in _head(name, x, svg.text_px(name) + 24)
    ]
    height = y + _MARGIN_PX
    return svg.figure([*lifelines, *heads, *parts], width, height, title, describe(diagram))


def _lanes(diagram: Diagram) -> tuple[list[float], float]:
    """Return the horizontal position of each participant, and the width of the drawing."""
    names = [svg.text_px(name) + 24 for name in diagram.participants]
    gaps = [max(_MIN_GAP_PX, (left + right) / 2 + 16) for left, right in itertools.pairwise(names)]
    right_px = names[-1] / 2
    for step in sorted(diagram.steps, key=_span):
        if isinstance(step, Divider):
            continue
        first, last = sorted(step[:2]) if isinstance(step, Message) else step[:2]
        needed = _label_px(step) + 34
        if first == last and isinstance(step, Message):
            if gaps:  # the last participant's actions are on its left
                beside = min(first, len(gaps) - 1)
                gaps[beside] = max(gaps[beside], needed + _SELF_PX)
            else:
                right_px = max(right_px, needed + _SELF_PX)
        elif first < last:
            missing = needed - sum(gaps[first:last])
            if missing > 0:
                gaps[first:last] = [gap + missing / (last - first) for gap in gaps[first:last]]
    lanes = [_MARGIN_PX + names[0] / 2]
    for gap in gaps:
        lanes.append(lanes[-1] + gap)
    dividers = [svg.text_px(step.text) for step in diagram.steps if isinstance(step, Divider)]
    return lanes, max(lanes[-1] + right_px + _MARGIN_PX, *(px + 80 for px in dividers), 0)


def _span(step: Message | Note | Divider) -> int:
    return 0 if isinstance(step, Divider) else abs(step[1] - step[0])


def _wrapped(step: Message | Note) -> list[str]:
    """Return the lines of a label, as few as possible and about equally long."""
    widest = _LABEL_CHARACTERS + 12 * max(0, _span(step) - 1)
    lines = textwrap.wrap(step.text, widest)
    for characters in range(widest - 1, 0, -1):
        narrower = textwrap.wrap(step.text, characters)
        if len(narrower) > len(lines):
            break
        lines = narrower
    return lines


def _label_px(step: Message | Note) -> float:
    return max(svg.text_px(line) for line in _wrapped(step))


def _head(name: str, x: float, width: float) -> list[str]:
    return [
        svg.rectangle(x - width / 2, _MARGIN_PX, width, _HEAD_PX, opacity=0.1),
        svg.text(x, _MARGIN_PX + _HEAD_PX / 2, name),
    ]


def _draw_step(
    step: Message | Note | Divider, lanes: list[float], width: float, y: float
) -> tuple[list[str], float]:
    """Return the drawing of a step that begins at height `y`, and its height."""
    if isinstance(step, Divider):
        middle = y + 16
        half = svg.text_px(step.text) / 2 + 8
        return [
            svg.line([(_MARGIN_PX, middle), (width / 2 - half, middle)], dashed=True),
            svg.text(width / 2, middle, step.text, halo=True),
            svg.line([(width / 2 + half, middle), (width - _MARGIN_PX, middle)], dashed=True),
        ], 36
    lines = _wrapped(step)
    if isinstance(step, Note):
        return _draw_note(step, lines, lanes, width, y)
    if step.sender == step.receiver:
        left = 0 < step.sender == len(lanes) - 1
        return _draw_action(lines, lanes[step.sender], -1 if left else 1, y)
    start, end = lanes[step.sender], lanes[step.receiver]
    direction = 1 if end > start else -1
    arrow_y = y + len(lines) * svg.LINE_PX + 6
    return [
        *_text_lines(lines, (start + end) / 2, y),
        svg.line([(start, arrow_y), (end - 8 * direction, arrow_y)], dashed=step.dashed),
        svg.arrow_head(end, arrow_y, direction),
    ], len(lines) * svg.LINE_PX + 20


def _draw_note(
    note: Note, lines: list[str], lanes: list[float], width: float, y: float
) -> tuple[list[str], float]:
    label_px = _label_px(note) + 16
    box_px = max(label_px, lanes[note.last] - lanes[note.first] + 24)
    middle = (lanes[note.first] + lanes[note.last]) / 2
    left = min(max(2, middle - box_px / 2), width - 2 - box_px)
    height = len(lines) * svg.LINE_PX + 8
    return [
        svg.rectangle(left, y, box_px, height, opacity=0.06, dashed=True),
        *_text_lines(lines, left + box_px / 2, y + 4),
    ], height + 12


def _draw_action(
    lines: list[str], lane: float, direction: int, y: float
) -> tuple[list[str], float]:
    """Return the drawing of an action beside its lane, on the right if `direction` is 1."""
    height = max(len(lines) * svg.LINE_PX, 18)
    top, bottom, outer = y + 2, y + height - 2, lane + (_SELF_PX - 8) * direction
    anchor: svg.Anchor = "start" if direction > 0 else "end"
    return [
        svg.line([(lane, top), (outer, top), (outer, bottom), (lane + 8 * direction, bottom)]),
        svg.arrow_head(lane, bottom, -direction),
        *_text_lines(lines, lane + _SELF_PX * direction, y, anchor),
    ], height + 12


def _text_lines(lines: list[str], x: float, y: float, anchor: svg.Anchor = "middle") -> list[str]:
    return [
        svg.text(x, y + (n + 0.5) * svg.LINE_PX, each, anchor=anchor, halo=True)
        for n, each in enumerate(lines)
    ]


class SequenceDirective(SphinxDirective):
    """Draws a diagram; a malformed one fails the build."""

    has_content = True
    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """Return the drawing."""
        try:
            diagram = parse(list(self.content))
        except SequenceError as error:
            raise self.error(str(error)) from None
        return [nodes.raw("", draw(diagram, self.arguments[0]), format="html")]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("sequence", SequenceDirective)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

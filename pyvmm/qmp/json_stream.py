# SPDX-License-Identifier: Apache-2.0
"""JSON objects in a stream of bytes that may be split anywhere, or not be JSON at all.

QMP has no framing of its own: messages follow one another with or without white space between
them, and one may arrive a byte at a time or several in one packet. `JsonStream` looks at every byte
once. It tracks only what determines the end of a message (the open brackets and whether it is
inside a string), skips from one such byte to the next with a regular expression, and has `json`
parse a complete message. Bytes in, messages out; it performs no I/O.

Invalid input raises `QmpError`, once for each mistake, and the stream continues: behind the message
if its end is known, otherwise behind the next line feed. Length and nesting are bounded, and the
result does not depend on how the input was split.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from pyvmm.qmp.messages import QmpError

MAX_MESSAGE_BYTES = 1 << 20
MAX_DEPTH = 64

_BLANK = re.compile(rb"[ \t\r\n]*")
_OUTSIDE_STRING = re.compile(rb'["{}\[\]]')
_INSIDE_STRING = re.compile(rb'["\\\x00-\x1f]')
_CLOSES = {ord("{"): ord("}"), ord("["): ord("]")}


class JsonStream:
    """Takes bytes with `feed` and returns messages with `next`."""

    def __init__(self, max_bytes: int = MAX_MESSAGE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._buffer = bytearray()
        self._skip_to_line_feed = False
        self._begin()

    def _begin(self) -> None:
        self._scanned = 0
        self._in_string = False
        self._expected = bytearray()  # the closing brackets to come, innermost last

    def feed(self, data: bytes) -> None:
        """Append `data` to the stream."""
        self._buffer += data

    def next(self) -> dict[str, Any] | None:
        """Return the next message, or None until more is fed; raises `QmpError` once a mistake."""
        if self._skip_to_line_feed and not self._skip():
            return None
        if not self._expected:
            del self._buffer[: _BLANK.match(self._buffer).end()]  # type: ignore[union-attr]
            if not self._buffer:
                return None
            if self._buffer[0] not in _CLOSES:
                raise self._discard(1, "QMP input must be a JSON object")
        end = self._find_end()
        if end is not None:
            document = bytes(self._buffer[:end])
            del self._buffer[:end]
            self._begin()
            return _load(document)
        if len(self._buffer) >= self._max_bytes:
            raise self._discard(self._max_bytes, "JSON token size limit exceeded")
        return None

    def _skip(self) -> bool:
        """Drop input up to the end of the next line feed; return False if there is none yet."""
        line_feed = self._buffer.find(b"\n")
        if line_feed < 0:
            self._buffer.clear()
            return False
        del self._buffer[: line_feed + 1]
        self._skip_to_line_feed = False
        return True

    def _discard(self, dropped_bytes: int, reason: str) -> QmpError:
        """Drop the start of the message and then the rest of the line; return the error."""
        del self._buffer[:dropped_bytes]
        self._begin()
        self._skip_to_line_feed = True
        return QmpError(reason)

    def _find_end(self) -> int | None:
        """Return the offset of the end of the first message in the buffer, if it is complete."""
        limit = self._max_bytes
        while True:
            pattern = _INSIDE_STRING if self._in_string else _OUTSIDE_STRING
            match = pattern.search(self._buffer, self._scanned, limit)
            if match is None:
                # An escaped byte may not have arrived yet: never scan backwards.
                self._scanned = max(self._scanned, min(len(self._buffer), limit))
                return None
            at = match.start()
            self._scanned = at + 1
            byte = self._buffer[at]
            if self._in_string:
                self._string_byte(at, byte)
            elif byte == ord('"'):
                self._in_string = True
            elif self._bracket(at, byte):
                return self._scanned

    def _string_byte(self, at: int, byte: int) -> None:
        """Process a quote, a backslash or a control character inside a string."""
        if byte == ord('"'):
            self._in_string = False
        elif byte == ord("\\"):
            self._scanned += 1
        else:
            raise self._discard(at, "JSON parse error, control character in a string")

    def _bracket(self, at: int, byte: int) -> bool:
        """Process an opening or closing bracket; return True if it ends the message."""
        closing = _CLOSES.get(byte)
        if closing is not None:
            if len(self._expected) == MAX_DEPTH:
                raise self._discard(at + 1, "JSON nesting depth limit exceeded")
            self._expected.append(closing)
            return False
        if byte != self._expected.pop():
            raise self._discard(at + 1, f"JSON parse error, stray '{chr(byte)}'")
        return not self._expected


def _load(document: bytes) -> dict[str, Any]:
    """Return one complete document as an object; stricter than `json` by itself (RFC 8259)."""
    try:
        message = json.loads(
            document.decode("utf-8"),
            object_pairs_hook=_without_duplicates,
            parse_constant=_reject_constant,
            parse_float=_finite,
        )
    except UnicodeDecodeError:
        raise QmpError("JSON parse error, invalid UTF-8") from None
    except json.JSONDecodeError as error:
        raise QmpError(f"JSON parse error, {error.msg[0].lower()}{error.msg[1:]}") from None
    except ValueError:  # an integer of thousands of digits
        raise QmpError("JSON parse error, number out of range") from None
    if not isinstance(message, dict):
        raise QmpError("QMP input must be a JSON object")
    return message


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise QmpError("JSON parse error, duplicate key")
    return members


def _reject_constant(name: str) -> Any:
    raise QmpError(f"JSON parse error, stray '{name}'")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise QmpError("JSON parse error, number out of range")
    return number

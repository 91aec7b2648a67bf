# SPDX-License-Identifier: Apache-2.0
"""Finding JSON objects in a stream of bytes that may be cut anywhere, or not be JSON at all.

QMP has no framing of its own: messages follow one another with or without white space between
them, and one may arrive a byte at a time or several in one packet. `JsonStream` looks at every byte
once. It keeps only what decides where a message ends (the open brackets and whether it is inside a
string), hops from one such byte to the next with a regular expression, and leaves the inside of a
complete message to `json`. Bytes in, messages out; no input or output.

What is wrong with the input is raised as `qmp.QmpError`, once, and the stream goes on: behind the
message if its end is known, otherwise behind the next line feed. Length and nesting are bounded,
and what comes out does not depend on how the input was cut.
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
    """Bytes in with `feed`, messages out with `next`."""

    def __init__(self, max_bytes: int = MAX_MESSAGE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._buffer = bytearray()
        self._skip_to_line_feed = False
        self._begin()

    def _begin(self) -> None:
        self._scanned = 0
        self._in_string = False
        self._awaited = bytearray()  # the closing brackets that are due, innermost last

    def feed(self, data: bytes) -> None:
        """Append `data` to the stream."""
        self._buffer += data

    def next(self) -> dict[str, Any] | None:
        """The next message, or None until more is fed; raises `QmpError` once per mistake."""
        if self._skip_to_line_feed and not self._skip():
            return None
        if not self._awaited:
            del self._buffer[: _BLANK.match(self._buffer).end()]  # type: ignore[union-attr]
            if not self._buffer:
                return None
            if self._buffer[0] not in _CLOSES:
                raise self._give_up(1, "QMP input must be a JSON object")
        end = self._find_end()
        if end is not None:
            document = bytes(self._buffer[:end])
            del self._buffer[:end]
            self._begin()
            return _load(document)
        if len(self._buffer) >= self._max_bytes:
            raise self._give_up(self._max_bytes, "JSON token size limit exceeded")
        return None

    def _skip(self) -> bool:
        """Drop input up to and with the next line feed; False when there is none yet."""
        line_feed = self._buffer.find(b"\n")
        if line_feed < 0:
            self._buffer.clear()
            return False
        del self._buffer[: line_feed + 1]
        self._skip_to_line_feed = False
        return True

    def _give_up(self, dropped_bytes: int, reason: str) -> QmpError:
        """Drop the beginning of the message, and then the rest of the line."""
        del self._buffer[:dropped_bytes]
        self._begin()
        self._skip_to_line_feed = True
        return QmpError(reason)

    def _find_end(self) -> int | None:
        """The offset behind the message at the start of the buffer, if it ends there."""
        limit = self._max_bytes
        while True:
            pattern = _INSIDE_STRING if self._in_string else _OUTSIDE_STRING
            match = pattern.search(self._buffer, self._scanned, limit)
            if match is None:
                # An escaped byte may lie beyond what has arrived: never scan backwards.
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
        """A quote, a backslash or a control character inside a string."""
        if byte == ord('"'):
            self._in_string = False
        elif byte == ord("\\"):
            self._scanned += 1
        else:
            raise self._give_up(at, "JSON parse error, control character in a string")

    def _bracket(self, at: int, byte: int) -> bool:
        """An opening or closing bracket; True when it ends the message."""
        closing = _CLOSES.get(byte)
        if closing is not None:
            if len(self._awaited) == MAX_DEPTH:
                raise self._give_up(at + 1, "JSON nesting depth limit exceeded")
            self._awaited.append(closing)
            return False
        if byte != self._awaited.pop():
            raise self._give_up(at + 1, f"JSON parse error, stray '{chr(byte)}'")
        return not self._awaited


def _load(document: bytes) -> dict[str, Any]:
    """One complete document as an object; stricter than `json` by itself (RFC 8259)."""
    try:
        message = json.loads(
            document.decode("utf-8"),
            object_pairs_hook=_without_duplicates,
            parse_constant=_refuse_constant,
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


def _refuse_constant(name: str) -> Any:
    raise QmpError(f"JSON parse error, stray '{name}'")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise QmpError("JSON parse error, number out of range")
    return number

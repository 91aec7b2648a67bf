# SPDX-License-Identifier: Apache-2.0
"""JSON objects in a stream of bytes that may be split anywhere, or not be JSON at all.

QMP has no framing of its own: messages follow one another with or without white space between
them, and one may arrive a byte at a time or several in one packet. `JsonStream` looks at every byte
once. It tracks only what determines the end of a message (the open brackets and whether it is
inside a string), skips from one token to the next, and over strings, with regular expressions, and
has `json` parse a complete message. Bytes in, messages out; it performs no I/O.

Invalid input raises `QmpError`, once for each mistake, and the stream continues: behind the message
if its end is known, otherwise behind the next line feed. Length, nesting and the number of tokens
are bounded, and with them the time and memory that a message takes. The result does not depend on
how the input was split.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

from pyvmm.qmp.messages import QmpError

MAX_MESSAGE_BYTES = 1 << 20
MAX_DEPTH = 64
MAX_TOKENS = 4096
"""Most brackets, commas, colons and strings of a message; a request of QEMU's has some hundred."""

_MAX_INTEGER_DIGITS = 100

_BLANK = re.compile(rb"[ \t\r\n]*")
_TOKEN = re.compile(rb'["{}\[\],:]')
_STRING_REST = re.compile(rb'(?:[^"\\\x00-\x1f]++|\\.)*+', re.DOTALL)  # escapes included
_CLOSES = {ord("{"): ord("}"), ord("["): ord("]")}
_DOUBTFUL_ESCAPE = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])")


class JsonStream:
    """Takes bytes with `feed` and returns messages with `next`."""

    def __init__(self, max_bytes: int = MAX_MESSAGE_BYTES, max_tokens: int = MAX_TOKENS) -> None:
        self._max_bytes = max_bytes
        self._max_tokens = max_tokens
        self._buffer = bytearray()
        self._skip_to_line_feed = False
        self._begin()

    def _begin(self) -> None:
        self._scanned = 0
        self._in_string = False
        self._tokens = 0
        self._expected = bytearray()  # the closing brackets to come, innermost last

    @property
    def buffered_bytes(self) -> int:
        """The bytes that have been fed and do not belong to a message returned so far."""
        return len(self._buffer)

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
        while not self._in_string or self._end_string(limit):
            match = _TOKEN.search(self._buffer, self._scanned, limit)
            if match is None:
                self._scanned = min(len(self._buffer), limit)
                return None
            at = match.start()
            self._scanned = at + 1
            self._tokens += 1
            if self._tokens > self._max_tokens:
                raise self._discard(at + 1, "JSON token count limit exceeded")
            byte = self._buffer[at]
            if byte == ord('"'):
                self._in_string = True
            elif byte not in b",:" and self._bracket(at, byte):
                return self._scanned
        return None

    def _end_string(self, limit: int) -> bool:
        """Skip the rest of a string; return False if its end has not arrived before `limit`."""
        rest = _STRING_REST.match(self._buffer, self._scanned, limit)
        assert rest is not None  # it matches the empty string
        at = rest.end()
        self._scanned = at
        if at >= min(len(self._buffer), limit) or self._buffer[at] == ord("\\"):
            return False  # a backslash here is the last byte
        if self._buffer[at] != ord('"'):
            raise self._discard(at, "JSON parse error, control character in a string")
        self._scanned += 1
        self._in_string = False
        return True

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
            parse_int=_short_int,
            parse_float=_finite,
        )
    except UnicodeDecodeError:
        raise QmpError("JSON parse error, invalid UTF-8") from None
    except json.JSONDecodeError as error:
        raise QmpError(f"JSON parse error, {error.msg[0].lower()}{error.msg[1:]}") from None
    if not isinstance(message, dict):
        raise QmpError("QMP input must be a JSON object")
    if _DOUBTFUL_ESCAPE.search(document) and not all(map(_is_text, _strings(message))):
        raise QmpError("JSON parse error, invalid character in a string")
    return message


def _strings(value: Any) -> Iterator[str]:
    """Yield all strings in a value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, member in value.items():
            yield key
            yield from _strings(member)
    elif isinstance(value, list):
        for element in value:
            yield from _strings(element)


def _is_text(text: str) -> bool:
    """Return False for a string with NUL, or with a surrogate that stands for no byte.

    U+DC80 to U+DCFF stand for the bytes of a file name that is not UTF-8 (PEP 383).
    """
    try:
        return b"\0" not in text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise QmpError("JSON parse error, duplicate key")
    return members


def _reject_constant(name: str) -> Any:
    raise QmpError(f"JSON parse error, stray '{name}'")


def _short_int(text: str) -> int:
    if len(text) > _MAX_INTEGER_DIGITS:  # the time that it takes grows with its square
        raise QmpError("JSON parse error, number out of range")
    return int(text)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise QmpError("JSON parse error, number out of range")
    return number

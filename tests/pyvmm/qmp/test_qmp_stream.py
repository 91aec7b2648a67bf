# SPDX-License-Identifier: Apache-2.0
"""Invariant: however any input is split, the JSON stream returns the same messages and errors,
raises nothing but `QmpError`, and buffers at most one message."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pyvmm.qmp.json_stream import JsonStream
from tests.pyvmm.qmp.test_qmp import drain

LIMIT_BYTES = 60

texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | texts
    | st.floats(allow_nan=False).filter(lambda number: abs(number) < 1e300),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
messages = st.dictionaries(texts, json_values, max_size=5)
blanks = st.sampled_from([b"", b" ", b"\n", b"\r\n", b"\t \n"])
fragments = st.one_of(
    st.binary(max_size=12),
    st.sampled_from([b"{", b"}", b"[", b"]", b'"', b"\\", b"\n", b"{}", b'{"a":1}', b'\\"', b","]),
)


def split(data: st.DataObject, text: bytes) -> list[bytes]:
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=20).map(sorted))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@given(st.lists(st.tuples(messages, blanks, st.booleans()), max_size=6), st.data())
def test_messages_are_the_same_however_they_are_split(
    items: list[tuple[dict[str, Any], bytes, bool]], data: st.DataObject
) -> None:
    text = b"".join(
        json.dumps(message, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass") + blank
        for message, blank, ascii_only in items
    )
    stream = JsonStream()
    found = []
    for part in split(data, text):
        stream.feed(part)
        found += drain(stream)
    assert found == [message for message, _, _ in items]


@given(st.lists(fragments, max_size=40).map(b"".join), st.data())
def test_garbage_gives_the_same_errors_however_it_is_split(
    text: bytes, data: st.DataObject
) -> None:
    whole = JsonStream(LIMIT_BYTES)
    whole.feed(text)
    expected = drain(whole)
    stream = JsonStream(LIMIT_BYTES)
    found = []
    for part in split(data, text):
        stream.feed(part)
        found += drain(stream)
        assert len(stream._buffer) <= LIMIT_BYTES
    assert found == expected


def test_a_mistake_ends_with_its_line_even_if_the_message_began_on_an_earlier_one() -> None:
    stream = JsonStream()
    stream.feed(b'{\n"a": 1] dropped\n{"b": 2}')
    assert drain(stream) == ["JSON parse error, stray ']'", {"b": 2}]


@given(st.binary(max_size=200), messages)
def test_the_stream_recovers_from_garbage_without_brackets(
    garbage: bytes, message: dict[str, Any]
) -> None:
    garbage = garbage.translate(None, b"{[")
    stream = JsonStream()
    stream.feed(garbage + b"\n" + json.dumps(message).encode())
    assert drain(stream)[-1] == message

# SPDX-License-Identifier: Apache-2.0
"""Saved state as bytes, and the checks on decoded fields."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.state import MAX_PAYLOAD_BYTES, Fields, Payload, StateError, decode, encode

PAYLOAD: Payload = {
    "number": 7,
    "negative": -(1 << 63),
    "largest": (1 << 64) - 1,
    "flag": True,
    "text": "bitmap",
    "data": b"\x00\xff",
    "items": [1, "two", b"3", [], {}],
    "part": {"inner": 5},
    "parts": [{"inner": 1}, {"inner": 2}],
}

NAMES = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=8)
VALUES = st.recursive(
    st.integers(-(1 << 63), (1 << 64) - 1)
    | st.booleans()
    | st.binary(max_size=20)
    | st.text(max_size=10).filter(str.isprintable),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=20,
)
PAYLOADS = st.dictionaries(NAMES, VALUES, max_size=6)


def test_encoded_payloads_decode_to_themselves() -> None:
    assert decode(encode(PAYLOAD)) == PAYLOAD


def test_payloads_up_to_the_longest_survive() -> None:
    longest: Payload = {"x": "a" * (MAX_PAYLOAD_BYTES - len('{"x":""}'))}
    encoded = encode(longest)
    assert len(encoded) == MAX_PAYLOAD_BYTES
    assert decode(encoded) == longest
    with pytest.raises(ValueError, match=f"of {MAX_PAYLOAD_BYTES + 1} bytes is too long"):
        encode({"xx": longest["x"]})
    with pytest.raises(StateError, match=f"of {MAX_PAYLOAD_BYTES + 1} bytes is too long"):
        decode(encoded + b" ")


def test_bytes_are_tagged_and_names_sorted() -> None:
    assert encode({"b": b"\x01", "a": False}) == b'{"a":false,"b":{"$bytes":"AQ=="}}'


@given(PAYLOADS)
def test_any_payload_survives_encoding_and_decoding(payload: dict[str, object]) -> None:
    try:
        data = encode(payload)  # type: ignore[arg-type]
    except ValueError:
        return  # nested too deeply
    assert decode(data) == payload


@pytest.mark.parametrize(
    "payload",
    [
        {"x": 1.5},
        {"x": None},
        {"x": 1 << 64},
        {"x": -(1 << 63) - 1},
        {"$bytes": "AQ=="},
        {"x": "\x1b[2J"},
        {"x": {1: 2}},
        {"x": b"x" * MAX_PAYLOAD_BYTES},
    ],
)
def test_values_of_other_types_cannot_be_encoded(payload: Payload) -> None:
    with pytest.raises(ValueError, match=r"plain value|too long"):
        encode(payload)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"7",
        b"null",
        b'{"x":null}',
        b'{"x":1.0}',
        b'{"x":NaN}',
        b'{"x":1e3}',
        b'{"x":-0}',
        b'{"x": 1}',
        b'{"x":1,"x":2}',
        b'{"y":1,"x":2}',
        b'{"x":18446744073709551616}',
        b'{"x":' + b"9" * 5000 + b"}",
        b'{"x":"\\ud800"}',
        b'{"x":"\\u001b"}',
        b'{"x":"\xc3\xa4"}',
        b'{"x":{"$bytes":"AQ"}}',
        b'{"x":{"$bytes":"AR=="}}',
        b'{"x":{"$bytes":"!AQ=="}}',
        b'{"x":{"$bytes":1}}',
        b'{"x":{"$bytes":"AQ==","y":1}}',
        b'{"$bytes":"AQ=="}',
        b"[" * 100_000,
        b'{"x":' * 13 + b"1" + b"}" * 13,
        '{"x":1}'.encode("utf-16"),
        b" " * (MAX_PAYLOAD_BYTES + 1),
    ],
)
def test_malformed_data_is_refused(data: bytes) -> None:
    with pytest.raises(StateError, match=r"^uart: "):
        decode(data, "uart")


@given(st.binary(max_size=60) | VALUES.map(lambda value: json.dumps({"x": repr(value)}).encode()))
def test_decoding_anything_raises_only_state_errors(data: bytes) -> None:
    try:
        payload = decode(data)
    except StateError:
        return
    assert encode(payload) == data


def test_fields_return_values_of_the_requested_type() -> None:
    fields = Fields("uart", PAYLOAD)
    assert fields.number("number", below=8) == 7
    assert fields.number("negative", at_least=-(1 << 63)) == -(1 << 63)
    assert fields.number("largest") == (1 << 64) - 1
    assert fields.flag("flag") is True
    assert fields.text("text") == "bitmap"
    assert fields.data("data", length=2) == b"\x00\xff"
    assert len(fields.items("items", count=5)) == 5
    assert fields.part("part").number("inner") == 5
    assert [each.number("inner") for each in fields.parts("parts", at_most=2)] == [1, 2]
    fields.done()


def test_each_number_of_a_list_is_checked() -> None:
    assert Fields("x", {"a": [1, 2]}).numbers("a", count=2, below=3) == [1, 2]
    for wrong in ([1, 3], [1, True], [1], [1, -1], "12"):
        with pytest.raises(StateError, match=r"^x: a "):
            Fields("x", {"a": wrong}).numbers("a", count=2, below=3)


def test_errors_name_part_and_field() -> None:
    fields = Fields("uart", PAYLOAD)
    with pytest.raises(StateError, match=r"^uart: ier is missing$") as missing:
        fields.number("ier")
    assert (missing.value.part, missing.value.reason) == ("uart", "ier is missing")
    with pytest.raises(StateError, match=r"^uart: flag is bool and not int$"):
        fields.number("flag")
    with pytest.raises(StateError, match=r"^uart: number is 7, not from 0 to 6$"):
        fields.number("number", below=7)
    with pytest.raises(StateError, match=r"^uart: data has 2 bytes and not 3$"):
        fields.data("data", length=3)
    with pytest.raises(StateError, match=r"^uart: items has 5 items, more than 4$"):
        fields.items("items", at_most=4)
    with pytest.raises(StateError, match=r"^uart\.part: inner is int and not str$"):
        fields.part("part").text("inner")
    with pytest.raises(StateError, match=r"^uart\.parts\[1\]: inner is 2, not from 0 to 1$"):
        fields.parts("parts")[1].number("inner", below=2)


def test_same_compares_with_the_present_value() -> None:
    Fields("balloon", {"dialect": "bitmap"}).same("dialect", "bitmap")
    with pytest.raises(StateError, match=r"is 'bitmap' in the saved state and 'standard' here"):
        Fields("balloon", {"dialect": "bitmap"}).same("dialect", "standard")


def test_done_refuses_fields_that_were_not_read() -> None:
    with pytest.raises(StateError, match=r"^uart: extra is not known here$"):
        Fields("uart", {"extra": 1}).done()
    fields = Fields("uart", {"part": {"extra": 1}})
    fields.part("part")
    with pytest.raises(StateError, match=r"^uart\.part: extra is not known here$"):
        fields.done()

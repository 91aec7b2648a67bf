# SPDX-License-Identifier: Apache-2.0
"""Sizes: accepted, refused with the expected form, and printed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.errors import UserError
from pyvmm.units import GIB, KIB, MIB, TIB, format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("4096", 4096),
        ("4096B", 4096),
        ("0", 0),
        ("1k", KIB),
        ("256M", 256 * MIB),
        ("256m", 256 * MIB),
        ("256MiB", 256 * MIB),
        ("256 mib", 256 * MIB),
        (" 1G ", GIB),
        ("1GiB", GIB),
        ("1.5G", 3 * GIB // 2),
        ("0.1K", 102),
        ("2T", 2 * TIB),
        ("9007199254740993", 9007199254740993),
    ],
)
def test_sizes_are_parsed(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "M", "-1", "-1M", "+1M", "1.5", "1.M", ".5G", "1e3", "0x10", "1MM", "1P"),
        *("1 2M", "nan", "inf", "1_000", "٣M", "1" * 20, "1M\0", "one"),
    ],
)
def test_other_texts_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(UserError, match="256M"):
        parse_size(text)


@pytest.mark.parametrize(("text", "unit"), [("1GB", "GiB"), ("512 mb", "MiB"), ("1.5KB", "KiB")])
def test_decimal_units_are_refused_and_the_binary_unit_named(text: str, unit: str) -> None:
    with pytest.raises(UserError, match=f"write {unit}"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (4096, "4 KiB"),
        (256 * MIB, "256 MiB"),
        (3 * GIB // 2, "1.5 GiB"),
        (GIB + GIB // 3, "1.33 GiB"),
        (-4096, "-4 KiB"),
        (20 * TIB, "20 TiB"),
    ],
)
def test_sizes_are_printed_with_two_decimals_at_most(size_bytes: int, text: str) -> None:
    assert format_size(size_bytes) == text


@given(st.integers(0, 1 << 60))
def test_a_plain_number_is_bytes(size_bytes: int) -> None:
    assert parse_size(str(size_bytes)) == size_bytes


@given(st.integers(1, 1023), st.sampled_from("KMGT"))
def test_printed_sizes_parse_to_the_same_number(count: int, unit: str) -> None:
    size_bytes = parse_size(f"{count}{unit}")
    assert parse_size(format_size(size_bytes)) == size_bytes

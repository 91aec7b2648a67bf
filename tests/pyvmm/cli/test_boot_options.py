# SPDX-License-Identifier: Apache-2.0
"""A command line that is parsed without click means what it means to click."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.cli.boot_options import (
    BOOT_OPTIONS,
    BY_NAME,
    COMPLETION_VARIABLE,
    KVM_MODES,
    BootOption,
    parse_boot,
)
from pyvmm.cli.run import run
from pyvmm.lab.choose import KvmMode
from pyvmm.units import parse_size

FITTING: dict[object, list[str]] = {
    parse_size: ["512M", "1.5G", "64K", "0"],
    int: ["0", "4", " 2"],
    Path: ["initrd", "/a b", ""],
    str: ["", "x", "a b", "unix:/q", "a=b"],
}
"""Texts that each parser of an option takes."""


def spelled(option: BootOption) -> st.SearchStrategy[tuple[str, ...]]:
    """Return the ways to give `option` with a text that it takes."""
    names = st.sampled_from(option.names)
    if option.flag:
        return st.tuples(names)
    texts = st.sampled_from(list(option.choices) or FITTING[option.parse])
    joined = st.builds(lambda name, text: (f"{name}={text}",), names, texts)
    return joined | st.tuples(names, texts)


PLAIN = st.lists(st.one_of(*map(spelled, BOOT_OPTIONS)), max_size=6)
TEXTS = st.one_of(
    st.sampled_from(["512M", "4", "-1", "", "a b", "-"]),
    st.sampled_from([choice for option in BOOT_OPTIONS for choice in option.choices]),
    st.text(max_size=4),
)
NAMES = st.one_of(st.sampled_from(sorted(BY_NAME)), st.sampled_from(["--kernel", "--mem", "--"]))
OTHER = st.one_of(
    st.tuples(NAMES, TEXTS),
    st.builds(lambda name, text: (f"{name}={text}",), NAMES, TEXTS),
    st.tuples(NAMES),
    st.tuples(TEXTS),
)


def parsed_by_click(words: list[str]) -> dict[str, Any] | None:
    """Return the parameters that click finds in `words`, or None for an error."""
    try:
        return run.make_context("run", list(words), resilient_parsing=False).params
    except (click.ClickException, click.exceptions.Exit):
        return None


def line(data: st.DataObject, parts: list[tuple[str, ...]]) -> list[str]:
    """Return a command line of `parts`, with IMAGE anywhere between them."""
    at = data.draw(st.integers(0, len(parts)))
    return [word for part in (*parts[:at], ("guest.img",), *parts[at:]) for word in part]


@given(st.data(), PLAIN)
def test_a_plain_command_line_has_the_parameters_that_click_finds(
    data: st.DataObject, parts: list[tuple[str, ...]]
) -> None:
    words = line(data, parts)
    plain = parse_boot(["run", *words])
    assert plain is not None
    params = parsed_by_click(words)
    assert params is not None
    assert {name: params[name] for name in plain} == plain


@given(st.data(), PLAIN, OTHER)
def test_any_command_line_that_is_taken_means_what_it_means_to_click(
    data: st.DataObject, parts: list[tuple[str, ...]], other: tuple[str, ...]
) -> None:
    words = line(data, [*parts, other])
    plain = parse_boot(["run", *words])
    if plain is not None:
        params = parsed_by_click(words)
        assert params is not None
        assert {name: params[name] for name in plain} == plain


def test_all_boot_options_need_no_click() -> None:
    words = ["run", "--rng", "guest.img", "--memory=512M", "--cpus", "2", "--append", "quiet"]
    words += ["--initrd", "initrd", "--dialect", "standard", "--offer", "a", "--offer=b"]
    words += ["--withhold", "c", "--rng-limit", "64K", "--console", "virtio", "--name", "web"]
    words += ["--qmp", "unix:/q", "--kvm", "host", "-v", "--hugepages", "never"]
    assert parse_boot(words) == {
        "image": Path("guest.img"),
        "ram_bytes": 512 << 20,
        "cpus": 2,
        "append": "quiet",
        "initrd": Path("initrd"),
        "dialect": "standard",
        "offer": ("a", "b"),
        "withhold": ("c",),
        "rng": True,
        "rng_limit": 64 << 10,
        "console": "virtio",
        "guest_name": "web",
        "addresses": ("unix:/q",),
        "kvm": "host",
        "verbose": True,
        "hugepages": "never",
    }


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["ps"],
        ["run"],
        ["run", "--help"],
        ["run", "guest.img", "other.img"],
        ["run", "guest.img", "--", "true"],
        ["run", "guest.img", "--memory"],
        ["run", "guest.img", "--memory", "much"],
        ["run", "guest.img", "--cpus", "--rng"],
        ["run", "guest.img", "--kvm", "other"],
        ["run", "guest.img", "--record", "file"],
        ["run", "guest.img", "--rng=yes"],
        ["run", "--kernel", "vmlinux"],
    ],
)
def test_any_other_command_line_is_left_to_click(words: list[str]) -> None:
    assert parse_boot(words) is None


def test_completion_is_left_to_click(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_boot(["run", "guest.img"]) is not None
    monkeypatch.setenv(COMPLETION_VARIABLE, "bash_complete")
    assert parse_boot(["run", "guest.img"]) is None


def test_the_modes_of_kvm_are_those_of_the_lab() -> None:
    assert get_args(KvmMode) == KVM_MODES

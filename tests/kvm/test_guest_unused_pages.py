# SPDX-License-Identifier: Apache-2.0
"""The unused pages that a real guest reports, compared with its counters and its memory."""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Callable

import pytest

from devices.balloon.features import MISC_VQ
from pyvmm.balloon.guest_requests import DriverUnavailable
from pyvmm.harness.guest_session import GuestSession
from pyvmm.machine.exit_result import ExitReason
from pyvmm.qmp import commands
from pyvmm.qmp.messages import QmpError, Request
from pyvmm.units import MIB
from pyvmm_native import PAGE_BYTES
from pyvmm_native.runs import PageRuns
from tests.kvm.fixture_types import RunGuest

pytestmark = pytest.mark.kvm

SEED = 21
PATTERN_MIB = 48
USED_AGAIN_PAGES = 2 * MIB // PAGE_BYTES
"""As many of the pages that a program has freed the guest may use for something else."""
WORD = (1 << 64) - 1
CHUNK_BYTES = 4 * MIB


async def unused_pages(guest: GuestSession) -> PageRuns:
    return await guest.while_running(guest.vm.misc_requests.unused_pages(60))


async def power_off(guest: GuestSession) -> None:
    """Power off; assert that the driver sent no bad and no late message."""
    guest.console.send_line("quit")
    assert (await guest.wait_for_exit()).reason is ExitReason.POWEROFF
    balloon = guest.vm.balloon
    assert [queue.counters.bad_payloads for queue in balloon.queues] == [0] * len(balloon.queues)
    assert balloon.misc.late_messages == 0


def first_word(seed: int, page: int) -> int:
    """Return the first word of page `page` of the pattern (guest_images/src/pattern.c)."""
    x = seed * 0x9E3779B97F4A7C15 & WORD ^ (page + 1) * 0xC2B2AE3D27D4EB4F & WORD
    x = (x ^ x >> 33) * 0xFF51AFD7ED558CCD & WORD
    x = (x ^ x >> 33) * 0xC4CEB9FE1A85EC53 & WORD
    return x ^ x >> 33


def pattern_pages(guest: GuestSession) -> PageRuns:
    """Return the page frames that hold the guest's pattern, found by scanning all of its RAM."""
    pages = PATTERN_MIB * MIB // PAGE_BYTES
    words = {struct.pack("<Q", first_word(SEED, page)) for page in range(pages)}
    found = []
    memory = guest.vm.ram.memory
    for gpa, size_bytes in memory.regions:
        for start in range(gpa, gpa + size_bytes, CHUNK_BYTES):
            chunk = memory.read(start, min(CHUNK_BYTES, gpa + size_bytes - start))
            found += [
                (start + offset) // PAGE_BYTES
                for offset in range(0, len(chunk), PAGE_BYTES)
                if chunk[offset : offset + 8] in words
            ]
    return PageRuns((pfn, 1) for pfn in found)


@pytest.mark.parametrize(
    ("dialect", "memory_mib", "vcpus"),
    [
        ("bitmap", 8192, 1),
        ("bitmap", 256, 4),
        pytest.param("hybrid", 256, 4, marks=pytest.mark.long),
        pytest.param("hybrid", 8192, 1, marks=pytest.mark.long),
        ("ranges", 8192, 1),
    ],
)
def test_unused_pages_match_the_guests_free_memory(
    run_guest: RunGuest,
    figure: Callable[[str], None],
    dialect: str,
    memory_mib: int,
    vcpus: int,
) -> None:
    async def scenario(guest: GuestSession) -> None:
        await guest.wait_for_user_space()
        before = await guest.free_bytes()
        begin = time.monotonic()
        unused = await unused_pages(guest)
        seconds = time.monotonic() - begin
        after = await guest.free_bytes()
        figure(
            f"unused pages of {memory_mib} MiB, {vcpus} vCPU, {dialect}: {seconds:.3f} s,"
            f" {unused.pages:,}"
            f" pages in {len(unused):,} runs, MemFree {before // PAGE_BYTES:,}"
            f" before, {after // PAGE_BYTES:,} after"
        )
        low, high = sorted((before, after))  # per-CPU lists are emptied meanwhile
        assert 0.99 * low <= unused.pages * PAGE_BYTES <= 1.01 * high
        assert abs(unused.pages * PAGE_BYTES - after) <= after / 100
        assert guest.vm.balloon.counters.discarded_bytes == 0
        await power_off(guest)

    run_guest(scenario, memory_mib=memory_mib, vcpus=vcpus, dialect=dialect)


@pytest.mark.parametrize("dialect", ["hybrid", pytest.param("ranges", marks=pytest.mark.long)])
def test_unused_pages_of_a_fragmented_guest(run_guest: RunGuest, dialect: str) -> None:
    """Its free lists are too long to be walked while the zone is locked."""

    async def scenario(guest: GuestSession) -> None:
        await guest.wait_for_user_space()
        await guest.shell("echo never > /sys/kernel/mm/transparent_hugepage/enabled")
        for command in ("alloc 72", f"fill {SEED}", "thin 2"):
            await guest.command(command)
        blocks = (await guest.shell("cat /proc/buddyinfo")).partition("zone")[2].split()
        assert int(blocks[1]) > 5000, "single pages are free"
        before = await guest.free_bytes()
        unused = await unused_pages(guest)
        after = await guest.free_bytes()
        assert len(unused) > 5000
        low, high = sorted((before, after))  # per-CPU lists are emptied meanwhile
        assert 0.99 * low <= unused.pages * PAGE_BYTES <= 1.01 * high
        assert await guest.command(f"verify {SEED}") == f"verified {36 * MIB} wrong 0"
        await power_off(guest)

    run_guest(scenario, memory_mib=128, dialect=dialect)


def test_no_page_in_use_is_reported_unused(run_guest: RunGuest) -> None:
    """No page of the pattern is reported unused: a copy may skip all reported pages."""

    async def scenario(guest: GuestSession) -> None:
        await guest.wait_for_user_space()
        before = await unused_pages(guest)
        for command in (f"alloc {PATTERN_MIB}", f"fill {SEED}"):
            await guest.command(command)
        pattern = pattern_pages(guest)
        assert pattern.pages == PATTERN_MIB * MIB // PAGE_BYTES
        assert before.intersect(pattern).pages > pattern.pages / 2, "they were free before"
        unused = await unused_pages(guest)
        assert list(unused.intersect(pattern)) == []
        verified = f"verified {PATTERN_MIB * MIB} wrong 0"
        assert await guest.command(f"verify {SEED}") == verified
        assert pattern_pages(guest) == pattern, "the pattern stays in the same frames"
        await guest.command("free")
        # An eighth of RAM was on per-CPU lists, which the driver has emptied for its answer.
        freed = (await unused_pages(guest)).intersect(pattern)
        assert freed.pages >= pattern.pages - USED_AGAIN_PAGES
        await power_off(guest)

    run_guest(scenario, vcpus=2)


def test_ballooned_pages_are_not_reported_unused(run_guest: RunGuest) -> None:
    """The guest counts ballooned pages as allocated, and reports its other free pages."""

    async def scenario(guest: GuestSession) -> None:
        await guest.wait_for_user_space()
        await guest.resize_balloon(128 * MIB // PAGE_BYTES)
        # Linux drains its per-CPU page lists within seconds; until then MemFree still grows.
        async with asyncio.timeout(60):
            while True:
                unused = await unused_pages(guest)
                free = await guest.free_bytes()
                assert free < 128 * MIB
                if abs(unused.pages * PAGE_BYTES - free) <= MIB:
                    break
        await power_off(guest)

    run_guest(scenario)


def test_dropping_caches_increases_unused_pages(
    run_guest: RunGuest, figure: Callable[[str], None]
) -> None:
    async def scenario(guest: GuestSession) -> None:
        await guest.wait_for_user_space()
        await guest.shell("find /proc /sys > /dev/null")
        requests = guest.vm.misc_requests
        before = await unused_pages(guest)
        await guest.while_running(requests.sync_filesystems(60))
        await guest.while_running(requests.drop_caches(60))
        # Linux frees dentries after an RCU grace period, and a slab page once all of it is free.
        async with asyncio.timeout(60):
            while (after := await unused_pages(guest)).pages < before.pages + MIB // PAGE_BYTES:
                await asyncio.sleep(0.1)
        figure(f"unused pages of an idle guest: {before.pages:,}, caches dropped {after.pages:,}")
        counts = await guest.shell("sed -n '/^drop_/p' /proc/vmstat")
        assert counts.split() == ["drop_pagecache", "1", "drop_slab", "1"]
        await power_off(guest)

    run_guest(scenario)


def test_query_unused_pages_repeatedly(run_guest: RunGuest) -> None:
    async def scenario(guest: GuestSession) -> None:
        await guest.wait_for_user_space()
        request = Request("query-unused-pages", {"runs": 1000, "cells": 64})
        for _ in range(5):
            answer = await guest.while_running(commands.execute(guest.vm, request))
            assert answer["ram-pages"] == 256 * MIB // PAGE_BYTES
            assert 0.5 < answer["share"] < 1
            assert sum(answer["cells"]["unused"]) == answer["unused-pages"]
            assert len(answer["runs"]) == min(1000, answer["run-count"])
            assert max(count for _, count in answer["runs"]) <= answer["largest-run"]
            # A paused guest gets no request, and replies again once it is resumed.
            guest.vm.pause()
            with pytest.raises(QmpError, match="is paused"):
                await commands.execute(guest.vm, request)
            guest.vm.resume()
        await power_off(guest)

    run_guest(scenario)


def test_without_misc_vq_no_request_is_sent(run_guest: RunGuest) -> None:
    async def scenario(guest: GuestSession) -> None:
        await guest.wait_for_user_space()
        with pytest.raises(DriverUnavailable):
            await guest.vm.misc_requests.unused_pages(60)
        assert not guest.vm.balloon.accepted & MISC_VQ
        await guest.resize_balloon(64 * MIB // PAGE_BYTES)
        await power_off(guest)

    run_guest(scenario, withhold=("misc-vq",))

# SPDX-License-Identifier: Apache-2.0
"""Check of chapter 10: only messages with the id of the outstanding request count.

The check plays a driver that is slow: its response to the first request arrives during the second.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any

from devices.testing.balloon import bitmap_request
from pyvmm.learn.checking import expect
from pyvmm_native.runs import PageRuns

CONT, DONE = 0, 1
OLD_PAGES = range(1024, 1088)
"""Unused when the driver read its free lists for the first request, and in use again later."""
NEW_PAGES = range(2048, 2112)
MORE_PAGES = range(4000, 4010)

STALE = (
    "The pages of that message were unused when the driver answered request 1. The guest may have"
    " written to them since, before the dirty log was on, so a migration that leaves them out loses"
    " them. A message belongs to the request whose id it has."
)


class _Driver:
    """Responds to requests of the exercise's `UnusedPagesRequests`, when it is told to."""

    def __init__(self, exercise: Any) -> None:
        self.requests = exercise.UnusedPagesRequests()

    def request(self) -> int:
        """Receive a request; return its id."""
        payload = bytes(self.requests.request())
        expect(len(payload) == 16, f"A request has 16 bytes, and this one has {len(payload)}.")
        _, request_id = struct.unpack("<H6xQ", payload)
        return int(request_id)

    def respond(self, request_id: int, pages: Iterable[int], flag: int) -> PageRuns | None:
        """Send one message; return what the host makes of it."""
        message = b"".join(bitmap_request(pages, req_id=request_id, flag=flag))
        try:
            result = self.requests.message(message)
        except Exception as error:
            expect(
                False,
                f"`message` has raised {type(error).__name__}({error}) for a message with req_id"
                f" {request_id}. A late message is no fault of the driver's, and a host that fails"
                " has no response to its second request: ignore the message.",
            )
        assert result is None or isinstance(result, PageRuns)
        return result


def _runs(*pages: range) -> PageRuns:
    return PageRuns((each.start, len(each)) for each in pages)


def check(exercise: Any) -> None:
    """Check `UnusedPagesRequests` of the module `exercise`."""
    _check_in_time(exercise)
    _check_late(exercise)
    _check_late_between_messages(exercise)


def _check_in_time(exercise: Any) -> None:
    driver = _Driver(exercise)
    for number in (1, 2):
        request_id = driver.request()
        expect(
            request_id == number, f"Request {number} has the id {request_id}: ids increase by 1."
        )
        first = driver.respond(request_id, NEW_PAGES, CONT)
        expect(first is None, "A message with flag CONT does not complete the response.")
        pages = driver.respond(request_id, MORE_PAGES, DONE)
        expect(
            pages == _runs(NEW_PAGES, MORE_PAGES),
            f"A response of two messages named {_runs(NEW_PAGES, MORE_PAGES)}, and the host has"
            f" {pages}.",
        )


def _check_late(exercise: Any) -> None:
    driver = _Driver(exercise)
    first = driver.request()
    driver.requests.time_out()
    ignored = driver.respond(first, OLD_PAGES, CONT)
    expect(ignored is None, "Request 1 has timed out, and a message for it gives a result.")
    second = driver.request()
    result = driver.respond(first, OLD_PAGES, DONE)
    expect(
        result is None,
        f"Request 2 is outstanding, and a message with req_id 1 and flag DONE ends it. {STALE}",
    )
    _expect_second(driver, second, driver.respond(second, NEW_PAGES, DONE))


def _check_late_between_messages(exercise: Any) -> None:
    driver = _Driver(exercise)
    first = driver.request()
    driver.requests.time_out()
    second = driver.request()
    driver.respond(first, OLD_PAGES, CONT)
    driver.respond(second, NEW_PAGES, CONT)
    driver.respond(first, OLD_PAGES, CONT)
    result = driver.respond(second, MORE_PAGES, DONE)
    stale = result.intersect(_runs(OLD_PAGES)) if result else PageRuns()
    expect(
        not stale,
        f"The response to request 2 has {stale}, named by a message with req_id 1. {STALE}",
    )
    expect(
        result == _runs(NEW_PAGES, MORE_PAGES),
        f"The driver's messages for request 2 named {_runs(NEW_PAGES, MORE_PAGES)}, and the host"
        f" has {result}.",
    )


def _expect_second(driver: _Driver, second: int, result: PageRuns | None) -> None:
    expect(
        result == _runs(NEW_PAGES),
        f"The response to request {second} named {_runs(NEW_PAGES)}, and the host has {result}: the"
        " late message before it must change nothing.",
    )

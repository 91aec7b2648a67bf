# SPDX-License-Identifier: Apache-2.0
"""The scope's page with a million events: bench "scope".

`pyvmm scope FILE` serves a recording of a busy queue to Chromium without a window. Time until
loaded is from the request of the page to the first frame that has all events; its stages are the
page itself, which is then ready to show events, and the events.

Frame times are those between two animation frames, while a script zooms and moves the timeline or
scrolls the list of events, one step a frame. A browser shows at most 60 frames a second, so a frame
takes 17 ms at least. Windows are 1280 and 3840 pixels wide; targets are for the former.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import quantiles
from typing import TYPE_CHECKING

from bench.busy_queue import busy_queue
from bench.launch import MEMORY
from bench.measure import TOTAL, Case, Plan, seconds
from bench.scope_cases import LOADED, PERCENTILES, SCRIPTS, SMALL, WINDOWS, frame_case
from bench.scope_page import chromium, served_scope
from pyvmm.trace.recording_file import RecordingFile

if TYPE_CHECKING:
    from playwright.sync_api import Browser

EVENTS, QUICK_EVENTS = 1_000_000, 20_000
ROUNDS = 5
STEPS, QUICK_STEPS = 20, 3

_SCRIPT = Path(__file__).with_name("scope_script.js")
_LOADED_JS = """() => new Promise((done) => {
  let ready = 0;
  const look = () => {
    ready ||= document.documentElement.dataset.ready ? performance.now() : 0;
    if (document.getElementById("state").dataset.state !== "complete") requestAnimationFrame(look);
    else requestAnimationFrame(() => done([ready, performance.now()]));
  };
  look();
})"""
"""Milliseconds since the request of the page until it was ready, and until all events are shown."""


class PageCases:
    """The cases; `frames` are by script and percentile."""

    def __init__(self) -> None:
        self.loaded = Case(LOADED, "s", against=SMALL, panel="loading")
        self.frames = {
            (script, name): Case(frame_case(script, name), "ms", SMALL, panel=words)
            for script, words in SCRIPTS.items()
            for name in PERCENTILES
        }

    @property
    def all(self) -> list[Case]:
        """The cases in the order of the tables."""
        return [self.loaded, *self.frames.values()]


def measure(plan: Plan) -> list[Case]:
    """Measure loading and frames in each window."""
    cases = PageCases()
    rounds, steps = plan.rounds(ROUNDS), QUICK_STEPS if plan.quick else STEPS
    with tempfile.TemporaryDirectory(dir=MEMORY) as directory, chromium() as browser:
        recording = Path(directory, "busy.rec")
        _record(recording, QUICK_EVENTS if plan.quick else EVENTS)
        plan.progress.stage(LOADED, rounds * len(WINDOWS))
        with served_scope(str(recording)) as url:
            for _ in range(rounds):
                for window in WINDOWS:
                    _measure_page(browser, url, window, steps, cases)
                    plan.progress.advance()
    return cases.all


def _measure_page(browser: Browser, url: str, window: str, steps: int, cases: PageCases) -> None:
    """Open the page in a new window, and add a round to each case."""
    width, height = WINDOWS[window]
    page = browser.new_page(viewport={"width": width, "height": height})
    page.goto(url, wait_until="commit")
    ready, end = page.evaluate(_LOADED_JS)
    stages = {"page": ready / 1e3, "events": (end - ready) / 1e3}
    cases.loaded.add(window, {TOTAL: end / 1e3, **stages})
    for script in SCRIPTS:
        times, pictures = page.evaluate(_SCRIPT.read_text(), [script, steps])
        assert pictures > len(times) / 2
        cuts = quantiles(times, n=100, method="inclusive")
        for name, percentile in PERCENTILES.items():
            cases.frames[script, name].add(window, seconds(cuts[percentile - 1]))
    page.close()


def _record(path: Path, events: int) -> None:
    file = RecordingFile(path)
    for batch in busy_queue(events):
        file.write(batch)
    file.commit()
    file.close()
    assert file.events >= events

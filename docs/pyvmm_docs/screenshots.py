# SPDX-License-Identifier: Apache-2.0
"""The pictures of the scope in the documentation: `python -m pyvmm_docs.screenshots IMAGE`.

They show a real guest, made at that moment: it boots with a recording, inflates its balloon while
the scope watches it, and both are opened in Debian's Chromium without a window. Pictures at 1280 by
800 pixels go into `docs/_static/scope`, those at 3840 by 2160 into `build/screenshots`, to be
looked at. The guest runs in the lab if this machine's KVM is unfit.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from playwright.sync_api import Browser, sync_playwright

from pyvmm.errors import UserError
from pyvmm.qmp.client import QmpClient
from pyvmm.units import MIB

ROOT = Path(__file__).parents[2]
SMALL, LARGE = (1280, 800), (3840, 2160)
MAX_TOTAL_BYTES = 1_500_000
BOOT_LIMIT_S = 300.0
TARGET_BYTES = 256 * MIB
CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = ["--no-sandbox", "--disable-quic", "--disable-background-networking"]


class Shot(NamedTuple):
    """One picture: the part of the address after "#", and the color scheme of the page."""

    name: str
    fragment: str
    dark: bool = False
    kind: str = ""
    """The kind of event that is selected."""
    clicked: str = ""
    """The part of the page that is clicked, as a selector."""


RECORDED = (
    Shot("timeline", "timeline", kind="inflate"),
    Shot("timeline-dark", "timeline", dark=True, kind="inflate"),
    Shot("handshake", "handshake"),
)
STOPPED = (Shot("queues", "queues/balloon/inflate", clicked="#view-queues tbody tr >> nth=0"),)
"""The guest has stopped at the driver's notification, which Step has been armed for."""
LIVE = (
    Shot("memory", "memory"),
    Shot("registers", "registers/balloon"),
)


def main(image: Path) -> None:
    """Take all pictures of a guest of `image`."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        recording, socket = Path(folder, "boot.rec"), Path(folder, "qmp")
        with guest(image, recording, socket), scope("--qmp", f"unix:{socket}") as url:
            with stopped_at_notification(browser, url, socket):
                take(browser, url, STOPPED)
            take(browser, url, LIVE)
        with scope(str(recording)) as url:
            take(browser, url, RECORDED)
        browser.close()
    total = sum(path.stat().st_size for path in pictures().glob("*.png"))
    print(f"{total} bytes in {pictures()}")
    if total > MAX_TOTAL_BYTES:
        sys.exit(f"more than {MAX_TOTAL_BYTES} bytes")


def pictures() -> Path:
    """Return the folder of the pictures in the documentation."""
    return ROOT / "docs" / "_static" / "scope"


def run(*arguments: str) -> None:
    """Run a command of pyvmm."""
    subprocess.run([sys.executable, "-m", "pyvmm", *arguments], check=True)


@contextmanager
def guest(image: Path, recording: Path, socket: Path) -> Iterator[None]:
    """Run a guest in the block, from the moment at which its balloon driver runs."""
    command = [sys.executable, "-m", "pyvmm", "run", str(image), "--memory", "512M"]
    command += ["--record", str(recording), "--qmp", f"unix:{socket}"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, cwd=recording.parent
    )
    try:
        wait_for_driver(socket)
        yield
        run("quit", "--qmp", f"unix:{socket}")
        process.wait(60)
    finally:
        process.kill()
        process.wait()


@contextmanager
def stopped_at_notification(browser: Browser, url: str, socket: Path) -> Iterator[None]:
    """Inflate the balloon, and stop the guest in the block when its driver has notified."""
    page = browser.new_page()
    page.goto(url)
    page.wait_for_selector("#state[data-state=live]")
    page.select_option("#step select >> nth=1", '["balloon","inflate"]')
    page.keyboard.press("s")
    page.wait_for_timeout(1000)
    with QmpClient(socket) as client:
        client.execute("balloon", value=TARGET_BYTES)
        page.wait_for_selector("text=paused")
        yield
        page.keyboard.press("r")
        while client.execute("query-balloon")["actual"] != TARGET_BYTES:
            page.wait_for_timeout(100)
    page.close()


def wait_for_driver(socket: Path) -> None:
    """Return when the guest's balloon driver runs."""
    end = time.monotonic() + BOOT_LIMIT_S
    while time.monotonic() < end:
        try:
            with QmpClient(socket) as client:
                while time.monotonic() < end:
                    if client.execute("query-balloon").get("driver"):
                        return
                    time.sleep(0.5)
        except UserError:
            time.sleep(0.5)
    sys.exit(f"the guest has not booted in {BOOT_LIMIT_S:g} s")


@contextmanager
def scope(*source: str) -> Iterator[str]:
    """Serve the page of a source in the block; yields its address."""
    command = [sys.executable, "-m", "pyvmm", "scope", "--no-open", *source]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found is not None
        yield found[0]
    finally:
        process.terminate()
        process.wait()


def take(browser: Browser, url: str, shots: tuple[Shot, ...]) -> None:
    """Take the pictures of one source at both sizes."""
    for width, height in (SMALL, LARGE):
        folder = pictures() if width == SMALL[0] else ROOT / "build" / "screenshots"
        folder.mkdir(parents=True, exist_ok=True)
        for shot in shots:
            page = browser.new_page(
                viewport={"width": width, "height": height},
                color_scheme="dark" if shot.dark else "light",
            )
            page.goto(f"{url}#{shot.fragment}")
            page.wait_for_selector("#state[data-state=complete], #state[data-state=live]")
            page.wait_for_timeout(1500)
            if shot.kind:
                page.fill("#jump-kind", shot.kind)
                page.press("#jump-kind", "Enter")
                page.press("#jump-kind", "Escape")
            if shot.clicked:
                page.click(shot.clicked)
            page.wait_for_timeout(500)
            page.screenshot(path=folder / f"{shot.name}.png")
            page.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())

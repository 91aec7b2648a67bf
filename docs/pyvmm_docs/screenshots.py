# SPDX-License-Identifier: Apache-2.0
"""The pictures of the scope in the documentation: `python -m pyvmm_docs.screenshots IMAGE`.

They show a real guest, made at that moment: it boots with a recording, inflates its balloon while
the scope watches it and Step stops it, and then the recording is opened. Pictures of 1280 by 800
pixels go into `docs/_static/scope`. Every view, also those of a recording, is pictured at 1280 and
at 3840 pixels, light and dark, in `build/screenshots`, to be looked at. The guest runs in the lab
if this machine's KVM is unfit.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

from playwright.sync_api import Browser, Page

from bench.scope_page import chromium, served_scope
from pyvmm.errors import UserError
from pyvmm.files.output import PNG_START, write_output
from pyvmm.qmp.client import QmpClient
from pyvmm.units import MIB

ROOT = Path(__file__).parents[2]
PICTURES, LOOKED_AT = ROOT / "docs" / "_static" / "scope", ROOT / "build" / "screenshots"
PUBLISHED = {
    *("timeline-1280-light", "handshake-1280-light", "step-1280-light"),
    *("queues-1280-light", "memory-1280-light", "registers-1280-light"),
}
"""Those of the documentation."""
SIZES = {1280: 800, 3840: 2160}
SCHEMES = ("light", "dark")
MAX_TOTAL_BYTES = 1_500_000
NAME = "demo"
BOOT_LIMIT_S = 300.0
TARGET_BYTES = 256 * MIB


def main(image: Path) -> None:
    """Take all pictures of a guest of `image`."""
    for folder in (PICTURES, LOOKED_AT):
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as directory, chromium() as browser:
        os.environ["XDG_RUNTIME_DIR"] = directory  # no other guest has the name there
        recording = Path(directory, "boot.rec")
        with guest(image, recording) as client, served_scope("--vm", NAME) as url:
            take_live(browser, url, client)
        with served_scope(str(recording)) as url:
            take_recorded(browser, url)
        shutil.copy(recording, LOOKED_AT)
    total = sum(path.stat().st_size for path in PICTURES.glob("*.png"))
    print(f"{total} bytes in {PICTURES}")
    if total > MAX_TOTAL_BYTES:
        sys.exit(f"more than {MAX_TOTAL_BYTES} bytes")


# --- The guest ------------------------------------------------------------------------------
@contextmanager
def guest(image: Path, recording: Path) -> Iterator[QmpClient]:
    """Run a guest in the block, from the moment at which its balloon driver runs."""
    socket = recording.with_name("qmp")
    command = [sys.executable, "-m", "pyvmm", "run", str(image), "--memory", "512M"]
    command += ["--name", NAME, "--record", str(recording), "--qmp", f"unix:{socket}"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, cwd=recording.parent
    )
    try:
        with connect(socket) as client:
            yield client
            client.execute("quit")
        process.wait(60)
    finally:
        process.kill()
        process.wait()


def connect(socket: Path) -> QmpClient:
    """Return a connection to the guest when its balloon driver runs."""
    end = time.monotonic() + BOOT_LIMIT_S
    while time.monotonic() < end:
        try:
            client = QmpClient(socket)
            while time.monotonic() < end:
                if client.execute("query-balloon").get("driver"):
                    return client
                time.sleep(0.2)
        except UserError:
            time.sleep(0.2)
    sys.exit(f"the guest has not booted in {BOOT_LIMIT_S:g} s")


# --- Pictures -------------------------------------------------------------------------------
def take_live(browser: Browser, url: str, client: QmpClient) -> None:
    """Take the pictures of a guest that runs."""
    memory = open_page(browser, f"{url}#memory")  # its samples begin before the inflate
    with stopped_at_notification(browser, url, client) as page:
        page.wait_for_selector("#details h2")
        take(page, "step")
        show(page, "queues/balloon/inflate")
        page.click("#view-queues tbody tr >> nth=0")
        page.wait_for_selector("#view-queues .decoded")
        take(page, "queues")
    client.execute("query-unused-pages", timeout=30, cells=1)
    memory.bring_to_front()
    memory.wait_for_selector(f"tr[data-state=balloon][data-bytes='{TARGET_BYTES}']")
    memory.wait_for_selector("tr[data-state=unused]:not([data-bytes='0'])")
    take(memory, "memory")
    page = open_page(browser, f"{url}#registers/balloon")
    page.wait_for_selector(".card table")
    take(page, "registers")


@contextmanager
def stopped_at_notification(browser: Browser, url: str, client: QmpClient) -> Iterator[Page]:
    """Inflate the balloon; yields a page that has stopped the guest when its driver notified."""
    page = open_page(browser, url)
    page.select_option("#step select >> nth=1", '["balloon","inflate"]')
    page.keyboard.press("s")
    page.wait_for_selector("#step[data-state=armed]")
    client.execute("balloon", value=TARGET_BYTES)
    page.wait_for_selector("#step[data-state=stopped]")
    yield page
    page.keyboard.press("r")
    while client.execute("query-balloon")["actual"] != TARGET_BYTES:
        page.wait_for_timeout(100)


def take_recorded(browser: Browser, url: str) -> None:
    """Take the pictures of a recording."""
    page = open_page(browser, f"{url}#handshake")
    page.wait_for_selector(".handshake .label")
    take(page, "handshake")
    show(page, "timeline")
    page.fill("#jump-kind", "inflate")
    page.press("#jump-kind", "Enter")
    page.press("#jump-kind", "Escape")
    take(page, "timeline")
    for view in ("queues/balloon/inflate", "memory", "registers/balloon"):
        show(page, view)
        take(page, f"recorded-{view.partition('/')[0]}")


def open_page(browser: Browser, url: str) -> Page:
    """Return a new page, when it has the events that there are."""
    page = browser.new_page()
    page.goto(url)
    page.wait_for_selector("#state[data-state=complete], #state[data-state=live]")
    return page


def show(page: Page, place: str) -> None:
    """Show another view of the page."""
    page.evaluate("(place) => void (location.hash = place)", place)


def take(page: Page, name: str) -> None:
    """Take the picture at each size and in each colour scheme."""
    for (width, height), scheme in product(SIZES.items(), SCHEMES):
        page.set_viewport_size({"width": width, "height": height})
        page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
        page.wait_for_timeout(500)
        full_name = f"{name}-{width}-{scheme}"
        picture = page.screenshot()
        write_output(LOOKED_AT / f"{full_name}.png", picture, PNG_START)
        if full_name in PUBLISHED:
            published = full_name.replace("-1280", "").removesuffix("-light")
            write_output(PICTURES / f"{published}.png", picture, PNG_START)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())

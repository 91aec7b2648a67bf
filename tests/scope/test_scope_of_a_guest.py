# SPDX-License-Identifier: Apache-2.0
"""The scope of a real guest, from `pyvmm run` and `pyvmm scope` to the page in a browser.

The browser and the server run here; the guest runs in the lab if this machine's KVM is unfit.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from playwright.sync_api import Browser, Page

from guest_images.build import image_path
from guest_images.recipe import read_recipe
from pyvmm.qmp.client import QmpClient
from pyvmm.units import MIB
from tests.kvm.pyvmm_process import RunProcess

RAM, TARGET = 256 * MIB, 128 * MIB
LONG_MS = 60_000


@contextmanager
def scope_of_guest(browser: Browser) -> Iterator[tuple[Page, QmpClient]]:
    """Yield the page of a booted guest with a balloon and an entropy device, and a client of it."""
    with TemporaryDirectory(dir="/tmp") as directory:  # a path that is short, as sockets need
        socket = Path(directory) / "qmp"
        options = ("--memory", RAM, "--rng", "--qmp", f"unix:{socket}")
        append = ("--append", 'loglevel=4 pyvmm.run="pattern"')
        with RunProcess(image_path(read_recipe()), *options, *append) as guest:
            guest.expect("user space up")
            scope = subprocess.Popen(
                [sys.executable, "-m", "pyvmm", "scope", "--qmp", f"unix:{socket}", "--no-open"],
                stdout=subprocess.PIPE,
                text=True,
            )
            try:
                assert scope.stdout is not None
                address = re.search(r"http://\S+", scope.stdout.readline())
                assert address is not None
                page = browser.new_page(viewport={"width": 1280, "height": 800})
                page.goto(f"{address[0]}#queues/balloon/inflate")
                with QmpClient(socket) as client:
                    yield page, client
                page.close()
            finally:
                scope.kill()
                scope.communicate()


def wait_for_balloon(client: QmpClient) -> None:
    deadline = time.monotonic() + 60
    while client.execute("query-balloon")["actual"] != TARGET:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_an_inflate_is_stopped_watched_and_seen_in_memory(browser: Browser) -> None:
    with scope_of_guest(browser) as (page, client):
        page.wait_for_selector("#state[data-state=live]")
        page.select_option("#step select >> nth=1", label="balloon inflate")
        page.keyboard.press("Escape")
        page.locator("#step button").first.click()
        page.wait_for_selector("#step[data-state=armed]")
        client.execute("balloon", value=TARGET)
        page.wait_for_selector("#step[data-state=stopped]", timeout=LONG_MS)
        page.wait_for_selector("table.buffers tr[data-owner=available]")
        assert client.execute("query-status")["status"] == "paused"
        assert client.execute("query-balloon")["actual"] == RAM
        page.locator("table.buffers tr[data-owner=available]").first.click()
        page.wait_for_selector(".buffer .hex")
        page.keyboard.press("r")
        page.wait_for_selector("#step[data-state=off]")
        wait_for_balloon(client)
        page.locator("button", has_text="Now").click()
        page.wait_for_selector("table.buffers tr[data-owner=used]")
        page.goto(f"{page.url.partition('#')[0]}#queues/rng/request")
        page.wait_for_selector("table.buffers tr[data-owner=used]", timeout=LONG_MS)
        page.goto(f"{page.url.partition('#')[0]}#registers/balloon")
        actual = (RAM - TARGET) // 4096
        page.wait_for_selector(f"tr[data-register=actual][data-value='{actual:#x}']")

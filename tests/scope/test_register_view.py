# SPDX-License-Identifier: Apache-2.0
"""The register view: the registers of a device as they are, and as events tell."""

from __future__ import annotations

from playwright.sync_api import Browser

from devices.testing.driver import ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK
from tests.scope.board_guest import BoardGuest
from tests.scope.board_page import board_page


def test_registers_are_those_of_the_device_and_changes_are_marked(browser: Browser) -> None:
    guest = BoardGuest()
    with board_page(browser, guest, "registers/keeper") as page:
        status = page.locator("tr[data-register=device_status]")
        status.wait_for()
        assert status.get_attribute("data-value") == "0xf"
        assert page.locator("tr.changed").count() == 0
        text = page.locator(".register-body").inner_text()
        for part in ("BARs", "MSI-X vectors", "0xc0000000", "0xfee00000", "VERSION_1", "0x2000000"):
            assert part in text
        guest.driver.write_common("queue_select", 5)
        page.wait_for_selector("tr.changed[data-register=queue_select][data-value='0x5']")
    assert guest.driver.read_common("device_status") == 0xF, "looking changes nothing"


def test_a_recording_has_the_last_value_before_the_selected_event(browser: Browser) -> None:
    guest = BoardGuest()
    guest.live = False
    with board_page(browser, guest, "registers/keeper") as page:
        status = page.locator("tr[data-register=device_status]")
        page.keyboard.press("End")
        done = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK
        page.wait_for_selector(f"tr[data-register=device_status][data-value='{done:#x}']")
        first = page.locator("section[aria-label='Last accesses'] tr").first
        assert "common.device_status" in first.inner_text()
        # The access before it is the event that a row selects.
        page.locator("section[aria-label='Last accesses'] tr").nth(1).click()
        page.wait_for_function(
            "document.querySelector('#details h2').innerText.startsWith('register_')"
        )
        status.wait_for()

# SPDX-License-Identifier: Apache-2.0
"""The cases and contenders of bench "scope": what is done, and the windows."""

WINDOWS = {"1280 px": (1280, 800), "3840 px": (3840, 2160)}
"""Width and height in CSS pixels."""
SMALL = next(iter(WINDOWS))
LOADED = "1,000,000 events loaded"
SCRIPTS = {
    "timeline": "zooming and moving the timeline",
    "list": "scrolling the list of events",
}
"""In words, by the name in the script of the page."""
PERCENTILES = {"median": 50, "95th percentile": 95, "99th percentile": 99}


def frame_case(script: str, percentile: str) -> str:
    """Return the name of the case of frame times while `script` runs."""
    return f"{SCRIPTS[script]}: {percentile} of frame times"

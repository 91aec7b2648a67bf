# SPDX-License-Identifier: Apache-2.0
"""Create a VM and load its kernel in threads, while the process imports the rest of the machine.

KVM's requests for a new VM mostly wait in the kernel (`pyvmm.machine.kvm_setup`), and loading
copies the kernel to memory that the host zeroes first; neither needs the GIL. Each is one
`StartedCall`, which starts as soon as its input is known:

    boot = EarlyBoot(config)
    boot.begin()
    boot.load(read_boot_files(config))
    ...  # import the platform
    platform = Platform(config, setup=boot.setup(), ...)
    platform.set_up_vcpus(boot.loaded())

An error of a thread is raised where its result is taken. So a boot that is refused for another
reason has that one error, and the process that ends then takes the VM with it.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from pyvmm.blocking.started_call import StartedCall
from pyvmm.machine.errors import MachineNotCreated
from pyvmm.machine.kvm_setup import KvmSetup, make_ram

if TYPE_CHECKING:
    from pyvmm.boot.linux64 import BootInfo
    from pyvmm.boot.loader import BootFiles
    from pyvmm.config import MachineConfig
    from pyvmm.memory.ram import Ram


class EarlyBoot:
    """The boot of a machine as `config` describes it; nothing happens before `begin`.

    Threads: event loop.
    """

    def __init__(self, config: MachineConfig) -> None:
        self.config = config
        self._ram: Ram | None = None
        self._files: BootFiles | None = None
        self._setup: StartedCall[KvmSetup] | None = None
        self._loaded: StartedCall[BootInfo] | None = None

    def begin(self) -> None:
        """Map RAM, and begin to create the VM, unless that has begun.

        Raises `HostMemoryUnavailable`.
        """
        if self._ram is None:
            self._ram = ram = make_ram(self.config)
            self._setup = StartedCall("create-vm", lambda: KvmSetup(ram))
            self._start_loading()

    def load(self, files: BootFiles) -> None:
        """Begin to load `files`, at once or with `begin`; their initramfs is empty afterwards."""
        self._files = files
        self._start_loading()

    def _start_loading(self) -> None:
        ram, files, config = self._ram, self._files, self.config
        if ram is None or files is None:
            return
        # Late: 3 ms, while the VM is created.
        from pyvmm.boot.loader import load_linux

        def load() -> BootInfo:
            start = load_linux(files, config, ram)
            files.initrd.clear()  # RAM has it
            return start

        self._loaded = StartedCall("load-kernel", load)

    def discard(self) -> None:
        """Release VM, RAM and files: another process boots the guest."""
        if self._loaded is not None:
            self._loaded.wait()
        if self._files is not None:
            self._files.initrd.clear()
        if self._setup is not None:
            with suppress(MachineNotCreated):
                self._setup.result().close()
        if self._ram is not None:
            self._ram.close()

    def setup(self) -> KvmSetup:
        """Return the VM once it exists. Raises `PlatformNotCreated` if KVM refuses a request."""
        assert self._setup is not None, "not begun"
        return self._setup.result()

    def loaded(self) -> BootInfo:
        """Return the state that the boot processor starts with, once RAM has the kernel.

        Raises `KernelUnusable` if its file has changed since it was read.
        """
        assert self._loaded is not None, "not begun"
        return self._loaded.result()
